"""The pages as a site, for ``mkdocs``: what ``mkdocs.yml`` asks before it builds.

Pages are written to be read in the repository. Those outside of this folder become pages of the site too; links to code become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
_OUTSIDE: Final = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "integration/testbed/README.md", "integration/gpu/README.md")
_LINK: Final = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def _address(path: str) -> str:
    """Return where a page of the repository is in the site, whose first page is the index of docs/."""
    return "readme.md" if path == "README.md" else path.removeprefix("docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    from mkdocs.structure.files import File

    for path in _OUTSIDE:
        files.append(File.generated(config, _address(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead the links of a page to the site's own."""
    here = page.file.src_uri
    path = next((path for path in _OUTSIDE if _address(path) == here), f"docs/{here}")

    def led(link: re.Match[str]) -> str:
        text, to, heading = link.groups(default="")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), to))
        if target.startswith("docs/") or target in _OUTSIDE:
            return f"[{text}]({posixpath.relpath(_address(target), posixpath.dirname(here) or '.')}{heading})"
        return text if (ROOT / target).exists() else link[0]

    return _LINK.sub(led, markdown)
