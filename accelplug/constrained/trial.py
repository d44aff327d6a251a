"""One grammar, compiled under limits of the operating system: the inside of `accelplug.constrained.worker`."""

from __future__ import annotations

import pickle
import signal
import sys

from accelplug._errors import ConstraintError
from accelplug.constrained.engines.known import begin, module_of
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.routing import route_schema
from accelplug.constrained.schema.document import Document
from accelplug.hooks import CompileLimits, GrammarSpec, Vocabulary


def main() -> int:
    """Compile what is given on stdin, and print what came of it for a vocabulary that was given too.

    :returns: 0: it can be done, 1: it was refused. The process is ended by a signal where it takes longer than the limit.
    """
    name, asked, vocabulary, seconds, megabytes = pickle.load(sys.stdin.buffer)
    begin("llguidance" if name == "auto" else name, GrammarSpec("regex", "a"), bytes_only())  # what is loaded counts against no limit
    _limit(megabytes)
    signal.setitimer(signal.ITIMER_REAL, seconds)  # whatever runs then, Python or not, the process ends
    try:
        if vocabulary is None:
            _try(name, GrammarSpec(**asked), CompileLimits(seconds, megabytes))
        else:
            sys.stdout.buffer.write(pickle.dumps(module_of(name).compiled(GrammarSpec(**asked), Vocabulary(*vocabulary))))
    except ConstraintError as exc:
        print(f"refused: {exc}")  # noqa: T201
        return 1
    return 0


def _try(name: str, spec: GrammarSpec, limits: CompileLimits) -> None:
    if name == "auto":
        document = Document(spec.value(), asserted=spec.format == "assert")
        matcher = route_schema(document, spec, bytes_only(), limits).begin()
    else:
        matcher = begin(name, spec, bytes_only())()
    matcher.validate([34])


def _limit(megabytes: int) -> None:
    """Bound the address space beyond what the process has mapped already."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + megabytes * 2**20, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main())
