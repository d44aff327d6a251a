"""What every test of this repository begins with."""

import os

# Contributors have other people's plugins installed, maybe under the names of ours. A test that wants an installed one names it.
os.environ["ACCELPLUG_PLUGINS"] = ""
