"""The documentation names everything that a plugin may implement, read or be refused for."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from accelplug import hooks
from accelplug.cli.entry import COMMANDS
from accelplug.hooks.capabilities import WORDS
from accelplug.hooks.registry import ALLOW_LIST, HOOKS
from accelplug.hosts.stats import Stats

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
CONTRACT = (ROOT / "docs/contract.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
VIEWS = (
    "BuildContext", "DrafterTraits", "DraftView", "CommitView", "Drafts", "DeviceView", "DeviceDrafts",
    "VerifierTraits", "VerifyView", "Verified", "PathView", "Choice", "ChainsView", "ChainsChoice",
    "GrammarSpec", "Vocabulary", "CompileLimits", "GrammarStatement",
)  # fmt: skip


def section(name):
    """Return the part of the reference whose heading names the class."""
    found = [part for part in re.split(r"\n###? ", REFERENCE) if f"`{name}`" in part.partition("\n")[0]]
    assert found, f"docs/hooks.md has no section for {name}"
    return found[0]


@pytest.mark.parametrize("hook", HOOKS.values())
def test_every_hook_is_in_the_reference(hook):
    assert f"`{hook}(register)`" in REFERENCE


@pytest.mark.parametrize("name", VIEWS)
def test_every_field_of_a_view_is_in_its_section(name):
    missing = [field.name for field in dataclasses.fields(getattr(hooks, name)) if f"`{field.name}`" not in section(name)]
    assert missing == []


def test_every_dataclass_of_the_contract_has_a_section_or_is_cold():
    cold = {"Entry", "Owner", "Registry", "Spec", "Technique"}
    assert {name for name in hooks.__all__ if dataclasses.is_dataclass(getattr(hooks, name))} == {*VIEWS, *cold}


@pytest.mark.parametrize("name", hooks.__all__)
def test_every_public_name_of_the_contract_is_in_the_reference(name):
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", REFERENCE)


def test_every_statistic_is_in_the_page_of_transformers():
    page = (ROOT / "docs/transformers.md").read_text(encoding="utf-8")
    public = [name for name in dir(Stats) if not name.startswith("_") and name not in {"count", "count_siblings", "as_dict"}]
    assert [name for name in public if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("word", "meaning"), WORDS.items())
def test_every_capability_is_in_the_contract(word, meaning):
    assert f"| `{word}` | {meaning} |" in CONTRACT


def test_every_hook_docstring_says_when_and_since_when():
    for hook in HOOKS.values():
        text = getattr(hooks.specs, hook).__doc__
        assert all(part in text for part in (":param register:", "When:", "Since: contract version"))


def test_no_field_and_no_method_of_the_contract_goes_without_a_meaning():
    assert [line for line in REFERENCE.splitlines() if line.endswith("|  |")] == []


@pytest.mark.parametrize("page", ["hooks", "refusals", "techniques", "seams"])
def test_a_written_page_is_what_the_source_says(page):
    done = subprocess.run([sys.executable, str(ROOT / f"docs/{page}.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_is_in_the_readme(command):
    assert f"accelplug {command}" in README


def test_the_allow_list_is_documented():
    assert ALLOW_LIST in README
    assert ALLOW_LIST in CONTRACT


PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def anchors(page):
    """Return what GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_lead_to_one(page):
    here = ROOT / page
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", here.read_text(encoding="utf-8"))
    assert [f"{to}#{name}" for to, name in links if name not in anchors(here.parent / to if to else here)] == []


def test_the_index_names_every_page_and_the_readme_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md" and f"({page.name})" not in index] == []
    assert "(docs/index.md)" in README


def test_the_pages_are_a_site(tmp_path):
    """Every page of the repository that another one leads to is one of the site, and so are the headings; in strict mode a warning ends it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("index.html")}
    names = {"index": ".", "README": "readme", "integration/testbed/README": "integration/testbed", "integration/gpu/README": "integration/gpu"}
    stems = [page.removeprefix("docs/").removesuffix(".md") for page in [*PAGES, "integration/testbed/README.md", "integration/gpu/README.md"]]
    assert {names.get(stem, stem) for stem in stems} == pages
    led = re.findall(r'href="([^"#:]+)', (tmp_path / "readme" / "index.html").read_text(encoding="utf-8"))
    assert "../transformers/" in led
    assert [to for to in led if to.endswith(".md")] == [], "links of the repository"
