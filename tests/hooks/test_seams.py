"""Seams of an engine that is broken, in every way in which an import or a signature can be."""

from __future__ import annotations

import pytest

from accelplug import HostError
from accelplug.hosts.seams import Engine, Seam

FAILING = {
    "a missing module": ("import accelplug_nowhere", "thing", "ModuleNotFoundError: No module named 'accelplug_nowhere'"),
    "a missing attribute": ("", "thing", "AttributeError: .*thing"),
    "an operator that is not there": (
        "raise RuntimeError('operator torchvision::nms\\n does not exist')",
        "thing",
        "RuntimeError: operator torchvision::nms does not exist",
    ),
    "a library that does not load": ("raise OSError('libcudart.so.13')", "thing", "OSError: libcudart.so.13"),
    "a constant where a function was": ("thing = 3", "thing", "no longer a function whose parameters can be read"),
    "a function with other parameters": ("def thing(other): pass", "thing", "no longer takes wanted"),
}


@pytest.mark.parametrize(("source", "name", "reason"), FAILING.values(), ids=FAILING.keys())
def test_a_seam_that_cannot_be_used_says_so_and_what_for(install, source, name, reason):
    seam = Seam(f"{install('engine-made', source)}:{name}", ("wanted",), "everything")
    with pytest.raises(HostError, match=rf"^seam engine_made:thing .*{reason}.*; everything needs it$") as caught:
        seam.resolve()
    assert seam.problem() == str(caught.value)
    with pytest.raises(HostError, match=rf"^made .*{reason}.*; tested range: >=1\.0,<100$"):
        Engine("made", ("pluggy",), "1.0", "100", (seam,)).require()


def test_a_living_seam_is_what_it_names(install):
    seam = Seam(f"{install('engine-made', 'def thing(wanted): return wanted')}:thing", ("wanted",), "everything")
    assert seam.resolve()(3) == 3
    assert seam.problem() is None
