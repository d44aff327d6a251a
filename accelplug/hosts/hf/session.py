"""The front: ``attach`` techniques to a model, or ``generate`` once with them."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from accelplug._errors import HostError, OptionError
from accelplug.hooks.binding import bind_drafter
from accelplug.hooks.capabilities import Selection, admit, judges_paths
from accelplug.hooks.context import BuildContext
from accelplug.hooks.masking import CompileLimits, GrammarSpec
from accelplug.hooks.options import check_value, fields_of, per_request_options
from accelplug.hooks.registry import Registry, Technique, registry
from accelplug.hosts.costs import StepCosts
from accelplug.hosts.hf import continuous
from accelplug.hosts.hf.candidates import candidates_of
from accelplug.hosts.hf.checking import check_weights
from accelplug.hosts.hf.compat import ENGINE, HOST
from accelplug.hosts.hf.grammar import Grammar, GrammarProcessor
from accelplug.hosts.hf.loading import load_second
from accelplug.hosts.hf.loop import Loop
from accelplug.hosts.hf.positions import Positions
from accelplug.hosts.stats import Stats, TechniqueStats
from accelplug.hosts.vocabulary import token_bytes, vocabulary_of

# Arguments that Transformers answers with another loop, or with one that waits for other ranks.
_OWN_LOOP = (
    "custom_generate", "assistant_model", "prompt_lookup_num_tokens", "use_mtp", "assistant_early_exit", "speculation_type", "dola_layers",
    "penalty_alpha", "synced_gpus",
)  # fmt: skip


class Session:
    """Techniques built for one model. Inside ``with``, every ``model.generate()`` runs through them.

    :ivar stats: what was done since the session began, by which plugin.
    :ivar grammar: the compiled grammar, whose ``statement`` says what the mask enforces; None without one.
    :ivar checks: per row of the last call what the finished answer violates, in one sentence, or None; empty without a grammar.
    """

    def __init__(  # noqa: PLR0913 - each is a choice of the user's
        self,
        model: Any,
        *,
        drafter: object | None = None,
        verifier: object = "token_wise",
        tokenizer: Any = None,
        allow_lossy: bool = False,
        parameters: Mapping[str, Any] | None = None,
        plugins: Registry | None = None,
        batches: Literal["auto", "ragged", "lockstep"] = "auto",
        grammar: object | None = None,
    ) -> None:
        ENGINE.require()
        if batches not in ("auto", "ragged", "lockstep"):
            raise OptionError(f"batches={batches!r} is no way to advance rows; it takes 'auto', 'ragged' or 'lockstep'")
        self.batches = batches
        if not callable(getattr(model, "generate", None)) or not hasattr(model, "config"):
            raise HostError(f"accelplug takes a loaded model, such as AutoModelForCausalLM.from_pretrained(...), and got {model!r:.60}")
        if not allow_lossy:
            check_weights(model)
        offered = plugins or registry()
        self.costs = StepCosts()
        context = build_context(model, tokenizer, self.costs)
        built = None if drafter is None else offered.build("drafter", drafter, context)
        self.grammar = None if grammar is None else compile_for(model, grammar, tokenizer, offered)
        self.positions = None if self.grammar is None else Positions(self.grammar.compiled)
        self.checks: list[str | None] = []
        engine = None if self.grammar is None else self.grammar.engine
        self.selection = Selection(built, offered.build("verifier", verifier, context), engine)
        self.allow_lossy = allow_lossy
        admit(self.selection, HOST, sampling=False, allow_lossy=allow_lossy)
        self.drafter = None if built is None else bind_drafter(built)
        self.drafts_trees = self.drafter is not None and self.drafter.traits.shape == "tree"
        if self.drafter is not None and self.drafter.is_device_only:
            raise HostError(f"{built} drafts on the device only, and this host asks in host memory; give it propose(view)")
        self.parameters = request_parameters(built, parameters or {})
        self.stats = Stats(techniques=[TechniqueStats.of(technique) for technique in self.selection])
        self.model, self.tokenizer, self.vocab_size = model, tokenizer, context.vocab_size
        self.busy = threading.Lock()
        self.entered = False

    def __del__(self) -> None:
        if not getattr(self, "entered", True):
            warnings.warn("an accelplug session was made and never entered; write 'with accelplug.attach(...):'", stacklevel=2)

    def masking(self) -> GrammarProcessor | None:
        """Return the processor of one call's grammar, if there is one."""
        if self.grammar is None:
            return None
        return GrammarProcessor(self.grammar, positions=self.positions, defers=judges_paths(self.selection.verifier))

    def __enter__(self) -> Session:
        self.entered = True
        if isinstance(vars(self.model).get("generate"), Front):
            raise _attached_already()
        self._shadowed = vars(self.model).get("generate")
        self._refused = continuous.refused(self.model)
        self._refused.__enter__()
        self.model.generate = Front(self, self.model.generate)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        del self.model.generate
        self._refused.__exit__(None, None, None)
        if self._shadowed is not None:
            self.model.generate = self._shadowed


