"""What factories are told about a loaded model."""

from __future__ import annotations

from typing import Any

from accelplug._errors import HostError
from accelplug.hooks.context import BuildContext
from accelplug.hosts.costs import StepCosts
from accelplug.hosts.hf.candidates import candidates_of
from accelplug.hosts.hf.compat import HOST
from accelplug.hosts.hf.loading import load_second
from accelplug.hosts.vocabulary import token_bytes


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
