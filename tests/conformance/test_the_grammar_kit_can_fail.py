"""Every check of GrammarConformance fails for an engine that breaks what it is about, and passes for the right one beside it."""

from __future__ import annotations

import pytest
from grammars import Listing, ListMatcher

from accelplug.hooks import GrammarStatement
from accelplug.testing import GrammarConformance

EXAMPLES = [({"choice": ["yes", "no"]}, ["yes", "no"], ["ye", "x"])]


class Engine(Listing):
    """Right, but for the matchers or the statement that a test gives it."""

    def __init__(self, made=ListMatcher, **statement):
        self.made, self.statement = made, statement

    def compile(self, spec, vocabulary, limits):
        compiled = super().compile(spec, vocabulary, limits)
        compiled.matcher = lambda: self.made(compiled)
        vars(compiled).update(self.statement)
        return compiled


class LetsAnythingOut(ListMatcher):
    def legal(self, token, written):
        return super().legal(token, written) or (token == 256 and written == [ord("y"), ord("e")])


class LeavesTheRowAsItWas(ListMatcher):
    def fill(self, row):
        before = row.clone()
        super().fill(row)
        row |= before


class ForgetsOneTooMany(ListMatcher):
    def rollback(self, count):
        del self.tokens[-min(count + 1, len(self.tokens)) :]


class GoesOnBehindTheEnd(ListMatcher):
    def legal(self, token, written):
        ends = [before for before in written if before not in self.vocabulary.eos_token_ids]
        return super().legal(token, ends)


class ForcesTheWrongToken(ListMatcher):
    def forced(self):
        return [0]


class MovesWhenAsked(ListMatcher):
    def forced(self):
        found = super().forced()
        self.accept(found)
        return found


class Shared(ListMatcher):
    everybody: list[int] = []  # noqa: RUF012  that is the mistake

    def __init__(self, compiled):
        super().__init__(compiled)
        self.everybody.clear()
        self.tokens = self.everybody


class Fails(Engine):
    def compile(self, spec, vocabulary, limits):
        return super().compile(spec, vocabulary, limits) if spec.kind == "choice" else spec.nothing


WRONG = [
    ("test_texts_are_told_apart", Engine(LetsAnythingOut), "allows 'ye'"),
    ("test_a_mask_is_what_accept_takes", Engine(LeavesTheRowAsItWas), "of several minds|past the vocabulary"),
    ("test_a_mask_is_what_accept_takes", Engine(ForgetsOneTooMany), "of several minds|make rollback exact"),
    ("test_nothing_follows_an_end", Engine(GoesOnBehindTheEnd), "goes on behind an EOS"),
    ("test_nothing_follows_an_end", Engine(ForgetsOneTooMany), "make rollback exact across it"),
    ("test_forced_tokens_are_legal_and_asking_moves_nothing", Engine(ForcesTheWrongToken), "forces \\[0\\]"),
    ("test_forced_tokens_are_legal_and_asking_moves_nothing", Engine(MovesWhenAsked), "moves when it is asked|forces"),
    ("test_matchers_share_nothing", Engine(Shared), "moves one matcher by another"),
    ("test_every_kind_is_compiled_or_refused", Fails(), "fails on a json_schema with AttributeError"),
    ("test_every_kind_is_compiled_or_refused", Engine(statement="choices"), "has no statement for a choice"),
    ("test_every_kind_is_compiled_or_refused", Engine(statement=GrammarStatement("list", refused=("choice",))), "raise ConstraintError instead"),
]
CHECKS = [name for name in vars(GrammarConformance) if name.startswith("test_")]


def run(check, engine):
    kit = type("Kit", (GrammarConformance,), {"technique": engine, "examples": EXAMPLES})()
    getattr(kit, check)()


@pytest.mark.parametrize(("check", "engine", "match"), WRONG)
def test_a_wrong_engine_fails(check, engine, match):
    with pytest.raises(AssertionError, match=match):
        run(check, engine)


@pytest.mark.parametrize("check", CHECKS)
def test_the_right_one_passes(check):
    run(check, Engine())


def test_every_check_has_somebody_who_fails_it():
    assert {check for check, _, _ in WRONG} == set(CHECKS)
