"""What xgrammar would take long to write out is tried in a process of its own, which is ended at the limit; what is ordinary is not."""

from __future__ import annotations

import json

import pytest
from spent import processor_seconds

from accelplug import ConstraintError
from accelplug.hooks import CompileLimits, GrammarSpec

pytest.importorskip("xgrammar")
pytest.importorskip("jsonschema")

from accelplug.constrained import auto, routing, worker
from accelplug.constrained.auto import Alone, Auto
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.unfolding import unfolds_far

LIMITS = CompileLimits(seconds=0.5)


def either(inner):
    return {"oneOf": [{"type": "object", "properties": {"a": inner, "b": inner}}, {"type": "array", "items": inner}]}


def written_out(depth):
    """Alternatives within alternatives: each level takes xgrammar eight times as long, seven of them most of ten seconds."""
    schema = {"type": "string"}
    for _ in range(depth):
        schema = either(schema)
    return schema


def by_reference(depth):
    """The same in a few lines."""
    levels = {f"level{n}": either({"$ref": f"#/$defs/level{n - 1}"}) for n in range(1, depth + 1)}
    return {"$ref": f"#/$defs/level{depth}", "$defs": {"level0": {"type": "string"}, **levels}}


def ended(engine, schema, limits=LIMITS):
    """Compile; return what was refused, empty where nothing was. Loading an engine counts against no limit."""
    began = processor_seconds()
    try:
        engine.compile(GrammarSpec("json_schema", json.dumps(schema)), bytes_only(), limits)
    except ConstraintError as exc:
        return str(exc)
    finally:
        assert processor_seconds() - began < 40
    return ""


def without_llguidance(monkeypatch, *names):
    for module in (auto, routing):
        monkeypatch.setattr(module, "installed", lambda name: name in names)
    return Auto()


def test_alternatives_within_alternatives_end_at_the_limit():
    """vllm-project/vllm#54003."""
    assert ended(Alone("xgrammar"), written_out(7)) == "the json_schema takes longer to compile than 0.5 s; simplify it, or raise seconds"


@pytest.mark.parametrize("depth", [7, 20])
@pytest.mark.parametrize("name", ["xgrammar", "outlines"])
def test_references_that_unfold_far_end(name, depth):
    """Either is right: a release that writes out what is referred to once compiles it."""
    pytest.importorskip({"outlines": "outlines_core"}.get(name, name))
    said = ended(Alone(name), by_reference(depth))
    assert "\n" not in said


def test_without_llguidance_auto_ends_at_the_limit_too(monkeypatch):
    engine = without_llguidance(monkeypatch, "xgrammar")
    assert "takes longer to compile than 0.5 s" in ended(engine, written_out(7))
    assert ended(engine, {"type": "integer"}) == ""


ORDINARY = [
    {"type": "object", "properties": {f"p{n}": {"type": "object", "properties": {"a": {"type": "string"}}} for n in range(100)}},
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}, "right": {"$ref": "#/$defs/tree"}}}}},
    by_reference(3),
    written_out(3),
    {"enum": [f"a word, number {n}" for n in range(1000)]},
    {"$ref": "#/no/where"},
]


@pytest.mark.parametrize("number", range(len(ORDINARY)))
def test_ordinary_schemas_are_compiled_here(monkeypatch, number):
    monkeypatch.setattr(worker, "_in_a_process", lambda *_: pytest.fail("a process was started"))
    assert ("refuses" in ended(Alone("xgrammar"), ORDINARY[number])) == (number == 5)


@pytest.mark.parametrize("way", ["$ref", "through a list", "in a structural tag", "a long chain"])
def test_however_it_is_written_it_is_noticed(way):
    schema = by_reference(20)
    if way == "through a list":
        levels = [{"type": "string"}]
        levels += [either({"$ref": f"#/x/{n}"}) for n in range(20)]
        schema = {"$ref": "#/x/20", "x": levels}
    if way == "a long chain":
        schema = {"$ref": "#/$defs/0", "$defs": {str(n): {"items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(5000)}}
    kind = "structural_tag" if way == "in a structural tag" else "json_schema"
    given = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}} if kind == "structural_tag" else schema
    assert unfolds_far(GrammarSpec(kind, json.dumps(given)))
