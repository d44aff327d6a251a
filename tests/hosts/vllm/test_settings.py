"""The settings: what is read, what is refused, and that nothing is built."""

from __future__ import annotations

import pytest

from accelplug import OptionError, UnknownTechniqueError
from accelplug.hosts.vllm.settings import read_settings


@pytest.mark.parametrize(
    ("given", "num_tokens"),
    [
        ({"drafter": "prompt_lookup"}, 8),
        ({"drafter": "prompt_lookup(num_tokens=6)"}, 6),
        ({"drafter": {"name": "prompt_lookup", "num_tokens": 5}, "verifier": "greedy"}, 5),
        ({"drafter": "accelplug:prompt_lookup(num_tokens=3)", "runner": "v1", "allow_lossy": False}, 3),
    ],
)
def test_draft_length_is_the_drafters_own(given: dict[str, object], num_tokens: int) -> None:
    assert read_settings(given).num_tokens == num_tokens


def test_verifier_behind_vllms_own_drafter() -> None:
    settings = read_settings({"verifier": "typical(epsilon=0.2)", "allow_lossy": True})
    assert (settings.drafter, str(settings.verifier), settings.allow_lossy) == (None, "typical(epsilon=0.2)", True)


@pytest.mark.parametrize(
    ("given", "grammar", "num_tokens", "drafts"),
    [
        ({"grammar": "auto"}, "auto", 0, False),
        ({"grammar": "vllm"}, "vllm", 0, False),
        ({"grammar": "auto", "verifier": "block"}, "auto", 0, False),
        ({"grammar": "accelplug:xgrammar", "num_tokens": 5, "runner": "v1"}, "accelplug:xgrammar", 5, True),
        ({"grammar": "auto", "drafter": "prompt_lookup"}, "auto", 8, True),
        ({"drafter": "prompt_lookup"}, "None", 8, True),
    ],
)
def test_grammars_alone_and_with_drafters(given: dict[str, object], grammar: str, num_tokens: int, *, drafts: bool) -> None:
    settings = read_settings(given)
    assert (str(settings.grammar), settings.num_tokens, settings.drafts) == (grammar, num_tokens, drafts)


@pytest.mark.parametrize("more", [{}, {"verifier": "block"}, {"grammar": "auto"}])
def test_length_of_vllms_own_drafts(more: dict[str, object]) -> None:
    assert read_settings({"length": "adaptive", **more}).length == "adaptive"
    assert read_settings({"verifier": "block"}).length == "fixed"


def test_defaults() -> None:
    settings = read_settings({"drafter": "prompt_lookup"})
    assert (str(settings.verifier), settings.allow_lossy, settings.runner, settings.audit) == ("token_wise", False, "auto", 0.0)
    assert read_settings({"drafter": "prompt_lookup", "audit": 0.01}).audit == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prompt_lookup", "accelplug's settings are a mapping"),
        ({}, "configured without a drafter"),
        ({"drafter": "prompt_lookup", "draftr": 1}, "did you mean 'drafter'?"),
        ({"drafter": "prompt_lookup", "allow_lossy": "yes"}, "it takes true or false"),
        ({"drafter": "prompt_lookup", "runner": "V2"}, "it takes auto, v1, v2"),
        ({"drafter": "prompt_lookup", "num_tokens": 4}, "write drafter 'prompt_lookup(num_tokens=4)'"),
        ({"drafter": "prompt_lookup(max_ngrams=3)"}, "did you mean 'max_ngram'?"),
        ({"drafter": "prompt_lookup(num_tokens=1000)"}, "is out of range"),
        ({"drafter": None}, "is no text or mapping"),
        ({"verifier": "block", "num_tokens": 3}, "num_tokens belongs to a drafter, and vLLM's own drafts here"),
        ({"verifier": "block", "runner": "v1"}, "runner belongs to a drafter"),
        ({"verifier": "block", "audit": 0.1}, "cannot be turned off; name a drafter"),
        ({"drafter": "prompt_lookup", "audit": 1.5}, "audit=1.5 is no share of the requests; it takes a number from 0 to 1"),
        ({"drafter": "prompt_lookup", "audit": True}, "is no share of the requests"),
        ({"drafter": "prompt_lookup", "audit": "1%"}, "is no share of the requests"),
        ({"grammar": "auto", "runner": "v1"}, "runner belongs to a drafter"),
        ({"grammar": "auto", "num_tokens": 0}, "num_tokens=0 is no draft length"),
        ({"grammar": "auto", "drafter": "prompt_lookup", "num_tokens": 4}, "write drafter 'prompt_lookup(num_tokens=4)'"),
        ({"grammar": "auto(speed=3)"}, "grammar 'auto'"),
        ({"grammar": 3}, "grammar 3 is no text or mapping"),
        ({"length": "long"}, "accelplug has no length 'long'; it takes fixed, adaptive"),
        ({"length": "adaptive", "num_tokens": 3}, "num_tokens belongs to a drafter, and vLLM's own drafts here"),
        ({"drafter": "suffix", "length": "adaptive"}, "length belongs to vLLM's own drafters, and accelplug drafts here"),
        ({"grammar": "auto", "num_tokens": 3, "length": "adaptive"}, "length belongs to vLLM's own drafters"),
    ],
)
def test_refused(given: object, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        read_settings(given)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_technique() -> None:
    with pytest.raises(UnknownTechniqueError, match="did you mean 'prompt_lookup'"):
        read_settings({"drafter": "prompt_lookups"})
    with pytest.raises(UnknownTechniqueError, match="did you mean 'xgrammar'"):
        read_settings({"grammar": "xgramar"})
