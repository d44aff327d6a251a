"""``python -m accelplug`` is the command ``accelplug``."""

from __future__ import annotations

import sys

from accelplug.cli import main

if __name__ == "__main__":
    sys.exit(main())
