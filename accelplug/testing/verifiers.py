"""What every verification rule must hold, as a class of tests: subclass it and name the rule."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from accelplug._errors import AccelplugError, HostError
from accelplug.hooks.capabilities import Selection, admit, judges_chains, judges_paths, verifier_traits
from accelplug.hooks.registry import Technique
from accelplug.hooks.verifying import VerifierTraits
from accelplug.testing.building import Conformance, require, skip
from accelplug.testing.parameters import other_values, own_values

if TYPE_CHECKING:
    from accelplug.testing.enumeration import Judged, Table
    from accelplug.testing.plans import Grow

EXACT = 1e-12
TARGETS = ((1, False), (4, True))
"""Seeds of the targets, and whether each masks a token of every row."""
GREEDY_TARGETS = (*TARGETS, (5, False), (11, False))
"""The same for greedy decoding, where it takes more of them to have drafts fail and hold at every level."""


class VerifierConformance(Conformance):
    """Subclass it in a test module as ``class TestMine(VerifierConformance): technique = "mine(alpha=2)"``.

    The rule runs in the Transformers host's own walk, on a vocabulary of three tokens, through every outcome there is.
    """

    kind: ClassVar[str] = "verifier"

    def test_sampled_output_has_the_targets_distribution(self) -> None:
        """``lossless="sampling"``: all outcomes of a step two levels deep, for every mixture of node kinds it can judge."""
        from accelplug.testing.enumeration import Judged, error, step

        rule, traits = self._rule()
        if traits.lossless != "sampling":
            skip(f"{rule} does not promise the target's distribution")
        judged = Judged()
        for name, target, grow in _cases(traits):
            off = error(target, step(target, grow, rule, judged=judged))
            require(off < EXACT, f"{rule} is not exact on {name}: total variation {off:.3g} from the target, {EXACT:g} is rounding")
        _require_all(rule, traits, judged)

    def test_greedy_output_is_the_targets_best(self) -> None:
        """``lossless="sampling"`` and ``"greedy"``: the likeliest token every time, whatever was drafted."""
        from accelplug.testing.enumeration import Judged, step

        rule, traits = self._rule()
        if traits.lossless is None:
            skip(f"{rule} promises nothing about the output")
        judged = Judged()
        for name, target, grow in _cases(traits, GREEDY_TARGETS):
            best = _best(target, grow.depth + 1)
            wrong = [text for text in step(target, grow, rule, do_sample=False, judged=judged) if text != best[: len(text)]]
            require(not wrong, f"{rule} is not exact on {name} under greedy decoding: {wrong[:3]}, where {best} is the likeliest")
        _require_all(rule, traits, judged)

    def test_masked_tokens_never_come_out(self) -> None:
        """Lossy rules too: a processor's or a grammar's mask holds after acceptances and rejections."""
        from accelplug.testing.enumeration import step

        rule, traits = self._rule()
        for name, target, grow in _cases(traits, TARGETS[1:]):
            outcomes = step(target, grow, rule)
            total = sum(outcomes.values())
            require(abs(total - 1) < EXACT, f"{rule} loses probability on {name}: the outcomes sum to {total:.6g}")
            wrong = [tokens for tokens, p in outcomes.items() if p > EXACT and not _possible(target, tokens)]
            require(not wrong, f"{rule} lets masked tokens out on {name}: {wrong[:3]}; its residual must be 0 where view.target is 0")

    def test_answers_are_probabilities(self) -> None:
        """`accept` lies between 0 and 1, the residual and ``Choice.rest`` are distributions, paths lead down."""
        rule, traits = self._rule()
        from accelplug.testing import views

        if judges_paths(rule):
            views.check_choices(rule, traits)
        else:
            views.check_answers(rule, traits)

    def test_rows_are_judged_alone(self) -> None:
        """A batch of candidates gets the probabilities and the residuals that each would get by itself."""
        rule, traits = self._rule()
        from accelplug.testing import views

        if judges_paths(rule):
            skip(f"{rule} is asked for one request at a time")
        views.check_rows_alone(rule, traits)

    def test_chains_are_judged_on_the_device_as_elsewhere(self) -> None:
        """`choose_on_device`, in a batch with other requests and padding: what a step ends with has the distribution that `choose` gives it."""
        from accelplug.testing.chains import step_on_device
        from accelplug.testing.enumeration import step, total_variation

        rule, traits = self._rule()
        if not judges_chains(rule):
            skip(f"{rule} has no choose_on_device")
        chains = [case for case in _cases(traits) if _is_chain(case[2])]
        for (name, target, grow), do_sample in itertools.product(chains, (True, False)):
            here = step_on_device(target, grow, rule, lossless=traits.lossless is not None, do_sample=do_sample)
            off = total_variation(here, step(target, grow, rule, do_sample=do_sample))
            how = "" if do_sample else " under greedy decoding"
            require(off < EXACT, f"{rule} judges otherwise on the device on {name}{how}: total variation {off:.3g} from choose, {EXACT:g} is rounding")

    def test_judging_on_the_device_needs_no_synchronisation(self) -> None:
        """`choose_on_device`: fixed shapes, and no value is read."""
        from accelplug.testing.chains import check_never_waits

        rule, traits = self._rule()
        if not judges_chains(rule):
            skip(f"{rule} has no choose_on_device")
        check_never_waits(rule, traits)

    def test_views_are_left_as_they_were(self) -> None:
        """The host goes on with the tensors that it showed."""
        rule, traits = self._rule()
        from accelplug.testing import views

        views.check_unchanged(rule, traits)

    def test_a_request_may_send_its_own_values(self) -> None:
        """Options that a request may set: it is judged as by a rule built with its values, others beside it by theirs."""
        rule, traits = self._rule()
        if not (own := own_values(rule)):
            skip(f"{rule} has no options that a request may set")
        differ = [self._differs(rule, traits, name, (own[name], value)) for name in own for value in list(other_values(rule, name))[:2]]
        if not any(differ):
            skip(f"{rule} judges here alike with every value of {', '.join(own)} that it declares the bounds of, so nothing was proved")

    def _differs(self, rule: Technique, traits: VerifierTraits, name: str, values: tuple[float, float]) -> bool:
        """Check two values of an option; return whether rules built with them differ."""
        from accelplug.testing import views

        try:
            built = self.build({name: values[1]})
        except (AccelplugError, TypeError, ValueError):  # it does not go with the other options
            return False
        if not judges_paths(rule):
            return views.check_own_values(rule, built, traits, name, values)
        told_apart = [self._steps_differ(rule, built, traits, case, name, values) for case in itertools.islice(_cases(traits), 4)]
        return any(told_apart)

    def _steps_differ(
        self, rule: Technique, built: Technique, traits: VerifierTraits, case: tuple[str, Table, Grow], name: str, values: tuple[float, float]
    ) -> bool:
        from accelplug.testing.chains import step_on_device
        from accelplug.testing.enumeration import step, total_variation
        from accelplug.testing.views import require_own_values

        _, target, grow = case
        expected = step(target, grow, built)
        sent = [step(target, grow, rule, parameters={name: values[1]})]
        if judges_chains(rule) and _is_chain(grow):
            sent.append(step_on_device(target, grow, rule, lossless=traits.lossless is not None, parameters={name: values}))
        for outcomes in sent:
            require_own_values(rule, name, held=total_variation(outcomes, expected) < EXACT)
        return total_variation(step(target, grow, rule), expected) > EXACT

    def test_it_is_admitted_for_what_it_promises_only(self) -> None:
        """A lossy rule has to be asked for, one for greedy decoding is refused under sampling."""
        from accelplug.hosts.hf.compat import HOST

        rule, traits = self._rule()
        selection = Selection(None, rule)
        admit(selection, HOST, sampling=True, allow_lossy=True)
        for sampling in (False, True):
            promised = traits.lossless == "sampling" or (traits.lossless == "greedy" and not sampling)
            try:
                admit(selection, HOST, sampling=sampling)
            except HostError:
                require(not promised, f"{rule} is refused though it promises {traits.lossless!r}")
            else:
                require(promised, f"{rule} runs without allow_lossy though it promises {traits.lossless!r}")

    def _rule(self) -> tuple[Technique, VerifierTraits]:
        rule = self.build()
        return rule, verifier_traits(rule)


def _cases(traits: VerifierTraits, targets: Sequence[tuple[int, bool]] = TARGETS) -> Iterator[tuple[str, Table, Grow]]:
    """Yield the trees that the rule can judge, each with its name and a target; in every second one, counts depend on what was drawn."""
    from accelplug.testing.enumeration import VOCAB, table
    from accelplug.testing.plans import PLANS, Grow

    width = 1 if traits.shape == "chain" else VOCAB
    judged = [plan for plan in PLANS.items() if all(set(level) <= traits.kinds and len(level) <= width for level in plan[1])]
    for i, (name, plan) in enumerate(judged):
        for j, (seed, masked) in enumerate(targets):
            data_dependent = (i + j) % 2 == 1
            told = f"{name!r}, {'masked' if masked else 'open'} target{', counts by data' if data_dependent else ''}"
            yield told, table(seed, masked=masked), Grow(plan, data_dependent)


def _is_chain(grow: Grow) -> bool:
    return bool(grow.plan) and all(len(level) == 1 for level in grow.plan)


def _best(target: Table, length: int) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    for _ in range(length):
        tokens += (int(target(tokens).argmax()),)
    return tokens


def _possible(target: Table, tokens: tuple[int, ...]) -> bool:
    return all(target(tokens[:i])[token] > 0 for i, token in enumerate(tokens))


def _require_all(rule: Technique, traits: VerifierTraits, judged: Judged) -> None:
    """A rule that accepts everything or nothing, of some kind or below some level, was not put to the test."""
    for level, event, kind in itertools.product((1, 2), ("accepted", "rejected"), sorted(traits.kinds)):
        drafted = sum(judged.nodes[each, level, kind] for each in ("accepted", "rejected"))
        told = f"of {drafted} {kind.name} nodes at level {level} of its drafts none was {event}"
        require(judged.nodes[event, level, kind], f"{rule}: {told}, which proves nothing")
    require(judged.ends[1, 2], f"{rule}: no draft of two tokens was accepted in part, which proves nothing")
