"""Parts of a technique that are chosen like techniques: ``tree="top_k(width=8)"``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelplug._errors import OptionError
from accelplug.hooks.factories import load_factory
from accelplug.hooks.options import check_options
from accelplug.hooks.spelling import Spec, parse_spec


def build_part(who: str, given: object, offered: Mapping[str, str], method: str) -> Any:
    """Build a part from its spelling; an object made by hand is the part.

    :param who: the technique and its option, as errors should name them, e.g. ``draft_model: tree``.
    :param offered: name -> ``"package.module:Name"``.
    :param method: what an object made by hand must have.
    :raises OptionError: no such part, or not with such options.
    """
    if not isinstance(given, str | Mapping | Spec):
        if not callable(getattr(given, method, None)):
            raise OptionError(f"{who}={given!r:.60} has no {method}(...); choose one of {', '.join(offered)}, or give an object that has")
        return given
    spec = parse_spec(given)
    if spec.distribution or spec.name not in offered:
        raise OptionError(f"{who}={str(given)!r} is unknown; choose one of {', '.join(offered)}")
    factory = load_factory(f"{who} {spec.name!r}", offered[spec.name])
    check_options(f"{who} {spec.name!r}", factory, spec.options)
    return factory(**spec.options)