def attach(  # noqa: PLR0913 - each is a choice of the user's
    model: Any,
    *,
    drafter: object | None = None,
    verifier: object = "token_wise",
    tokenizer: Any = None,
    allow_lossy: bool = False,
    parameters: Mapping[str, Any] | None = None,
    plugins: Registry | None = None,
    batches: Literal["auto", "ragged", "lockstep"] = "auto",
    grammar: object | None = None,
) -> Session:
    """Run every ``model.generate()`` inside ``with attach(model, drafter=...) as session:`` through techniques.

    :param model: a causal language model of Transformers, loaded.
    :param drafter: a name like ``"prompt_lookup(num_tokens=6)"``, a mapping, or an object; None drafts nothing.
    :param verifier: the same for the rule that decides which drafts stay.
    :param tokenizer: for techniques that read token bytes, and the default one for stop strings.
    :param allow_lossy: accept a verifier that may change the output.
    :param parameters: values for options that a request may set.
    :param plugins: where names are looked up; by default whatever is installed.
    :param batches: whether the rows of a batch each keep all they accept (``"ragged"``) or advance together
        (``"lockstep"``); by default the former where the output is then plain ``generate()``'s.
    :param grammar: what every answer must be, ``{"json_schema": {...}}`` (see `accelplug.hooks.GrammarSpec`), or what `grammar` compiled.
        Its mask lies on every token, and what it forces is drafted, with or without a drafter.
    :raises AccelplugError: the selection is unknown, misconfigured, or cannot run on this model.
    """
    return Session(
        model,
        drafter=drafter,
        verifier=verifier,
        tokenizer=tokenizer,
        allow_lossy=allow_lossy,
        parameters=parameters,
        plugins=plugins,
        batches=batches,
        grammar=grammar,
    )


def generate(  # noqa: PLR0913 - each is a choice of the user's
    model: Any,
    inputs: torch.Tensor | None = None,
    *,
    drafter: object | None = None,
    verifier: object = "token_wise",
    tokenizer: Any = None,
    allow_lossy: bool = False,
    parameters: Mapping[str, Any] | None = None,
    batches: Literal["auto", "ragged", "lockstep"] = "auto",
    grammar: object | None = None,
    **generate_arguments: Any,
) -> Any:
    """Call ``model.generate(inputs, **generate_arguments)`` with techniques; returns what it returns.

    The parameters are those of :func:`attach`; `tokenizer` is also the one for stop strings.
    """
    session = attach(
        model,
        drafter=drafter,
        verifier=verifier,
        tokenizer=tokenizer,
        allow_lossy=allow_lossy,
        parameters=parameters,
        batches=batches,
        grammar=grammar,
    )
    with session:
        return model.generate(inputs, **generate_arguments)


def grammar(
    model: Any,
    given: object,
    *,
    tokenizer: Any,
    engine: object = "auto",
    limits: CompileLimits | None = None,
    plugins: Registry | None = None,
) -> Grammar:
    """Compile a grammar for a model: for several sessions, by another engine, or for Transformers' own decoding loops.

    The latter take it as ``model.generate(**inputs, logits_processor=[compiled.after(inputs)])``, with beams too.

    :param given: ``{"json_schema": {...}}`` with one of the kinds of `accelplug.hooks.GrammarSpec` and its options.
    :param tokenizer: the model's.
    :param engine: the grammar engine, spelled as any technique; ``"auto"`` chooses by what the grammar needs.
    :param limits: how much compiling may take.
    :param plugins: where names are looked up; by default whatever is installed.
    :raises ConstraintError: the grammar cannot be enforced, or exceeds a limit.
    """
    return compile_for(model, given, tokenizer, plugins or registry(), engine, limits)


