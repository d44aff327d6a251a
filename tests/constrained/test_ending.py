"""What is seen to come to an end at sight, and what is left to be tried."""

from __future__ import annotations

import pytest

from accelplug import ConstraintError
from accelplug.constrained.finishing import check_ends
from accelplug.constrained.schema.document import Document
from accelplug.constrained.schema.ending import MOST_DEPTH, MOST_STEPS, plainly_ends

DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def chain(length):
    """Return a schema whose references lead on so many times."""
    names = {f"a{number}": {"$ref": f"#/$defs/a{number + 1}"} for number in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**names, f"a{length}": {"type": "integer"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/a"}}}}},
        {"$id": "urn:a", "anyOf": [{"$ref": "#/$defs/a"}, {"pattern": "^a"}, True], "$defs": {"a": {"not": {"if": {"const": 1}}}}},
        {"$schema": DRAFT_7, "$ref": "#/definitions/a", "not": {"$ref": "#"}, "definitions": {"a": {"items": {"$ref": "#"}}}},
        {"$schema": DRAFT_7, "additionalItems": {}, "items": True, "pattern": ""},
        chain(MOST_DEPTH - 2),
    ],
)
def test_what_plainly_ends_ends(schema):
    document = Document(schema, asserted=True)
    assert plainly_ends(document)
    check_ends(document)


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}},
        {"type": "string", "pattern": "("},
        {"$ref": "#/$defs/a", "$defs": {}},
    ],
)
def test_what_does_not_end_or_cannot_be_read_is_refused(schema):
    document = Document(schema, asserted=True)
    assert not plainly_ends(document)
    with pytest.raises(ConstraintError):
        check_ends(document)


@pytest.mark.parametrize(
    "schema",
    [
        chain(MOST_DEPTH),
        {"anyOf": [{"$ref": "#/$defs/a"}] * MOST_STEPS, "$defs": {"a": {}}},
        {"$ref": "#a", "$defs": {"a": {"$anchor": "a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$schema": DRAFT_7}}},
        {"unevaluatedProperties": {"$ref": "#/$defs/a"}, "$defs": {"a": {}}},
    ],
)
def test_what_is_not_seen_at_sight_is_tried(schema):
    document = Document(schema, asserted=True)
    assert not plainly_ends(document)
    check_ends(document)
