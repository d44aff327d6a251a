"""JSON Schemas out of packages, to be judged by ``accelplug schema``: they come with no licence of this project, so none is kept here. Run by hand.

The figures of docs/grammars.md are of these:

    pip download --no-deps -d DIR ansible-lint cfn-lint check-jsonschema cvelib cyclonedx-python-lib datamodel-code-generator dbt-core frictionless \\
        great_expectations jschon jupyterlab jupyterlab_server molecule nbformat openapi-spec-validator schemathesis singer-sdk validate-pyproject
    python integration/constrained/collect.py DIR > schemas.jsonl
    accelplug schema schemas.jsonl --walks 3 --json

Each schema is there once.
"""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 400_000  # bytes


def files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the JSON files of a wheel or a source archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if name.endswith((".json", ".schema")))
    else:
        with tarfile.open(archive) as source:
            yield from ((one.name, source.extractfile(one).read()) for one in source if one.isfile() and one.name.endswith((".json", ".schema")))


def is_schema(found: Any) -> bool:
    """Whether a document says that it is a schema, describes an object, or is CloudFormation's of a resource."""
    if not isinstance(found, dict) or "draft-03" in str(found.get("$schema")):
        return False
    describes = isinstance(found.get("properties"), dict) and (found.get("type") == "object" or "typeName" in found)
    return describes or "json-schema.org" in str(found.get("$schema"))


def main(folder: str) -> None:
    """Print a line for each schema."""
    seen = set[str]()
    for archive in sorted(Path(folder).iterdir()):
        for name, data in files(archive):
            try:
                found = json.loads(data) if len(data) <= LARGEST else None
            except ValueError:
                continue
            text = json.dumps(found, sort_keys=True)
            if is_schema(found) and text not in seen:
                seen.add(text)
                print(json.dumps({"name": f"{archive.name.partition('-')[0]}: {name}", "schema": found, "tests": []}))


if __name__ == "__main__":
    main(*sys.argv[1:])
