"""The official JSON Schema test suite through the masks: nothing invalid is accepted, and what is decided by mask never gets less.

`tests/constrained/official_suite.json` holds the counts; ``python integration/constrained/test_official_suite.py`` writes them again.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from accelplug import ConstraintError
from accelplug.constrained.auto import Auto
from accelplug.constrained.engines.known import begin
from accelplug.constrained.probes import bytes_only
from accelplug.constrained.walking import legal_by_mask
from accelplug.hooks import CompileLimits, GrammarSpec

ROOT = Path(__file__).parents[2]
SUITE = ROOT.parent / "shared" / "data" / "json_schema_test_suite"
RATCHET = ROOT / "tests" / "constrained" / "official_suite.json"
DRAFTS = {"draft2020-12": "https://json-schema.org/draft/2020-12/schema", "draft7": "http://json-schema.org/draft-07/schema#"}
GENERAL = ("baseUriChange", "baseUriChangeFolder", "baseUriChangeFolderInSubschema", "nested")

pytestmark = pytest.mark.skipif(not SUITE.exists(), reason="the official test suite is not beside this repository, in ../shared/data")


def files():
    return [f"{draft}/{path.name}" for draft in DRAFTS for path in sorted((SUITE / draft).glob("*.json"))]


@cache
def engine():
    return Auto()


def judged(name):
    """Count the tests of one file by what decides them; in the suite `format` describes."""
    counts = Counter()
    for group in json.loads((SUITE / name).read_text()):
        schema = group["schema"]
        if isinstance(schema, dict):
            schema = bundled(schema, name.partition("/")[0])
        counts.update(best(schema, group["tests"]))
    return dict(sorted(counts.items()))


def bundled(schema, draft):
    """Name the draft, and put the documents of ``remotes/`` beside a schema that refers to any: nothing is fetched."""
    schema = {"$schema": DRAFTS[draft], **schema}
    if "localhost:1234" not in json.dumps(schema):
        return schema
    return {"$schema": DRAFTS[draft], "allOf": [schema], "definitions" if draft == "draft7" else "$defs": remotes(draft)}


@cache
def remotes(draft):
    """Return the documents that a draft's tests refer to, each with the address that it is known by."""
    found = {}
    for path in sorted((SUITE / "remotes").rglob("*.json")):
        place = path.relative_to(SUITE / "remotes").as_posix()
        document = json.loads(path.read_text())
        if place.partition("/")[0] in {draft, *GENERAL} or path.parent.name == "remotes":
            found[place] = {"$schema": DRAFTS[draft], "$id": f"http://localhost:1234/{place}", **document}
    return found


def best(schema, tests, format="annotate"):
    """Count the tests of one schema by what decides them, in any order of properties where a valid value needs that."""
    found = None
    for order in ("declared", "any"):
        found = _counted(schema, tests, order, format)
        if not found["valid refused"]:
            break
    return found


def _counted(schema, tests, order, format):
    counts = Counter()
    try:
        grammar = engine().compile(
            GrammarSpec("json_schema", json.dumps(schema), format=format, order=order), bytes_only(), CompileLimits()
        )
    except ConstraintError as exc:
        for test in tests:
            counts["mask" if "no value satisfies" in str(exc) and not test["valid"] else "refused"] += 1
        return counts
    for test in tests:
        text = json.dumps(test["data"], ensure_ascii=False)
        by_mask = legal_by_mask(grammar.matcher(), text, bytes_only())
        if by_mask == test["valid"]:
            counts["mask"] += 1
        elif test["valid"]:
            counts["valid refused"] += 1
        else:
            counts["wrong" if grammar.check(text) is None else "check"] += 1
    return counts


def alone(name, engine_name):
    """Count the tests that one engine decides right by its mask as it is."""
    right = 0
    for group in json.loads((SUITE / name).read_text()):
        try:
            new = begin(engine_name, GrammarSpec("json_schema", json.dumps(group["schema"])), bytes_only())
        except ConstraintError:
            continue
        right += sum(
            legal_by_mask(new(), json.dumps(test["data"], ensure_ascii=False), bytes_only()) == test["valid"] for test in group["tests"]
        )
    return right


@pytest.mark.parametrize("name", files() if SUITE.exists() else [])
def test_no_file_gets_worse(name):
    pytest.importorskip("llguidance")
    found, before = judged(name), json.loads(RATCHET.read_text())["files"][name]
    assert found.get("wrong", 0) == 0
    assert found.get("mask", 0) >= before.get("mask", 0)
    assert found.get("valid refused", 0) <= before.get("valid refused", 0)
    assert sum(found.values()) == sum(before.values())


def test_more_is_decided_than_by_an_engine_alone():
    totals = json.loads(RATCHET.read_text())["totals"]
    assert totals["mask"] > max(totals["alone"].values())
    assert totals["alone"]["llguidance"] == sum(alone(name, "llguidance") for name in files())


@pytest.mark.parametrize("name", files() if SUITE.exists() else [])
def test_nothing_wrong_passes_within_a_tag(name):
    """xgrammar's mask with the final check: what the statement calls enforced is, and no valid value that the mask lets through is called wrong."""
    pytest.importorskip("xgrammar")
    for group in json.loads((SUITE / name).read_text()):
        schema = group["schema"]
        if isinstance(schema, dict):
            schema = bundled(schema, name.partition("/")[0])
        tag = {"type": "tag", "begin": "<a>", "content": {"type": "json_schema", "json_schema": schema}, "end": "</a>"}
        spec = GrammarSpec.of({"structural_tag": {"type": "structural_tag", "format": tag}, "format": "annotate"})
        try:
            grammar = engine().compile(spec, bytes_only(), CompileLimits())
        except ConstraintError:
            continue
        for test in group["tests"]:
            text = f"<a>{json.dumps(test['data'], ensure_ascii=False)}</a>"
            if legal_by_mask(grammar.matcher(), text, bytes_only()):
                assert (grammar.check(text) is None) == test["valid"], (group["description"], test["description"])


if __name__ == "__main__":
    if not SUITE.exists():
        sys.exit(f"{SUITE} is not there")
    found = {name: judged(name) for name in files()}
    totals = sum((Counter(counts) for counts in found.values()), Counter())
    engines = {name: sum(alone(file, name) for file in files()) for name in ("llguidance", "xgrammar")}
    RATCHET.write_text(json.dumps({"files": found, "totals": {**totals, "alone": engines}}, indent=1) + "\n")
    print(totals, engines)
