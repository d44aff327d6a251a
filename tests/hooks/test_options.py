"""Options: three spellings that mean the same, and every way to get one wrong."""

from __future__ import annotations

import keyword
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelplug import OptionError
from accelplug.hooks import Spec, option, parse_spec
from accelplug.hooks.options import check_options, check_value, fields_of, per_request_options

WHO = "drafter 'made' (strange 2.0)"
names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
distributions = st.none() | st.from_regex(r"[a-z][a-z0-9-]{0,12}[a-z0-9]", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = scalars | st.lists(scalars, max_size=4)
keys = names.filter(lambda key: not keyword.iskeyword(key) and key != "name")


@dataclass(frozen=True)
class Made:
    size: int = option(8, ge=1, le=128, per_request=True, help="how many")
    rate: float = option(0.5, ge=0.0)
    top: float = option(0.5, le=1.0)
    word: str = "plain"
    flag: bool = False
    bag: object = None


@given(name=names, options=st.dictionaries(keys, values, max_size=4), distribution=distributions)
def test_the_three_spellings_mean_the_same(name, options, distribution):
    spec = Spec(name, options, distribution)
    qualified = f"{distribution}:{name}" if distribution else name
    assert parse_spec(str(spec)) == spec
    assert parse_spec({"name": qualified, **options}) == spec
    assert parse_spec(spec) is spec
    assert str(parse_spec(str(spec))) == str(spec)


@pytest.mark.parametrize("text", ["", "two words", "name(", "name)", "name(a=1) more", "3name", "name-with-hyphen", ":", "dist:", "(a=1)"])
def test_text_that_is_no_technique_is_refused_with_an_example(text):
    with pytest.raises(OptionError, match=r"cannot read the technique .*write it like 'prompt_lookup\(num_tokens=6\)'"):
        parse_spec(text)


@pytest.mark.parametrize("text", ["made(3)", "made(*a)", "made(**{'a': 1})"])
def test_options_without_a_name_are_refused(text):
    with pytest.raises(OptionError, match=r"written key=value|cannot read the options"):
        parse_spec(text)


@pytest.mark.parametrize("text", ["made(a=)", "made(a=b)", "made(a=1+)", "made(a=__import__('os'))"])
def test_values_are_literals_and_nothing_is_run(text):
    with pytest.raises(OptionError, match="cannot read the options in"):
        parse_spec(text)


@pytest.mark.parametrize("mapping", [{}, {"size": 1}, {"name": 3}])
def test_a_mapping_needs_a_name(mapping):
    with pytest.raises(OptionError, match="needs a 'name'"):
        parse_spec(mapping)


def test_a_misspelt_option_is_refused_with_the_nearest_and_all():
    with pytest.raises(OptionError) as caught:
        check_options(WHO, Made, {"sise": 3})
    assert str(caught.value) == f"{WHO} has no option 'sise'; did you mean 'size'? its options: size, rate, top, word, flag, bag"


WRONG_TYPES = {"size": [True, 1.0, "3", None], "rate": ["1", None, True], "word": [1, None], "flag": [0, 1, "yes"]}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, wrong in WRONG_TYPES.items() for value in wrong])
def test_a_value_of_another_type_is_refused(name, value):
    with pytest.raises(OptionError, match=rf"{name}={value!r} is a {type(value).__name__}, it takes"):
        check_options(WHO, Made, {name: value})


SIZES = "between 1 and 128"
OUT_OF_RANGE = [("size", 0, SIZES), ("size", 129, SIZES), ("rate", -0.1, "at least 0.0"), ("top", 2, "at most 1.0")]


@pytest.mark.parametrize(("name", "value", "bounds"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_the_range(name, value, bounds):
    with pytest.raises(OptionError, match=f"{name}=.* is out of range, it takes {bounds}"):
        check_options(WHO, Made, {name: value})


@pytest.mark.parametrize("name", ["rate", "top"])
def test_nan_is_out_of_every_range(name):
    with pytest.raises(OptionError, match="out of range"):
        check_options(WHO, Made, {name: float("nan")})


@given(st.integers(1, 128), st.floats(0, 1), st.text(), st.booleans(), values)
def test_every_value_in_range_is_taken(size, rate, word, flag, bag):
    options = {"size": size, "rate": rate, "word": word, "flag": flag, "bag": bag}
    check_options(WHO, Made, options)
    Made(**options)


def test_a_whole_number_is_a_float():
    check_value(WHO, "rate", 1, "float", {"ge": 0.0})
    check_value(WHO, "rate", 1, float, {"ge": 0.0})


def test_a_missing_option_is_named():
    def factory(path: str, size: int = 1):
        return path, size

    with pytest.raises(OptionError, match=r"needs path; write path=\.\.\."):
        check_options(WHO, factory, {"size": 2})


def test_a_factory_of_any_keywords_takes_any():
    def factory(**options):
        return options

    check_options(WHO, factory, {"whatever": object()})


def test_context_is_no_option():
    def factory(context, size: int = 1):
        return context, size

    assert list(fields_of(factory)) == ["size"]
    with pytest.raises(OptionError, match="no option 'context'"):
        check_options(WHO, factory, {"context": 1})


def test_per_request_options_carry_their_bounds():
    found = per_request_options(Made)
    assert list(found) == ["size"]
    assert (found["size"]["ge"], found["size"]["le"], found["size"]["help"]) == (1, 128, "how many")
