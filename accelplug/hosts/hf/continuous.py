"""Continuous batching: an engine of its own inside Transformers. A session's grammars reach its packed requests, drafts do not."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import LogitsProcessorList

from accelplug._errors import AccelplugError, HostError
from accelplug.hosts.hf.checking import attached_already
from accelplug.hosts.hf.compat import ENGINE
from accelplug.hosts.hf.copies import unattached_copies

if TYPE_CHECKING:
    from accelplug.hosts.hf.packed import PackedGrammars
    from accelplug.hosts.hf.session import Session

_OF_THE_SESSION: Any = object()
_KEPT = "_cached_continuous_batching_manager"


def refusal() -> HostError:
    """Return the error for whoever asks for that engine while a drafter is attached."""
    return HostError(
        "continuous batching runs without accelplug's drafts; attach a grammar without a drafter, give generate() a batch, "
        "or leave the 'with' block first"
    )


class Way:
    """Stands in for a method of a model through which that engine is entered."""

    def __init__(self, model: Any, name: str, call: Callable[..., Any]) -> None:
        self.model, self.name, self.call = model, name, call
        self.plain: Callable[..., Any] = getattr(model, name)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """Do what was put in the method's place."""
        return self.call(self.plain, *args, **arguments)


class Continuous:
    """The engine of one model while a session is attached: every manager that it makes knows grammars.

    :ivar nested: another session is attached to the same weights.
    """

    def __init__(self, session: Session, model: Any) -> None:
        self.session, self.model, self.nested = session, model, False
        self.asked: Any = _OF_THE_SESSION
        self.refused: AccelplugError | None = None

    def manager(
        self, plain: Callable[..., Any], generation_config: Any = None, continuous_batching_config: Any = None, **arguments: Any
    ) -> Any:
        """Return the model's own manager, whose requests may have grammars: what ``init_continuous_batching`` does in a session.

        :raises HostError: a drafter is attached, or something was asked for that masks cannot follow.
        """
        if self.nested:
            raise attached_already()
        if self.session.drafter is not None:
            raise refusal()
        if (kept := getattr(self.model, _KEPT, None)) is not None:
            self._check_ours(kept)
            return plain()
        from accelplug.hosts.hf.packed import PackedGrammars

        chosen = generation_config or self.model.generation_config
        packed = PackedGrammars(self.session.vocab_size, _ends(chosen.eos_token_id))
        config = _synchronous(continuous_batching_config or getattr(chosen, "continuous_batching_config", None))
        with self._processing(packed):
            manager = plain(generation_config=generation_config, continuous_batching_config=config, **arguments)
        try:
            Requests(self, manager, packed).install()
        except AttributeError as exc:
            raise HostError(f"continuous batching was rebuilt ({exc}); grammars in it need transformers{ENGINE.tested_range}") from exc
        return manager

    def batch(self, plain: Callable[..., Any], inputs: Sequence[Any], *args: Any, grammar: Any = _OF_THE_SESSION, **arguments: Any) -> Any:
        """Do what ``generate_batch`` does, with the session's grammars or others.

        :param grammar: one for all prompts, or a list with one for each; None lets a prompt be free.
        :raises AccelplugError: as of `Requests.add_requests`, whose errors Transformers would only log.
        """
        self.asked, self.refused, self.session.checks = self.for_each(len(inputs), grammar), None, []
        try:
            outputs = plain(inputs, *args, **arguments)
        finally:
            self.asked = _OF_THE_SESSION
            if self.refused is not None:
                raise self.refused
        self.session.checks = [output.error or output.problem for output in outputs.values()]
        return outputs

    def for_each(self, count: int, given: Any) -> list[Any]:
        """Return every prompt's grammar, compiled; None where it is free.

        :raises HostError: there are more grammars than prompts, or fewer.
        """
        if given is _OF_THE_SESSION:
            given = self.session.grammars if self.session.several else self.session.grammar
        several = list(given) if isinstance(given, list | tuple) else [given] * count
        if len(several) != count:
            raise HostError(
                f"grammar= has {len(several)} entries, one for each prompt, and continuous batching got {count}; "
                "give as many, None for a prompt that is free"
            )
        return [None if one is None else self.session.compile(one) for one in several]

    @contextmanager
    def doubled(self) -> Iterator[None]:
        """Refuse while another session is attached to the same weights: one of the two would be left out."""
        self.nested = True
        try:
            yield
        finally:
            self.nested = False

    def _check_ours(self, manager: Any) -> None:
        requests = getattr(vars(manager).get("add_request"), "__self__", None)
        if not isinstance(requests, Requests) or requests.engine is not self:
            raise HostError(
                "the model kept a continuous batching manager from before accelplug was attached, which knows no grammar; "
                "call model.destroy_cached_continuous_batching_manager() first"
            )

    @contextmanager
    def _processing(self, packed: PackedGrammars) -> Iterator[None]:
        """Put the masks among the processors that a manager is made with, behind penalties and before temperature, as generate() does."""
        processors = LogitsProcessorList([packed])
        self.model._get_logits_processor = functools.partial(self.model._get_logits_processor, logits_processor=processors)
        try:
            yield
        finally:
            del self.model._get_logits_processor