def compile_for(
    model: Any, given: object, tokenizer: Any, offered: Registry, engine: object = "auto", limits: CompileLimits | None = None
) -> Grammar:
    """Return the grammar that users wrote, compiled for this model."""
    context = build_context(model, tokenizer)
    if isinstance(given, Grammar):
        given.check_width(context.vocab_size)
        return given
    spec = GrammarSpec.of(given)
    if tokenizer is None:
        raise HostError("a grammar needs the model's tokenizer; pass tokenizer=... to attach(), generate() or grammar()")
    vocabulary = vocabulary_of(tokenizer, context.vocab_size, context.eos_token_ids)
    return Grammar(offered.build("grammar", engine, context), spec, vocabulary, limits or CompileLimits())


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
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        **arguments: Any,
    ) -> Any:
        """Generate as the model would, through the session's techniques."""
        session = self.session
        if isinstance(arguments.get("custom_generate"), Loop):  # of the model that wraps this one
            raise _attached_already()
        if arguments.get("cache_implementation") == "paged":
            raise continuous.refusal()
        if taken := [name for name in _OWN_LOOP if arguments.get(name)]:
            raise HostError(
                f"generate() got {taken[0]}, which brings its own decoding loop, while accelplug is attached; leave one of them out"
            )
        criteria = StoppingCriteriaList(stopping_criteria or [])
        strings, generation_config, arguments = _without_stop_strings(session.model, generation_config, arguments)
        if strings:
            criteria.append(_stop_strings(strings, tokenizer or session.tokenizer))
        masking = session.masking()
        if masking is not None:
            logits_processor = LogitsProcessorList([*(logits_processor or ()), masking])
        if not session.busy.acquire(blocking=False):
            raise HostError("another thread is generating with this accelplug session; attach one model per thread")
        loop = Loop(session, streamer, keeps_cache=arguments.get("past_key_values") is not None, masking=masking)
        try:
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
        finally:
            session.busy.release()
        if not loop.has_run:
            raise HostError(f"{type(session.model).__name__}.generate() has a decoding loop of its own, so accelplug had no part in it")
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Give a copy of the model its own plain ``generate``: the session belongs to the original."""
        copied = memo[id(self.session.model)]
        return type(copied).generate.__get__(copied)

    def __reduce__(self) -> Any:
        raise HostError("a model with accelplug attached cannot be pickled; leave the 'with' block first")


def _attached_already() -> HostError:
    return HostError("accelplug is attached to this model already; leave that 'with' block first, or choose all techniques in one attach()")


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


def build_context(model: Any, tokenizer: Any, costs: StepCosts | None = None) -> BuildContext:
    """Describe a loaded model to factories."""
    measured = costs or StepCosts()
    text = model.config.get_text_config(decoder=True)
    eos = model.generation_config.eos_token_id
    eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

    def vocabulary() -> tuple[bytes, ...]:
        if tokenizer is None:
            raise HostError("a technique asks for the vocabulary and no tokenizer was given; pass tokenizer=... to attach() or generate()")
        return token_bytes(tokenizer, text.vocab_size)

    return BuildContext(
        host=HOST.name,
        vocab_size=text.vocab_size,
        eos_token_ids=eos_ids,
        dtype=model.dtype,
        device=model.device,
        hidden_size=text.hidden_size,
        max_length=getattr(text, "max_position_embeddings", None) or 1 << 30,
        num_slots=None,
        vocabulary=vocabulary,
        embeddings=lambda: model.get_input_embeddings().weight,
        output_head=lambda: model.get_output_embeddings().weight,
        load_model=lambda given, tokens="same": load_second(given, model, tokenizer, tokens),
        step_seconds=lambda: measured.seconds,
        candidates=lambda name, options: candidates_of(model, name, options),
    )


def request_parameters(drafter: Technique | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check values that a request brings for itself, and pack them as views carry them: name -> [1].

    :raises OptionError: the drafter has no such per-request option, or the value is out of its bounds.
    """
    offered = {} if drafter is None else per_request_options(drafter.factory)
    for name, value in given.items():
        if name not in offered:
            raise OptionError(f"{drafter or 'no drafter'} takes no per-request option {name!r}; it takes {', '.join(offered) or 'none'}")
        assert drafter is not None
        check_value(str(drafter), name, value, fields_of(drafter.factory)[name].annotation, offered[name])
    return {name: np.array([value]) for name, value in given.items()}
