"""``accelplug plugins`` and ``accelplug check``: what they list, and when they say no."""

from __future__ import annotations

import dataclasses
import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

import accelplug
from accelplug.cli import check, plugins
from accelplug.cli.entry import main
from accelplug.hooks import VerifierTraits, option
from accelplug.hosts.seams import Engine, Seam


@pytest.fixture
def listed(monkeypatch):
    """Collect the listing of a registry with these plugins."""

    def collect(*offered):
        registry = accelplug.load_registry(offered, entry_points=False)
        monkeypatch.setattr(plugins, "registry", lambda: registry)
        return plugins.collect(SimpleNamespace())

    return collect


class Verifying:
    def __init__(self, factory):
        self.factory = factory

    @accelplug.hookimpl
    def register_verifiers(self, register):
        register("theirs", self.factory)


def row(document, name):
    (found,) = [row for row in document["plugins"] if row["name"] == name]
    return found


def test_a_built_in_says_who_how_exact_where_and_with_which_options(listed):
    found = row(listed(), "prompt_lookup")
    assert (found["kind"], found["distribution"], found["version"]) == ("drafter", "accelplug", accelplug.__version__)
    assert (found["exactness"], found["hosts"]) == ("decided by the verifier", "transformers, vllm")
    assert plugins.option_text(found["options"][0]) == "num_tokens=8 (1..128, per request)"


@pytest.mark.parametrize(
    ("lossless", "words"), [("sampling", "lossless for sampling and greedy"), ("greedy", "lossless for greedy only"), (None, "lossy")]
)
def test_a_verifier_is_listed_with_what_its_traits_promise(listed, lossless, words):
    factory = type("Theirs", (), {"traits": VerifierTraits(lossless=lossless)})
    assert row(listed(Verifying(factory)), "theirs")["exactness"] == words


def test_what_a_third_party_does_not_say_is_unknown(listed):
    found = row(listed(Verifying(lambda: None)), "theirs")
    assert (found["exactness"], found["problem"]) == ("unknown", None)


@pytest.mark.parametrize("factory", ["accelplug_nowhere:Rule", 3, int], ids=["no such path", "not callable", "no signature"])
def test_a_technique_that_cannot_be_looked_at_is_listed_with_the_reason(listed, factory):
    document = listed(Verifying(factory))
    assert row(document, "theirs")["problem"]
    assert row(document, "token_wise")["problem"] is None


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (option(ge=1), "size=... (1..)"),
        (option(2.5, le=3), "size=2.5 (..3)"),
        (option("a"), "size='a'"),
        (option(1, per_request=True), "size=1 (per request)"),
    ],
)
def test_options_are_written_with_default_and_bounds(listed, declared, text):
    from dataclasses import make_dataclass

    found = row(listed(Verifying(make_dataclass("Theirs", [("size", object, declared)]))), "theirs")
    assert [plugins.option_text(option) for option in found["options"]] == [text]


def test_every_built_in_says_what_listings_show(listed):
    for found in listed()["plugins"]:
        assert "unknown" not in (found["exactness"], found["output"], found["hosts"]), found["name"]
        assert all(option["help"] for option in found["options"]), found["name"]


