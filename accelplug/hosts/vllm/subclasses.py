"""Subclasses by name: vLLM imports classes of its settings by their names, and such a name says which class the subclass is put on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module


class Subclasses:
    """What a module's ``__getattr__`` answers with, so that a name of a base class in it stands for the subclass.

    :param module: the module's name.
    :param make: a base class and its name as it was given -> the subclass; asked once for each.
    :param dot: stands for the dots of the base's name. Where subclasses are put on subclasses, each module has another one.
    """

    def __init__(self, module: str, make: Callable[[type, str], type], dot: str = ":") -> None:
        self.module, self.dot = module, dot
        self._make = functools.cache(make)

    def name_of(self, base: str) -> str:
        """Return the name of the subclass.

        :param base: ``"package.module.Class"``.
        """
        return f"{self.module}.{base.replace('.', self.dot)}"

    def __call__(self, name: str) -> type:
        """Return the subclass of an attribute's name.

        :raises AttributeError: it names no base class.
        """
        if self.dot not in name:
            raise AttributeError(f"module {self.module!r} has no attribute {name!r}")
        base = name.replace(self.dot, ".")
        module, _, cls = base.rpartition(".")
        return self._make(getattr(import_module(module), cls), base)
