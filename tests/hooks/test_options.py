"""Options: three spellings that mean the same, and every way to get one wrong."""

from __future__ import annotations

import functools
import keyword
from dataclasses import dataclass
from typing import Literal, Optional, Union

import pytest
from hypothesis import example, given, settings
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


@example(name="fusion", options={"sources": ["token_recycling(num_nodes=32)"] * 6, "path": "/" + "folder/" * 40}, distribution=None)
@settings(deadline=None)
@given(name=names, options=st.dictionaries(keys, values, max_size=4), distribution=distributions)
def test_the_three_spellings_mean_the_same(name, options, distribution):
    spec = Spec(name, options, distribution)
    qualified = f"{distribution}:{name}" if distribution else name
    assert parse_spec(str(spec)) == spec
    assert parse_spec({"name": qualified, **options}) == spec
    assert parse_spec(spec) is spec
    assert str(parse_spec(str(spec))) == str(spec)


def test_an_object_inside_options_is_written_short():
    class Model:
        def __repr__(self):
            return "Model(\n" + "layer\n" * 99 + ")"

    text = str(Spec("fusion", {"sources": ("suffix", {"name": "draft_model", "model": Model()})}))
    assert text.startswith("fusion(sources=('suffix', {'name': 'draft_model', 'model': Model( layer layer")
    assert "\n" not in text
    assert len(text) < 200



def test_an_object_is_shortened_in_listings():
    assert len(str(Spec("draft_model", {"model": type("Huge", (), {"__repr__": lambda _: "layer " * 900})()}))) < 150


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


UNREADABLE = {
    "two techniques": ("x(a=1), y(b=2)", r"'x\(a=1\), y\(b=2\)' is more than one technique; write one"),
    "a sum": ("x()+f()", "is more than one technique"),
    "options twice": ("x(a=1)(b=2)", "is more than one technique"),
    "an option twice": ("x(n=1, m=2, n=3)", r"option 'n' is given twice in 'x\(n=1, m=2, n=3\)'"),
    "a key that cannot be one": ("x(a={[]: 1})", r"cannot read the options in 'x\(a=\{\[\]: 1\}\)'"),
    "bytes": (b"x", "is written as text or a mapping, got b'x'"),
    "nothing": (None, "is written as text or a mapping, got None"),
    "a key that is no text": ({"name": "x", 3: 4}, r"named by text, got 3 in \{'name': 'x', 3: 4\}"),
    "options in two places": ({"name": "x(a=1)", "b": 2}, r"the name 'x\(a=1\)' carries options; in a mapping they stand beside"),
}


@pytest.mark.parametrize(("given", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_mean_one_technique_is_refused(given, reason):
    with pytest.raises(OptionError, match=reason):
        parse_spec(given)


@pytest.mark.parametrize("text", ["x(a=" + "(" * 300 + ")" * 300 + ")", "x(a=" + "-" * 100_000 + "1)", "x y" * 1000, "x(" + "a" * 5000 + ")"])
def test_a_long_text_is_refused_in_a_short_sentence(text):
    with pytest.raises(OptionError) as caught:
        parse_spec(text)
    assert len(str(caught.value)) < 300


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


@settings(deadline=None)
@given(st.integers(1, 128), st.floats(0, 1), st.text(), st.booleans(), values)
def test_every_value_in_range_is_taken(size, rate, word, flag, bag):
    options = {"size": size, "rate": rate, "word": word, "flag": flag, "bag": bag}
    check_options(WHO, Made, options)
    Made(**options)


def test_a_whole_number_is_a_float():
    check_value(WHO, "rate", 1, "float", {"ge": 0.0})
    check_value(WHO, "rate", 1, float, {"ge": 0.0})


SIZE = {"ge": 1, "le": 8}


@pytest.mark.parametrize("annotation", [int | None, Optional[int], Union[int, None], "int | None", "None|int", "Optional[int]", "typing.Optional[int]"])  # noqa: UP007, UP045
def test_an_optional_scalar_is_checked_like_a_scalar(annotation):
    for value in (None, 1, 8):
        check_value(WHO, "size", value, annotation, SIZE)
    for value in ("x", [1], True, 2.0):
        with pytest.raises(OptionError, match=r"is a (str|list|bool|float), it takes (int or None|None or int)$"):
            check_value(WHO, "size", value, annotation, SIZE)
    for value in (0, 9):
        with pytest.raises(OptionError, match="is out of range, it takes between 1 and 8"):
            check_value(WHO, "size", value, annotation, SIZE)


@pytest.mark.parametrize("annotation", [object, "object", "int | Path", list[int], "Anything"])
def test_a_bound_holds_numbers_to_it_whatever_the_annotation(annotation):
    check_value(WHO, "size", 2.5, annotation, SIZE)
    for value in ("x", [1], True):
        with pytest.raises(OptionError, match="it takes a number"):
            check_value(WHO, "size", value, annotation, SIZE)


def test_a_union_with_another_type_admits_anything():
    check_value(WHO, "size", [1], "int | list[int]", {})
    check_value(WHO, "size", [1], int | list[int], {})


def test_a_partial_keeps_the_bounds_of_what_it_calls():
    made = functools.partial(functools.partial(Made, rate=1.0), flag=True)
    with pytest.raises(OptionError, match="size=0 is out of range"):
        check_options(WHO, made, {"size": 0})
    assert list(per_request_options(made)) == ["size"]


def test_a_missing_option_is_named():
    def factory(path: str, size: int = 1):
        return path, size

    with pytest.raises(OptionError, match=r"needs path; write path=\.\.\."):
        check_options(WHO, factory, {"size": 2})


def test_a_factory_of_any_keywords_takes_any():
    def factory(**options):
        return options

    check_options(WHO, factory, {"whatever": object()})


def test_a_factory_of_any_keywords_checks_those_it_names():
    def factory(context, path: str, size: int = 1, *rest, **options):
        return context, path, size, rest, options

    assert list(fields_of(factory)) == ["path", "size"]
    check_options(WHO, factory, {"path": "here", "whatever": 3})
    for options, reason in [({"path": 3}, "path=3 is a int"), ({"size": 2}, "needs path"), ({"path": "", "context": 1}, "no option 'context'")]:
        with pytest.raises(OptionError, match=reason):
            check_options(WHO, factory, options)


def test_a_literal_lists_its_values():
    def written(shape: Literal["chain", "tree"] = "chain"):
        return shape

    def meant(shape: Literal["chain", "tree"] = "chain"):
        return shape

    meant.__annotations__["shape"] = Literal["chain", "tree"]  # as without the future import
    for factory in (written, meant):
        check_options(WHO, factory, {"shape": "tree"})
        with pytest.raises(OptionError, match="shape='bush' is none of its values, it takes 'chain' or 'tree'"):
            check_options(WHO, factory, {"shape": "bush"})


def test_a_literal_of_names_admits_what_the_factory_does():
    """Only its own module knows what they stand for."""

    def written(shape="chain"):
        return shape

    written.__annotations__["shape"] = "Literal[CHAIN, 'tree']"
    check_options(WHO, written, {"shape": "bush"})


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
