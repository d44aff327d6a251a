"""What every drafter must hold, as a class of tests: subclass it and name the drafter."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar
from unittest import SkipTest

import numpy as np

from accelplug._errors import AccelplugError, HostError
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.drafting import NodeKind
from accelplug.testing.building import Conformance, require, skip
from accelplug.testing.models import MAX_LENGTH, VOCAB
from accelplug.testing.parameters import other_values, own_values
from accelplug.testing.toy_host import Answer, ToyHost, ToyRequest, toy_requests

if TYPE_CHECKING:
    from accelplug.hosts.hf import Session

NUM_SLOTS = 3
MANY = 24


class DrafterConformance(Conformance):
    """Subclass it in a test module as ``class TestEcho(DrafterConformance): technique = "echo(times=2)"``.

    A host without an engine puts the drafter through all that the contract allows; a small Llama shows that the output
    stays its own.

    :cvar expects: what must become of some drafts in that output, so that the comparison proves something; leave out
        what this drafter cannot bring about.
    """

    kind: ClassVar[str] = "drafter"
    expects: ClassVar[frozenset[str]] = frozenset({"accepted", "rejected"})

    def test_drafts_keep_the_contract(self) -> None:
        """Budgets from 0, prompts of one token and of the greatest length: arrays, token ids, parents, kinds as declared."""
        host = self._host()
        host.serve(toy_requests(11, 6), NUM_SLOTS, stagger=True)
        missing = [event for event in ("drafted", "budget 0", "budget 1", "budget 2") if not host.events[event]]
        require(not missing, f"{host.drafter.technique}: nothing was {missing} in {dict(host.events)}, so nothing was checked")

    def test_the_same_inputs_give_the_same_drafts(self) -> None:
        """Two processes that build it anew agree, and so does a second run: no clock, no random numbers but torch's, which each run begins anew."""
        host = self._host()
        first, second, again = (self._serve(h, toy_requests(12, 4)) for h in (host, self._host(), host))
        who = host.drafter.technique
        require(first == second, f"{who}: two fresh builds draft differently from the same inputs; use no clock and no random numbers of its own")
        if host.drafter.traits.scope == "request":
            require(first == again, f"{who} drafts differently the second time; start(slots) must initialise everything")

    def test_views_are_neither_kept_nor_changed(self) -> None:
        """The host reuses the arrays of its views after each call, and those that `start` and `finish` are given are its own."""
        kept, overwritten = self._host(overwrites=False), self._host()
        same = self._serve(kept, toy_requests(13, 4)) == self._serve(overwritten, toy_requests(13, 4))
        require(same, f"{kept.drafter.technique} keeps a view's arrays from one call to the next; keep copies, the host reuses them")

    def test_a_batch_drafts_as_single_requests_do(self) -> None:
        """All at once, in any order of rows, and one after the other."""
        host = self._host()
        together = self._serve(host, toy_requests(14, NUM_SLOTS))
        alone = self._alone(host, toy_requests(14, NUM_SLOTS))
        require(together == alone, f"{host.drafter.technique} drafts otherwise in a batch than alone; look at view.rows, lengths and budgets")

    def test_requests_do_not_see_each_other(self) -> None:
        """More requests than slots, begun one after the other: each slot's next request starts from nothing."""
        host = self._host()
        if host.drafter.traits.scope != "request":
            skip(f"{host.drafter.technique} declares that it remembers other requests")
        interleaved = self._serve(host, toy_requests(15, 6), stagger=True)
        alone = self._alone(host, toy_requests(15, 6))
        require(interleaved == alone, f"{host.drafter.technique} carries something from one request to another; key state by slot, reset it in start(slots)")

    def test_requests_may_end_at_any_time(self) -> None:
        """Before the first step, between steps, and with no slot named at all."""
        host = self._host()
        nobody = np.zeros(0, dtype=np.int64)
        host.drafter.start(nobody)
        host.drafter.finish(nobody)
        for steps in (0, 1, 2, 0, 3):
            long, short = toy_requests(16 + steps, 2)
            host.start({0: long, 2: short})
            for _ in range(steps):
                host.step()
            host.finish([2])
            host.step()
            host.finish([0])
        before = [request.fresh() for request in toy_requests(12, 4)]
        if host.drafter.traits.scope == "request":
            after, new = self._serve(host, before), self._serve(self._host(), toy_requests(12, 4))
            require(after == new, f"{host.drafter.technique} drafts otherwise after requests that ended early; reset everything in start(slots)")

    def test_finished_requests_leave_no_memory(self) -> None:
        """Memory after hundreds of requests is what it was after a few."""
        host = self._host()
        if host.drafter.traits.scope != "request":
            skip(f"{host.drafter.technique} declares that it remembers other requests")
        growth = _growth(host, allowed=150 * MANY)
        who = host.drafter.technique
        require(growth < 150 * MANY, f"{who} holds {growth} bytes more after every {MANY} requests; free what they need in finish(slots)")

    def test_finish_frees_long_requests(self) -> None:
        """What a request of the greatest length needed is gone when it ends, not when its slot is used again."""
        host = self._host()
        held, left = _held_by_long_requests(host)
        free = left < max(held / 4, 8000)
        require(free, f"{host.drafter.technique} holds {held} bytes while three long requests run and {left} after they ended; free them in finish(slots)")

    def test_a_request_may_send_the_defaults(self) -> None:
        """Options that a request may set: naming the default changes nothing."""
        technique = self.build()
        sent = {name: value for name, value in own_values(technique).items() if isinstance(value, int | float)}
        if not sent:
            skip(f"{technique} has no options that a request may set")
        requests = [replace(request, parameters=sent) for request in toy_requests(17, 4)]
        same = self._serve(self._host(), requests) == self._serve(self._host(), toy_requests(17, 4))
        require(same, f"{technique} drafts otherwise where a request sends {sent}, which it has anyway; read view.parameters per row")

    def test_a_request_may_send_its_own_values(self) -> None:
        """Options that a request may set: rows with different values draft as those of drafters built with them do alone."""
        drafter = self._bound()
        who, names = drafter.technique, list(own_values(drafter.technique))
        if not names:
            skip(f"{who} has no options that a request may set")
        if drafter.traits.scope != "request":
            skip(f"{who} declares that it remembers other requests")
        told_apart = {name: alone for name in names if len(alone := self._by_value(name)) > 1}
        if not told_apart:
            skip(f"{who} drafts here alike with every value of {', '.join(names)} that it declares the bounds of, so nothing was proved")
        for name, alone in told_apart.items():
            for number, built in enumerate(alone):
                self._compare_values(name, built, alone, number)

    def _by_value(self, name: str) -> dict[Any, list[list[Answer]]]:
        """Return the drafts of requests served alone, by an option's value: its own, and at most two others that change them."""
        technique = self.build()
        found: dict[Any, list[list[Answer]]] = {}
        for value in (own_values(technique)[name], *other_values(technique, name)):
            try:
                host = self._host({name: value})
            except (AccelplugError, TypeError, ValueError):  # it does not go with the other options
                continue
            self._serve(host, toy_requests(19, 4))  # which shows whether it draws
            drafts = self._alone(host, toy_requests(19, 4), {name: value})
            if drafts not in found.values():
                found[value] = drafts
            if len(found) == 3:
                break
        return found

    def _compare_values(self, name: str, built: Any, alone: Mapping[Any, list[list[Answer]]], first: int) -> None:
        """Serve requests that ask for each value in turn, with a drafter built with one of them; those that want that one set nothing."""
        turns = list(itertools.islice(itertools.cycle(alone), first, first + 4))
        sent = [{} if value == built else {name: value} for value in turns]
        host = self._host({name: built})
        together = self._serve(host, [replace(request, parameters=own) for request, own in zip(toy_requests(19, 4), sent, strict=True)])
        expected = [alone[value][i] for i, value in enumerate(turns)]
        told = f"built with {name}={built!r} where requests send {sent}"
        require(together == expected, f"{host.drafter.technique} {told} does not draft as built with their values; read view.parameters[{name!r}] per row")

    def test_drawn_nodes_come_from_their_rows(self) -> None:
        """``SAMPLED`` and ``WITHOUT_REPLACEMENT`` nodes: of many drafts those in each place are distributed as their rows say, alone and in a batch."""
        drafter = self._bound()
        if drafter.traits.kinds == {NodeKind.DELTA}:
            skip(f"{drafter.technique} draws nothing at random")
        from accelplug.testing.draws import check_draws

        check_draws(drafter)

    def test_device_drafts_need_no_synchronisation(self) -> None:
        """`propose_on_device`: shapes and dtypes as documented, valid token ids everywhere, nothing that waits for the device."""
        drafter = self._bound(device=True)
        if drafter.propose_on_device is None:
            skip(f"{drafter.technique} has no propose_on_device")
        from accelplug.testing.device import check_device_drafts, check_nothing_waits

        check_device_drafts(drafter)
        check_nothing_waits(self._bound(device=True))

    def test_output_is_that_of_plain_generate(self) -> None:
        """Greedy decoding of a small Llama, single and in a batch, to EOS and to the greatest length."""
        from accelplug.testing.models import calls, looping_llama, plain_output

        session = self._attached()
        expected = [(call, plain_output(call)) for call in calls()]
        who, stats = session.selection.drafter, session.stats
        with session:
            for call, plain in expected:
                fast = call(looping_llama())
                require(fast == plain, f"{who} changes the output of {call}: {fast}, where plain generate() gives {plain}")
        events = {"accepted": stats.accepted, "rejected": stats.drafted - stats.accepted}
        for event in self.expects:
            require(events[event], f"{who}: of {stats.drafted} drafts none was {event}; leave it out of `expects` if that is its nature")

    def _attached(self) -> Session:
        import accelplug
        from accelplug.testing.models import byte_tokenizer, looping_llama

        try:
            return accelplug.attach(looping_llama(), drafter=self.given(), tokenizer=byte_tokenizer(), plugins=self.registry())
        except HostError as exc:
            raise SkipTest(str(exc)) from exc

    def _bound(self, options: Mapping[str, Any] | None = None, *, device: bool = False) -> BoundDrafter:
        drafter = bind_drafter(self.build(options))
        if drafter.is_device_only and not device:
            skip(f"{drafter.technique} drafts on the device only")
        return drafter

    def _host(self, options: Mapping[str, Any] | None = None, *, overwrites: bool = True) -> ToyHost:
        return ToyHost(self._bound(options), VOCAB, overwrites=overwrites)

    def _serve(self, host: ToyHost, requests: Sequence[ToyRequest], *, stagger: bool = False) -> list[list[Answer]]:
        import torch

        torch.manual_seed(0)
        return host.serve(requests, NUM_SLOTS, stagger=stagger)

    def _alone(self, host: ToyHost, requests: Sequence[ToyRequest], options: Mapping[str, Any] | None = None) -> list[list[Answer]]:
        if host.drew_at_random:
            skip(f"{host.drafter.technique} draws at random, so a request's drafts differ with what was drawn for others")
        return [answers for request in requests for answers in self._serve(self._host(options), [request])]


