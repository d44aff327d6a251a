"""One grammar, compiled under limits of the operating system: the inside of `accelplug.constrained.worker`."""

from __future__ import annotations

import json
import sys

from accelplug._errors import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec


def main() -> int:
    """Compile what stands on stdin; 0: it can be done, 1: it was refused."""
    given = json.load(sys.stdin)
    spec = GrammarSpec(**given["spec"])
    _limit(given["megabytes"])
    from accelplug.constrained.engines.known import begin
    from accelplug.constrained.probes import bytes_only
    from accelplug.constrained.routing import route_other, route_schema
    from accelplug.constrained.schema.document import Document

    limits = CompileLimits(given["seconds"], given["megabytes"])
    try:
        if given["engine"] != "auto":
            matcher = begin(given["engine"], spec, bytes_only())()
        elif spec.kind == "json_schema":
            document = Document(spec.value(), asserted=spec.format == "assert")
            matcher = route_schema(document, spec, bytes_only(), limits).begin()
        else:
            matcher = route_other(spec, bytes_only()).begin()
        matcher.validate([34])
    except ConstraintError as exc:
        print(f"refused: {exc}")  # noqa: T201
        return 1
    return 0


def _limit(megabytes: int) -> None:
    """Bound the address space beyond what the process has mapped already."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + megabytes * 2**20, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main())
