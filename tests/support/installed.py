"""Install a distribution the way importlib.metadata sees one: a module and a dist-info folder on the path."""

from __future__ import annotations

import textwrap
from pathlib import Path


def install(
    site: Path, distribution: str, source: str, *, version: str = "1.0", plugin: str | None = None, module: str | None = None
) -> str:
    """Write `source` as an importable module into `site`, with an entry point of the group ``accelplug``.

    :param plugin: the entry point's name; the distribution's by default.
    :param module: the module the entry point loads; named after the distribution by default.
    :returns: the module's name.
    """
    module = module or distribution.replace("-", "_")
    (site / f"{module}.py").write_text(textwrap.dedent(source))
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[accelplug]\n{plugin or distribution} = {module}\n")
    return module


def listed(*sites: Path) -> str:
    """Return the distributions that these folders hold, as ``ACCELPLUG_PLUGINS`` lists what to load."""
    return ",".join(info.name.partition("-")[0] for site in sites for info in sorted(site.glob("*.dist-info")))


ECHO = """
    import accelplug

    class Echo:
        def propose_one(self, tokens, budget):
            return tokens[-1:]

    @accelplug.hookimpl
    def register_drafters(register):
        register("echo", Echo)
"""
"""The smallest drafter: it guesses that the last token comes again."""