def _growth(host: ToyHost, allowed: int) -> int:
    """Return by how many bytes Python holds more after the last of some rounds of requests.

    Caches fill in the first rounds, so rounds go on until one adds less than is `allowed`; a leak goes on for ever.
    """
    growth = held = 0
    tracemalloc.start()
    try:
        for number in range(8):
            host.serve([ToyRequest([(i * number + seed) % VOCAB for i in range(44)], 40, (4, 0)) for seed in range(MANY)], NUM_SLOTS)
            host.events.clear()
            gc.collect()
            before, held = held, tracemalloc.get_traced_memory()[0]
            growth = held - before
            if number and growth < allowed:
                break
    finally:
        tracemalloc.stop()
    return growth


def _held_by_long_requests(host: ToyHost) -> tuple[int, int]:
    """Return the bytes held while long requests run in every slot, and after they ended."""
    host.serve(toy_requests(18, NUM_SLOTS), NUM_SLOTS)  # what is made once is made now
    requests = [ToyRequest(np.random.default_rng(slot).integers(0, VOCAB, MAX_LENGTH).tolist(), MAX_LENGTH - 9) for slot in range(NUM_SLOTS)]
    before = _in_tensors()
    tracemalloc.start()
    try:
        host.start(dict(enumerate(requests)))
        host.step()
        held = _in_tensors() - before + tracemalloc.get_traced_memory()[0]
        host.finish(range(NUM_SLOTS))
        host.events.clear()
        return held, _in_tensors() - before + tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def _in_tensors() -> int:
    """Return the bytes of every tensor alive, parameters aside: Python does not trace them."""
    import torch

    gc.collect()
    storages = [found.untyped_storage() for found in gc.get_objects() if type(found) is torch.Tensor]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
