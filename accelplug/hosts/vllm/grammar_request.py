"""Which grammar a request asks for, read alike in the front end and in the engine core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from accelplug._errors import OptionError
from accelplug.hooks.masking import GrammarSpec
from accelplug.hooks.options import Offer
from accelplug.hooks.spelling import Spec
from accelplug.hosts.vllm.settings import VLLMS

ENGINE: Final = "grammar"
"""The option with which a request chooses an engine."""
MORE: Final = "all_of"
"""The option with which a request names further grammars, all of which hold beside the one that vLLM has a word for."""
STATEMENT: Final = "statement"
"""The option with which a request has its answer say what its grammar enforced and what was checked."""
_WHO: Final = "a request's grammar"
OFFERS: Final[Mapping[str, Offer]] = {
    ENGINE: Offer(_WHO, "str", {}),
    "strict": Offer(_WHO, Literal[True, False], {}),  # which admits 1 and 0, what truth values are over HTTP
    "format": Offer(_WHO, Literal["assert", "annotate"], {}),
    "whitespace": Offer(_WHO, Literal["any", "spaced", "compact"], {}),
    "order": Offer(_WHO, Literal["declared", "any"], {}),
    MORE: Offer(_WHO, "list | str", {}),  # text over HTTP, where values are plain
    STATEMENT: Offer(_WHO, Literal[True, False], {}),
}
"""What requests may set where a grammar's engine is configured; those without a name above are options of `GrammarSpec`."""
_VLLMS_ALONE: Final = ("whitespace_pattern", "disable_additional_properties")


class Asked(NamedTuple):
    """What a request asks for.

    :param engine: as the request names it; None for the server's.
    """

    engine: str | None
    spec: GrammarSpec


def asked(default: Spec, config: Any, params: Any, given: Mapping[str, Any]) -> Asked | None:
    """Return the grammar that accelplug compiles for a request; None where there is none, or vLLM's own backend has it.

    :param default: the server's engine.
    :param config: vLLM's VllmConfig.
    :param params: vLLM's SamplingParams; PoolingParams ask for nothing.
    :param given: what the request sets for accelplug.
    :raises OptionError: an option that has no effect on what compiles the grammar, or where there is no grammar, or grammars that are none.
    :raises ConstraintError: what should be JSON is none.
    """
    options = {name: given[name] for name in OFFERS if name in given}
    wanted: Any = getattr(params, "structured_outputs", None)
    if wanted is None and options:
        raise OptionError(f"the request sets {', '.join(options)} and has no grammar to go by; add structured_outputs or a response_format")
    beyond = config.model_config.skip_tokenizer_init or config.model_config.is_diffusion
    found = None if wanted is None or beyond else _constraint(wanted)
    if found is None:  # vLLM has refusals of its own for what is left
        return None
    engine, more = options.pop(ENGINE, None), options.get(MORE)
    if (engine or str(default)) == VLLMS:
        if options:
            raise OptionError(f"{', '.join(options)} mean nothing to vLLM's own backend; leave them out, or set accelplug.grammar to 'auto'")
        return None
    for name in (MORE, STATEMENT):
        options.pop(name, None)
    for name in _VLLMS_ALONE:
        if getattr(wanted, name):
            raise OptionError(f"structured_outputs.{name} is for vLLM's own backends; leave it out, or set accelplug.grammar to 'vllm'")
    kind, text = found
    if kind != "json_schema" and (useless := options.keys() - {"strict"}):
        raise OptionError(f"the request sets {', '.join(sorted(useless))}, for the JSON of a schema, and has a {kind}; leave what it sets out")
    if kind == "json_schema" and (wanted.disable_any_whitespace or config.structured_outputs_config.disable_any_whitespace):
        options = {"whitespace": "compact", **options}
    strict = {"strict": bool(options.pop("strict"))} if "strict" in options else {}
    spec = GrammarSpec.of({kind: text, **options, **strict})
    return Asked(engine, spec if more is None else GrammarSpec.of({MORE: (spec, *further(more))}))


def further(given: Any) -> tuple[GrammarSpec, ...]:
    """Return the grammars that a request names beside the one that vLLM has a word for.

    :param given: a list of what `GrammarSpec.of` reads, or its JSON.
    :raises OptionError: it is no list of grammars.
    :raises ConstraintError: what should be JSON is none.
    """
    return GrammarSpec.of({MORE: given}).parts()


def _constraint(wanted: Any) -> tuple[str, Any] | None:
    """Return kind and content of vLLM's StructuredOutputsParams; None where nothing is wanted."""
    if wanted.json is not None:
        return "json_schema", wanted.json
    if wanted.json_object:
        return "json_schema", {"type": "object"}
    if wanted.regex is not None:
        return "regex", wanted.regex
    if wanted.choice is not None:
        return "choice", wanted.choice
    if wanted.grammar is not None:
        from vllm.v1.structured_output.utils import grammar_is_likely_lark

        return ("lark" if grammar_is_likely_lark(wanted.grammar) else "ebnf"), wanted.grammar
    return None if wanted.structural_tag is None else ("structural_tag", wanted.structural_tag)
