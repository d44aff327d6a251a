"""Seams: the places of an engine that a host relies on, each looked at before it is used.

An engine may move a seam in any release. A moved seam refuses with its name and the tested releases; it is never
half-used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.version import Version

from accelplug._errors import HostError


@dataclass(frozen=True, slots=True)
class Seam:
    """One attribute of an engine, and the parameters of it that the host passes or reads.

    :param path: ``"package.module:Name.attribute"``.
    :param parameters: names that its signature must have; empty where only its existence matters.
    :param used_for: what stops working without it, for people.
    :param since: the first release in which it is used; nothing of an older one is expected to have it.
    :param before: the first release in which it no longer is.
    """

    path: str
    parameters: tuple[str, ...] = ()
    used_for: str = ""
    since: str = "0"
    before: str | None = None

    def is_used_in(self, version: str) -> bool:
        """Whether a release is among those in which it is used."""
        return Version(self.since) <= Version(version) and (self.before is None or Version(version) < Version(self.before))

    def resolve(self) -> Any:
        """Return the attribute.

        :raises HostError: it moved, its module fails to import, or its signature lost a parameter.
        """
        module, _, attributes = self.path.partition(":")
        try:
            found: Any = import_module(module)
            for attribute in attributes.split("."):
                found = getattr(found, attribute)
        except Exception as exc:  # an engine that was built for another torch fails to import with whatever it likes
            raise HostError(f"seam {self.path} is gone ({_reason(exc)}); {self.used_for} needs it") from exc
        if self.parameters:
            self._check_signature(found)
        return found

    def _check_signature(self, found: Callable[..., object]) -> None:
        try:
            have = inspect.signature(found).parameters
        except (TypeError, ValueError) as exc:
            raise HostError(f"seam {self.path} is no longer a function whose parameters can be read; {self.used_for} needs it") from exc
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in have.values())
        lost = [] if takes_any else [name for name in self.parameters if name not in have]
        if lost:
            raise HostError(f"seam {self.path} no longer takes {', '.join(lost)}; {self.used_for} needs it")

    def problem(self) -> str | None:
        """Return what is wrong with the seam, or None if it is alive."""
        try:
            self.resolve()
        except HostError as exc:
            return str(exc)
        return None


def _location(package: str) -> Path | None:
    """Return the folder from which a package is imported, or None; imports nothing."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):  # what stands in sys.modules was not imported
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent


def _reason(exc: Exception) -> str:
    return f"{type(exc).__name__}: {' '.join(str(exc).split())}"


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine's distributions, the releases tested, and the seams used.

    :param partly: below which release only a part runs, and which part.
    :param releases: what is known of each release, for people: the releases, and a sentence without its end.
    """

    name: str
    distributions: tuple[str, ...]
    tested_from: str
    tested_below: str
    seams: tuple[Seam, ...]
    partly: tuple[str, str] | None = None
    releases: tuple[tuple[str, str], ...] = ()

    def version(self) -> str | None:
        """Return the version that an import finds, or None: metadata of another distribution may lie beside it, or a stand-in's."""
        found = [one for name in self.distributions for one in metadata.distributions(name=name)]
        code = _location(self.name)
        own = [one for one in found if code is not None and Path(str(one.locate_file(self.name))).resolve() == code]
        return next((one.version for one in own or found), None)

    @property
    def tested_range(self) -> str:
        """The releases tested, as people write ranges."""
        return f">={self.tested_from},<{self.tested_below}"

    def is_tested(self) -> bool:
        """Whether the installed release is in the tested range."""
        version = self.version()
        return version is not None and Version(self.tested_from) <= Version(version) < Version(self.tested_below)

    def seams_here(self) -> tuple[Seam, ...]:
        """Return the seams that are used in the installed release; none where there is none."""
        version = self.version()
        return () if version is None else tuple(seam for seam in self.seams if seam.is_used_in(version))

    def restriction(self) -> str | None:
        """Return which part alone runs on the installed release; None where all does."""
        version = self.version()
        return None if version is None or self.partly is None or Version(version) >= Version(self.partly[0]) else self.partly[1]

    def require(self) -> None:
        """Refuse a missing or untested release, or a moved seam.

        :raises HostError: naming the release found, the tested range, and what to install.
        """
        version = self.version()
        if version is None:
            raise HostError(f"{self.name} is not installed; pip install 'accelplug[{self.name}]'")
        if not self.is_tested():
            wanted = f"{self.distributions[0]}{self.tested_range}"
            raise HostError(f"{self.name} {version} is outside the tested range {self.tested_range}; pip install '{wanted}'")
        problems = [problem for seam in self.seams_here() if (problem := seam.problem())]
        if problems:
            raise HostError(f"{self.name} {version}: " + "; ".join(problems) + f"; tested range: {self.tested_range}")
