"""The command line: ``accelplug plugins | check | run | bench | tune | new | schema``. Every command collects one document, then prints it."""

from accelplug.cli.entry import main

__all__ = ["main"]