class Requests:
    """What one manager's requests bring along: each its grammar, the session's where it names none."""

    def __init__(self, engine: Continuous, manager: Any, packed: PackedGrammars) -> None:
        self.engine, self.session, self.manager, self.packed = engine, engine.session, manager, packed
        self.plain_add, self.plain_cancel = manager.add_request, manager.cancel_request
        self.plain_deliver, self.plain_deliver_batch = manager.output_router.deliver, manager.output_router.deliver_batch

    def install(self) -> None:
        """Take the places through which requests come and outputs leave.

        :raises HostError: the model's processors leave out the masks, or the model is spread over processes.
        """
        manager, processors, router = self.manager, self.manager.logit_processor, self.manager.output_router
        if self.packed not in processors.logits_processor:
            raise HostError(
                f"{type(manager.model).__name__} makes its logits processors itself and leaves out the grammar's; use generate()"
            )
        if manager.distributed_helper.tp_size > 1:
            raise HostError("a tensor-parallel model sends its requests to other processes, and grammars cannot be sent; use generate()")
        self.packed.allocate(manager.continuous_batching_config.max_requests_per_batch, manager.model.device)
        processors.tensors_required += 1
        manager.add_request, manager.add_requests, manager.cancel_request = self.add_request, self.add_requests, self.cancel_request
        router.deliver, router.deliver_batch = self.deliver, self.deliver_batch

    def add_request(self, input_ids: Sequence[int], *args: Any, grammar: Any = _OF_THE_SESSION, **arguments: Any) -> Any:
        """Queue a request, as the manager does.

        :param grammar: what its answer must be, in any spelling that `attach` takes; None lets it be free. By default the session's.
        :raises HostError: the request stops at other tokens than its grammar ends with, or the session's grammars are a list.
        :raises ConstraintError: the grammar cannot be enforced.
        """
        if grammar is _OF_THE_SESSION:
            if self.session.several:
                raise HostError("the session's grammars are a list, one for each prompt of a call; say add_request(..., grammar=...)")
            grammar = self.session.grammar
        if grammar is None:
            return self.plain_add(input_ids, *args, **arguments)
        compiled = self.session.compile(grammar)
        given = _named(args, "request_id", "max_new_tokens", "streaming", "record_timestamps", "eos_token_id") | arguments
        compiled.check_ends(self.packed.ends, "the generation config")
        if given.get("eos_token_id") is not None:
            compiled.check_ends(_ends(given["eos_token_id"]), "add_request()")
        return self.plain_add(input_ids, grammar=compiled, **given)

    def add_requests(self, inputs: Sequence[Sequence[int]], *args: Any, grammar: Any = _OF_THE_SESSION, **arguments: Any) -> list[Any]:
        """Queue several requests, those that begin alike next to each other, so that they share what is cached; return their ids.

        :param grammar: one for all, or a list with one for each.
        :raises HostError: there are more grammars than requests, or fewer; as of `add_request`.
        """
        given = _named(args, "max_new_tokens", "streaming", "record_timestamps") | arguments
        try:
            grammars = self.engine.for_each(len(inputs), self.engine.asked if grammar is _OF_THE_SESSION else grammar)
            order = sorted(range(len(inputs)), key=lambda at: list(inputs[at]), reverse=True)
            ids = {at: self.add_request(inputs[at], grammar=grammars[at], **given) for at in order}
        except AccelplugError as exc:
            self.engine.refused = exc
            raise
        return [ids[at] for at in range(len(inputs))]

    def cancel_request(self, request_id: str) -> None:
        """Cancel a request, as the manager does."""
        self.plain_cancel(request_id)
        self.packed.cancelled.add(request_id)

    def deliver(self, output: Any) -> None:
        """Hand an output on, checked if it is the last of its request."""
        self._close(output)
        self.plain_deliver(output)

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Hand several outputs on."""
        for output in outputs:
            self._close(output)
        self.plain_deliver_batch(outputs)

    def _close(self, output: Any) -> None:
        if output.is_finished() or output.error is not None:
            self.packed.close(output)


def _named(args: Sequence[Any], *names: str) -> dict[str, Any]:
    """Return positional arguments by their names."""
    return dict(zip(names, args, strict=False))


def _ends(eos: int | list[int] | None) -> set[int]:
    """Return the EOS tokens that a setting names; Transformers writes -1 for none."""
    return {token for token in ([eos] if isinstance(eos, int) else eos or ()) if token >= 0}


def _synchronous(given: Any) -> Any:
    """Return the settings of an engine that knows every token of a step before it prepares the next.

    :raises HostError: another was asked for.
    """
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    if given is not None and given.use_async_batching:
        raise HostError(
            "use_async_batching prepares a step before the tokens of the last one are known, on which grammars' masks depend; leave it out"
        )
    config = copy.copy(given) if given is not None else ContinuousBatchingConfig()
    config.use_async_batching = False
    return config


@contextmanager
def governed(session: Session) -> Iterator[None]:
    """Let a session's grammars into continuous batching on its model, or on the one that it wraps; where it drafts, refuse that engine."""
    taken = getattr(session.model, "init_continuous_batching", None)
    if isinstance(taken, Way):  # another session has the model that wraps this one, or that it wraps
        with taken.call.__self__.doubled():  # type: ignore[attr-defined]
            yield
        return
    owner = getattr(taken, "__self__", None)
    if owner is None:
        yield
        return
    engine, kept = Continuous(session, owner), getattr(owner, _KEPT, None)
    owner.init_continuous_batching = Way(owner, "init_continuous_batching", engine.manager)
    owner.generate_batch = Way(owner, "generate_batch", engine.batch)
    try:
        with unattached_copies(owner, "init_continuous_batching", "generate_batch"):
            yield
    finally:
        del owner.init_continuous_batching, owner.generate_batch
        if getattr(owner, _KEPT, None) is not kept:  # its requests would go on having this session's grammars
            owner.destroy_cached_continuous_batching_manager()
