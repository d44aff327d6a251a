"""``accelplug tune``: which settings are tried, how they are given up, and the configuration that comes out of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import accelplug
from accelplug.cli.tune.command import toml
from accelplug.cli.tune.search import MOST, halves, halving, settings, values
from accelplug.cli.workload import selection


@pytest.mark.parametrize(
    ("default", "low", "high", "tried"),
    [(8, 1, 128, [8, 4, 16]), (1, 1, 16, [1, 2]), (16, 1, 16, [16, 8]), (2, None, None, [2, 1, 4]), (0, 0, 5, [0])],
)
def test_an_option_is_tried_at_half_once_and_twice_its_default(default, low, high, tried):
    assert values(default, low, high) == tried


def test_the_grid_begins_with_what_was_given_and_leaves_it_alone():
    assert settings("prompt_lookup(max_ngram=4, min_ngram=2)") == [
        "prompt_lookup(max_ngram=4, min_ngram=2)",
        "prompt_lookup(max_ngram=4, min_ngram=2, num_tokens=4)",
        "prompt_lookup(max_ngram=4, min_ngram=2, num_tokens=16)",
    ]
    every = settings("prompt_lookup")
    assert every[0] == "prompt_lookup"
    assert "prompt_lookup(num_tokens=16, max_ngram=8, min_ngram=1)" in every
    assert len(every) == len(set(every)) == 27


def test_a_grid_that_is_too_large_changes_one_option_at_a_time(monkeypatch):
    from accelplug.cli.tune import search

    monkeypatch.setattr(search, "MOST", 26)
    found = settings("prompt_lookup")
    assert len(found) == 7
    assert all(spelling.count("=") <= 1 for spelling in found)
    assert MOST == 27


def test_words_are_tried_and_what_may_be_remembered_of_others_is_not():
    found = settings("suffix")
    assert found[0] == "suffix"
    assert "suffix(shape='tree')" in found
    assert not any("scope" in spelling for spelling in found)
    assert not any("shape" in spelling for spelling in settings("suffix(shape='tree')")[1:] if "shape='tree'" not in spelling)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 27])
@pytest.mark.parametrize("num_prompts", [1, 3, 16])
def test_halving_finds_the_fastest_and_spends_more_prompts_on_fewer(count, num_prompts):
    def measure(left, prompts):
        assert 1 <= len(prompts) <= num_prompts
        return [float(abs(candidate - 2) * len(prompts)) for candidate in left]

    winner, rungs = halving(list(range(count)), list(range(num_prompts)), measure)
    assert winner == min(range(count), key=lambda candidate: abs(candidate - 2))
    assert [n for n, _ in rungs] == sorted((n for n, _ in rungs), reverse=True)
    assert [n for _, n in rungs] == sorted(n for _, n in rungs)
    assert count == 1 or rungs[-1] == (2, num_prompts), "the last two are measured on every prompt"


def test_both_halves_have_every_task_of_a_sorted_file():
    assert halves(["a", "a", "b", "b", "c"]) == (["a", "b", "c"], ["a", "b"])


DOCUMENT = {
    "model": "m", "x_plain": {"median": 2.0, "low": 1.5, "high": 2.5}, "prompts": {"judge": 3}, "dtype": "bfloat16", "machine": "here",
    "drafter": "prompt_lookup(num_tokens=16)", "verifier": "token_wise", "allow_lossy": False,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"allow_lossy": True}, {"drafter": 'mine(word="é\\n", path="a\\\\b")'}])
def test_what_is_written_is_what_is_read(tmp_path, changes):
    document = {**DOCUMENT, **changes}
    path = tmp_path / "accelplug.toml"
    path.write_text(toml(document), encoding="utf-8")
    found = accelplug.load_config(path)
    assert found == {key: document[key] for key in found}
    assert set(found) == {"drafter", "verifier"} | ({"allow_lossy"} if document["allow_lossy"] else set())
    text = path.read_text(encoding="utf-8")
    assert "2.00 x plain generation" in text
    assert "bfloat16, here" in text, "what it was measured in: another type has other costs"


@pytest.fixture
def selected(tmp_path):
    """What ``accelplug run`` selects with this configuration and these arguments."""

    def select(config, **arguments):
        given = {"drafter": None, "verifier": None, "allow_lossy": False, "config": None, **arguments}
        if config is not None:
            given["config"] = tmp_path / "accelplug.toml"
            given["config"].write_text(config)
        return tuple(selection(SimpleNamespace(**given)).values())

    return select


def test_the_command_line_overrules_the_configuration_and_that_the_defaults(selected):
    config = 'drafter = "prompt_lookup(num_tokens=3)"\nverifier = "greedy"\nallow_lossy = true\n'
    assert selected(None) == ("prompt_lookup", "token_wise", False)
    assert selected(config) == ("prompt_lookup(num_tokens=3)", "greedy", True)
    assert selected(config, drafter="prompt_lookup", verifier="token_wise") == ("prompt_lookup", "token_wise", True)
    assert selected(config, drafter="", verifier="") == ("", "", True), "an empty variable of a shell names nothing, and is refused as that"
    assert selected('[drafter]\nname = "prompt_lookup"\nnum_tokens = 3\n') == ("prompt_lookup(num_tokens=3)", "token_wise", False)
