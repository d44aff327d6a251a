"""The ``generate`` of a model to which a session is attached: what a call brings is taken apart and goes through the model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from inspect import Parameter, signature
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from accelplug._errors import HostError
from accelplug.hosts.hf import continuous
from accelplug.hosts.hf.checking import attached_already
from accelplug.hosts.hf.compat import given_cache
from accelplug.hosts.hf.loop import Loop

if TYPE_CHECKING:
    from accelplug.hosts.hf.session import Session

# Arguments that Transformers answers with another loop, or with one that waits for other ranks.
_OWN_LOOP = (
    "custom_generate", "assistant_model", "prompt_lookup_num_tokens", "use_mtp", "assistant_early_exit", "speculation_type", "dola_layers",
    "penalty_alpha", "synced_gpus",
)  # fmt: skip


class Front:
    """The ``generate`` that stands in for the model's own while a session is attached.

    Transformers drops streamer and tokenizer on the way to a custom loop, so both are handed over here.
    """

    def __init__(self, session: Session, plain: Callable[..., Any]) -> None:
        self.session, self.plain = session, plain

    def __call__(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        *others: Any,
        streamer: Any = None,
        tokenizer: Any = None,
        **arguments: Any,
    ) -> Any:
        """Generate as the model would, through the session's techniques."""
        session = self.session
        if not session.busy.locked():
            session.checks = []  # those of an earlier call, even if this one is refused
        if others:
            given = {"streamer": streamer, "tokenizer": tokenizer, **_named(self.plain, others), **arguments}
            return self(inputs, generation_config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn, **given)
        self._check(arguments)
        criteria = StoppingCriteriaList(stopping_criteria or [])
        strings, generation_config, arguments = _without_stop_strings(session.model, generation_config, arguments)
        if strings:
            criteria.append(_stop_strings(strings, tokenizer or session.tokenizer))
        heals = _heals_tokens(session.model, generation_config, arguments)
        healing = _healing(session.taken, self.plain, tokenizer or session.tokenizer) if heals else nullcontext()
        masking = session.masking()
        if masking is not None:
            logits_processor = LogitsProcessorList([*(logits_processor or ()), masking])
        loop = Loop(session, streamer, keeps_cache=given_cache(arguments) is not None, masking=masking)
        with self._alone(), healing:
            output = self.plain(
                *(() if inputs is None else (inputs,)),  # the first argument is not called inputs everywhere
                generation_config=generation_config,
                logits_processor=logits_processor,
                stopping_criteria=criteria,
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
                streamer=streamer,
                custom_generate=loop,
                **arguments,
            )
        if not loop.has_run:
            raise _own_loop(session.model)
        return output

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads out while the model generates, and say so where its own ``generate()`` knows no loop but its own.

        :raises HostError: another thread is in.
        """
        session = self.session
        if not session.busy.acquire(blocking=False):
            raise HostError("another thread is generating with this accelplug session; attach one model per thread")
        try:
            yield
        except ValueError as exc:
            if "custom_generate" in str(exc):  # unknown to a generate() of the model's own (Musicgen)
                raise _own_loop(session.model) from exc
            raise
        finally:
            session.busy.release()

    def _check(self, arguments: dict[str, Any]) -> None:
        """Refuse what a call asks for beside the session.

        :raises HostError: naming it.
        """
        if isinstance(arguments.get("custom_generate"), Loop):  # of the model that wraps this one
            raise attached_already()
        if arguments.get("cache_implementation") == "paged":
            if self.session.drafter is not None:
                raise continuous.refusal()
            raise HostError("cache_implementation='paged' is continuous batching by another name; call model.generate_batch()")
        if taken := [name for name in _OWN_LOOP if arguments.get(name)]:
            raise HostError(
                f"generate() got {taken[0]}, which brings its own decoding loop, while accelplug is attached; leave one of them out"
            )



def _named(generate: Callable[..., Any], others: tuple[Any, ...]) -> dict[str, Any]:
    """Return what a call gives behind the five arguments that every ``generate()`` begins with, by its names."""
    names = [name for name, one in signature(generate).parameters.items() if one.kind is Parameter.POSITIONAL_OR_KEYWORD][5:]
    if len(others) > len(names):
        raise TypeError(f"generate() takes {5 + len(names)} positional arguments and got {5 + len(others)}; name those behind the fifth")
    return dict(zip(names, others, strict=False))


def _own_loop(model: Any) -> HostError:
    """Return the error for models into whose decoding no loop reaches."""
    return HostError(f"{type(model).__name__}.generate() has a decoding loop of its own, so accelplug had no part in it")


def _heals_tokens(model: Any, config: Any, arguments: dict[str, Any]) -> bool:
    """Whether a call asks for ``token_healing``, itself or by the configuration that it goes by."""
    chosen = arguments["token_healing"] if "token_healing" in arguments else getattr(config or model.generation_config, "token_healing", False)
    return bool(chosen)


@contextmanager
def _healing(model: Any, plain: Callable[..., Any], tokenizer: Any) -> Iterator[None]:
    """Have Transformers heal the prompt where it does, with the tokenizer that it hands to no decoding loop of another's, and plain decoding.

    :raises HostError: there is no tokenizer.
    """
    if tokenizer is None:
        raise HostError("token_healing needs the model's tokenizer; pass tokenizer=... to generate() or attach()")
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT
    heal = type(owner).heal_tokens
    owner.heal_tokens = lambda input_ids, _tokenizer=None: heal(SimpleNamespace(generate=plain), input_ids, tokenizer)
    try:
        yield
    finally:
        del owner.heal_tokens


def _stop_strings(strings: Any, tokenizer: Any) -> StopStringCriteria:
    if tokenizer is None:
        raise HostError("stop_strings need the model's tokenizer; pass tokenizer=... to generate() or attach()")
    return StopStringCriteria(stop_strings=strings, tokenizer=tokenizer)


def _without_stop_strings(model: Any, config: Any, arguments: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Take the stop strings out of the call, since they become a criterion; never touch the user's config.

    An argument goes before the call's config, None too, and that one's before the model's own.
    """
    preset = model.generation_config.stop_strings
    strings = preset
    if config is not None and config.stop_strings is not None:
        strings = config.stop_strings
        config = copy.deepcopy(config)
        config.stop_strings = None
    strings = arguments.get("stop_strings", strings)
    arguments = {name: value for name, value in arguments.items() if name != "stop_strings"}
    return strings, config, arguments if preset is None else {**arguments, "stop_strings": None}
