"""The front: ``attach`` techniques to a model, or ``generate`` once with them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Literal

import torch

from accelplug._errors import HostError, OptionError
from accelplug.hooks.binding import bind_drafter
from accelplug.hooks.capabilities import Selection, admit, judges_paths
from accelplug.hooks.masking import CompileLimits, GrammarSpec
from accelplug.hooks.registry import Registry, Technique, registry
from accelplug.hosts.costs import StepCosts
from accelplug.hosts.hf import continuous
from accelplug.hosts.hf.checking import attached_already, check_weights, no_model
from accelplug.hosts.hf.compat import ENGINE, HOST
from accelplug.hosts.hf.context import build_context
from accelplug.hosts.hf.copies import unattached_copies
from accelplug.hosts.hf.front import Front
from accelplug.hosts.hf.grammar import Grammar, GrammarProcessor, RowGrammars
from accelplug.hosts.hf.hidden import Hidden
from accelplug.hosts.hf.parameters import Parameters
from accelplug.hosts.hf.positions import Positions
from accelplug.hosts.stats import Stats, TechniqueStats
from accelplug.hosts.vocabulary import vocabulary_of

_TAKING: Final = threading.RLock()
"""Held by whoever looks whether a model is free, and takes it or gives it back: of two threads one is refused."""


class Session:
    """Techniques built for one model. Inside ``with``, every ``model.generate()`` runs through them.

    :ivar stats: what was done since the session began, by which plugin.
    :ivar grammar: the compiled grammar, whose ``statement`` says what the mask enforces; None without one, or with one for each prompt.
    :ivar grammars: the compiled grammars, one for each prompt where a list was given, None where a prompt is free.
    :ivar checks: per row of the last call what the finished answer violates, in one sentence, or None; empty without a grammar,
        and after a call that raised.
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
            raise no_model(model)
        if not allow_lossy:
            check_weights(model)
        offered = self.offered = plugins or registry()
        self.costs = StepCosts()
        context = build_context(model, tokenizer, self.costs)
        built = None if drafter is None else offered.build("drafter", drafter, context)
        self.several = isinstance(grammar, list | tuple)
        given: list[Any] = list(grammar) if isinstance(grammar, list | tuple) else [grammar]
        self.grammars = [None if one is None else compile_for(model, one, tokenizer, offered) for one in given]
        self.grammar = None if self.several else self.grammars[0]
        self.positions = {id(one): Positions(one.compiled) for one in self.grammars if one is not None}
        self.checks: list[str | None] = []
        engine = engine_of(self.grammars, several=self.several)
        self.selection = Selection(built, offered.build("verifier", verifier, context), engine)
        self.allow_lossy = allow_lossy
        admit(self.selection, HOST, sampling=False, allow_lossy=allow_lossy)
        self.drafter = None if built is None else bind_drafter(built)
        layers = frozenset() if self.drafter is None else self.drafter.traits.hidden_layers
        self.hidden = Hidden(self.drafter.technique, layers, model) if self.drafter is not None and layers else None
        self.drafts_trees = self.drafter is not None and self.drafter.traits.shape == "tree"
        if self.drafter is not None and self.drafter.is_device_only:
            raise HostError(f"{built} drafts on the device only, and this host asks in host memory; give it propose(view)")
        self.parameters = parameters or {}
        self.stats = Stats(techniques=[TechniqueStats.of(technique) for technique in self.selection])
        self.model, self.tokenizer, self.vocab_size = model, tokenizer, context.vocab_size
        self.taken = getattr(model, "_orig_mod", model)  # what torch.compile() returns hands attributes on to the model that it wraps
        self.busy = threading.Lock()
        self.entered = False

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The options that requests set for themselves: name -> one value, or a list with one for each row of the next calls.

        It may be set anew between calls; what it returns is read only.
        """
        return self.requested.given

    @parameters.setter
    def parameters(self, given: Mapping[str, Any]) -> None:
        self.requested = Parameters(self.selection, given)

    def __del__(self) -> None:
        if not getattr(self, "entered", True):
            warnings.warn("an accelplug session was made and never entered; write 'with accelplug.attach(...):'", stacklevel=2)

    def compile(self, given: object) -> Grammar:
        """Return a grammar that a single request brings, compiled for the session's model.

        :raises ConstraintError: it cannot be enforced.
        """
        return compile_for(self.model, given, self.tokenizer, self.offered)

    def masking(self) -> GrammarProcessor | RowGrammars | None:
        """Return the processor of one call's grammar, or grammars, if there are any."""
        defers = judges_paths(self.selection.verifier)
        parts = [None if one is None else GrammarProcessor(one, positions=self.positions[id(one)], defers=defers) for one in self.grammars]
        return parts[0] if self.grammars == [self.grammar] else RowGrammars(parts)

    def __enter__(self) -> Session:
        self.entered = True
        with _TAKING:
            shadowed = vars(self.taken).get("generate")
            if isinstance(shadowed, Front):
                raise attached_already()
            self._shadowed = shadowed
            self._seams = ExitStack()
            self._seams.enter_context(continuous.governed(self))
            self._seams.enter_context(unattached_copies(self.taken, "generate", own=self._shadowed))
            self._front = self.taken.generate = Front(self, self.model.generate)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        with _TAKING:
            if vars(self.taken).get("generate") is self._front:  # else somebody has put another one there since, which stays
                del self.taken.generate
                if self._shadowed is not None:
                    self.taken.generate = self._shadowed
            self._seams.close()


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
    :param parameters: values for options that a request may set, of the drafter and of the verifier; a list has one value for each
        row of a call. ``session.parameters = {...}`` sets others for the next calls.
    :param plugins: where names are looked up; by default whatever is installed.
    :param batches: whether the rows of a batch each keep all they accept (``"ragged"``) or advance together
        (``"lockstep"``); by default the former where the output is then plain ``generate()``'s.
    :param grammar: what every answer must be, ``{"json_schema": {...}}`` (see `accelplug.hooks.GrammarSpec`), or what `grammar` compiled.
        Its mask lies on every token, and what it forces is drafted, with or without a drafter. A list has one for each prompt of a call,
        None for a prompt that is free; the rows then advance together.
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
    plugins: Registry | None = None,
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
        plugins=plugins,
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


def engine_of(grammars: Sequence[Grammar | None], *, several: bool) -> Technique | None:
    """Return the engine that compiled a session's grammars, None without any.

    :raises OptionError: a list has no grammar, or several engines compiled them.
    """
    engines = {str(one.engine): one.engine for one in grammars if one is not None}
    if several and not engines:
        raise OptionError("grammar= is a list without a grammar; leave it out, or give one for a prompt at least")
    if len(engines) > 1:
        raise OptionError(f"the prompts' grammars come from several engines, {', '.join(engines)}; compile them with one")
    return next(iter(engines.values()), None)