def test_both_forms_of_the_listing_hold_the_same_techniques(capfd):
    assert main(["plugins", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert main(["plugins"]) == 0
    shown = capfd.readouterr().out
    assert all(found["name"] in shown for found in document["plugins"])


def shown(width, show, document):
    written = io.StringIO()
    show(document, Console(highlight=False, width=width, file=written))
    assert max(len(line) for line in written.getvalue().splitlines() if "tested range" not in line) <= width
    assert "…" not in written.getvalue()  # by which rich says that it left something out
    return "".join(written.getvalue().split())


@pytest.mark.parametrize("width", [40, 60, 80, 119])
def test_a_terminal_too_narrow_for_the_table_gets_all_of_it_as_a_list(width, listed):
    document = listed()
    text = shown(width, plugins.show, document)
    for found in document["plugins"]:
        assert all("".join(plugins.option_text(option).split()) in text for option in found["options"])


@pytest.mark.parametrize("width", [120, 200])
def test_the_table_leaves_nothing_out_where_there_is_room(width, listed):
    shown(width, plugins.show, listed())


ALIVE = Seam("json:loads", ("s",), "reading")
DEAD = Seam("json:reads", (), "reading more")


def engine(*seams, distribution="pluggy", low="1.0", below="100"):
    return Engine("made", (distribution,), low, below, seams)


def test_a_tested_release_with_living_seams_is_fine():
    found = check.look("made", engine(ALIVE))
    assert (found["ok"], found["tested"], check.verdict(found)) == (True, True, "tested; 1 of 1 seams alive")


def test_a_dead_seam_is_bad_news_with_what_it_was_for():
    found = check.look("made", engine(ALIVE, DEAD))
    assert (found["ok"], check.verdict(found)) == (False, "tested; 1 of 2 seams alive")
    assert "reading more needs it" in found["seams"][1]["problem"]


def test_long_paths_of_seams_are_wrapped_and_not_cut():
    found = check.look("made", engine(Seam("json.decoder:JSONDecoder.raw_decode", ("s", "idx"), "reading")))
    text = shown(40, check.show, {"accelplug": "1", "python": "3", "hosts": [found]})
    assert "".join(text.rpartition("┩")[2].replace("│alive│reading│", "").split("│")).startswith("json.decoder:JSONDecoder.raw_decode")


def test_an_untested_release_is_bad_news():
    found = check.look("made", engine(ALIVE, below="1.1"))
    assert not found["ok"]
    assert check.verdict(found).startswith("NOT tested: install one in >=1.0,<1.1")


def test_a_release_of_which_only_a_part_runs_says_so_and_its_other_seams_are_not_looked_at():
    later = dataclasses.replace(DEAD, since="99")
    found = check.look("made", dataclasses.replace(engine(ALIVE, later), partly=("99", "reading alone")))
    assert (found["ok"], found["only"], check.verdict(found)) == (True, "reading alone", "tested: reading alone; 1 of 1 seams alive")
    found = check.look("made", dataclasses.replace(engine(ALIVE, dataclasses.replace(DEAD, since="1.0")), partly=("1.0", "reading alone")))
    assert (found["ok"], found["only"], check.verdict(found)) == (False, None, "tested; 1 of 2 seams alive")


def test_what_is_known_of_each_release_is_said(monkeypatch, capfd):
    made = dataclasses.replace(engine(ALIVE), releases=(("1.0 to 1.4", "reading alone"), ("2.0", "all of it")))
    monkeypatch.setattr(check, "engine_of", lambda host: made)
    assert main(["check", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["hosts"][0]["releases"] == {"1.0 to 1.4": "reading alone", "2.0": "all of it"}
    assert main(["check"]) == 0
    assert "\n  1.0 to 1.4: reading alone\n  2.0: all of it\n" in capfd.readouterr().out


def test_an_engine_that_is_not_installed_is_fine_and_is_not_looked_at():
    found = check.look("made", engine(DEAD, distribution="accelplug-no-such-engine"))
    assert (found["ok"], found["seams"], check.verdict(found)) == (True, [], "not installed")


def test_an_engine_whose_import_fails_is_a_dead_seam(tmp_path, monkeypatch):
    (tmp_path / "accelplug_fails.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    found = check.look("made", engine(Seam("accelplug_fails:thing", (), "everything")))
    assert "operator torchvision::nms does not exist" in found["seams"][0]["problem"]
    assert not found["ok"]


@pytest.mark.parametrize("host", check.HOSTS)
def test_every_host_describes_its_engine(host):
    described = check.engine_of(host)
    assert described.name == host
    assert described.seams
    assert all(seam.used_for for seam in described.seams)


def test_the_exit_status_is_the_verdict(monkeypatch, capfd):
    monkeypatch.setattr(check, "engine_of", lambda host: engine(DEAD if host == "vllm" else ALIVE))
    assert main(["check", "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["ok"] is False
    assert main(["check"]) == 1
    assert "1 of 1 seams alive" in capfd.readouterr().out
