"""A configuration file: what it may say, and what is wrong with one."""

from __future__ import annotations

import pytest

import accelplug
from accelplug import OptionError


@pytest.fixture
def config(tmp_path):
    """Load a configuration of this text."""

    def load(text):
        path = tmp_path / "accelplug.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return accelplug.load_config(path)

    return load


def test_a_configuration_is_the_keyword_arguments_of_attach(config):
    assert config("") == {}
    assert config('\ufeffdrafter = "suffix"') == {"drafter": "suffix"}, "an editor's mark is no part of it"
    assert config('drafter = "prompt_lookup(num_tokens=6)"\nverifier = "greedy"\nallow_lossy = true\n') == {
        "drafter": "prompt_lookup(num_tokens=6)",
        "verifier": "greedy",
        "allow_lossy": True,
    }
    assert config('[drafter]\nname = "prompt_lookup"\nnum_tokens = 6\n') == {"drafter": {"name": "prompt_lookup", "num_tokens": 6}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('draftr = "x"', "has no setting 'draftr'; did you mean 'drafter'"),
        ("zzz = 1", "has no setting 'zzz'; its settings: drafter, verifier, allow_lossy"),
        ("drafter = 3", "drafter=3 is a int, it takes text or a table"),
        ("allow_lossy = 1", "allow_lossy=1 is a int, it takes true or false"),
        ("drafter = prompt_lookup", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
    ],
)
def test_what_is_wrong_with_one_is_said(config, text, reason):
    with pytest.raises(OptionError, match=reason):
        config(text)


def test_one_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"cannot read the configuration .*nowhere.toml \(FileNotFoundError\)"):
        accelplug.load_config(str(tmp_path / "nowhere.toml"))
    with pytest.raises(OptionError, match="IsADirectoryError"):
        accelplug.load_config(tmp_path)
