"""Every error accelplug raises on purpose.

* AccelplugError
  + PluginError             a plugin could not be loaded, registered or trusted with what it returned
  + UnknownTechniqueError   no plugin registered that name
  + OptionError             a technique was given an option, or a value, that it does not have
  + HostError               the host engine cannot run what was selected
  + ConstraintError         a grammar or schema cannot be enforced
"""

from __future__ import annotations

__all__ = [
    "AccelplugError",
    "ConstraintError",
    "HostError",
    "OptionError",
    "PluginError",
    "UnknownTechniqueError",
]


class AccelplugError(Exception):
    """Base class: catch this to catch everything accelplug raises on purpose."""


class PluginError(AccelplugError):
    """A plugin could not be loaded or registered, or broke its contract; the message names it."""


class UnknownTechniqueError(AccelplugError):
    """No plugin registered that name; the message lists the names there are."""


class OptionError(AccelplugError, ValueError):
    """A technique was given an option or a value it does not have; the message lists what it has."""


class HostError(AccelplugError):
    """The host engine cannot run what was selected; the message says what is missing and what to use."""


class ConstraintError(AccelplugError, ValueError):
    """A grammar or schema cannot be enforced; the message names the part.

    :ivar statement: what becomes of each keyword, an `accelplug.hooks.GrammarStatement`, where the engine came that far.
    """

    def __init__(self, message: str, statement: object = None) -> None:
        super().__init__(message)
        self.statement = statement
