"""Decoders that are made to read one token at a time behind their cache, and what has them read several, for one forward pass of one model.

FSMT builds no causal mask there, and ProphetNet none either, nor the distances between its tokens. Each is given what it makes of the
tokens one by one: nothing of a class is changed, and nothing of the model once the pass is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from accelplug._errors import HostError


def reading_several(model: Any) -> Callable[[Any, int, int], AbstractContextManager[None]]:
    """Return what a forward pass over a cache, `width` slots behind `cached` tokens, has to run within.

    :raises HostError: the model cannot be made to read several tokens in this release of Transformers.
    """
    decoders = {"fsmt": ("FSMTDecoder", _fsmt), "prophetnet": ("ProphetNetDecoder", _prophetnet)}
    name, make = decoders.get(model.config.get_text_config(decoder=True).model_type, ("", None))
    if make is None:
        return lambda _past, _width, _cached: nullcontext()
    decoder = next(module for module in model.modules() if type(module).__name__ == name)
    if make is _fsmt and not {"past_key_values_length", "cache_length"} & set(signature(decoder.embed_positions.forward).parameters):
        raise HostError(
            f"{type(model).__name__} gives every token behind its cache the same position in this release of Transformers, where its output is wrong; "
            "use a later one, such as 5.19"
        )
    return lambda past, width, cached: make(decoder, past, width, cached)


@contextmanager
def _standing_in(others: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Have objects use other attributes, (object, name, value), than they have."""
    own = [vars(thing).get(name) for thing, name, _ in others]
    for thing, name, value in others:
        setattr(thing, name, value)
    try:
        yield
    finally:
        for (thing, name, _), before in zip(others, own, strict=True):
            delattr(thing, name)
            if before is not None:
                setattr(thing, name, before)


def _unseen(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


@contextmanager
def _fsmt(decoder: Any, _past: Any, width: int, cached: int) -> Iterator[None]:
    weight = decoder.embed_tokens.weight
    mask = _unseen(torch.ones(width, cached + width, dtype=torch.bool, device=weight.device).tril_(cached), weight.dtype)
    hook = decoder.register_forward_pre_hook(lambda _module, args, named: (args, {**named, "decoder_causal_mask": mask}), with_kwargs=True)

    def positions(tokens: Tensor, padding: int) -> Tensor:
        # A padding token is one place behind where another would be, and moves nothing that follows it.
        return torch.arange(width, device=tokens.device) + padding + tokens.ne(padding)

    try:
        with _standing_in([(decoder.embed_positions, "make_positions", positions)]):
            yield
    finally:
        hook.remove()


def _prophetnet(decoder: Any, past: Any, width: int, cached: int) -> AbstractContextManager[None]:
    from transformers.models.prophetnet.modeling_prophetnet import compute_relative_buckets

    if width == 1:
        return nullcontext()
    embeddings, device, padding = decoder.position_embeddings, decoder.word_embeddings.weight.device, decoder.position_embeddings.padding_idx
    places = torch.arange(cached + 1, cached + 1 + width, device=device) + padding
    keys = torch.arange(cached + width, device=device)
    seen = torch.ones(width, cached + width, dtype=torch.bool, device=device).tril_(cached)
    # Beside the main stream's keys, each slot of a predicting stream has one of its own there.
    own = torch.eye(width, dtype=torch.bool, device=device)

    def embed(shape: Sequence[int], *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        ids = places.expand(shape[0], -1)
        return embeddings._forward(ids), ids

    def buckets(ids: Tensor) -> tuple[Tensor, Tensor]:
        of_main, to_itself = keys - ids.unsqueeze(2), torch.full((len(ids), width, width), -padding, device=device)
        distances = [of_main + 1, torch.cat([of_main, to_itself], 2)]
        main, predicting = (compute_relative_buckets(decoder.num_buckets, decoder.relative_max_distance, far, False) for far in distances)
        return main, predicting

    return _standing_in(
        [
            (past, "get_seq_length", lambda *_: 0),  # or it takes one token
            (embeddings, "forward", embed),
            (decoder, "compute_buffered_relative_buckets", buckets),
            (decoder, "prepare_attention_mask", lambda states, _: _unseen(seen, states.dtype)),
            (decoder, "prepare_predict_attention_mask", lambda states, _: _unseen(torch.cat([seen, own], 1), states.dtype)[None, None, None]),
            *((layer.self_attn, "get_predict_relative_pos_embeddings", _predicting(layer.self_attn)) for layer in decoder.layers),
        ]
    )


def _predicting(attention: Any) -> Callable[..., Tensor]:
    def weigh(states: Tensor, _weights: Tensor, _positions: Tensor, buckets: Tensor) -> Tensor:
        """Return what each predicting stream adds to its weights by distance, [count, streams, heads, width, keys].

        The model's own way mixes up slots where there are several.
        """
        by_bucket: Tensor = attention.relative_pos_embeddings(states)  # of [count, width, streams, hidden_size]
        by_bucket = by_bucket.view(*states.shape[:3], attention.num_buckets, attention.num_attn_heads).permute(0, 2, 4, 1, 3)
        return by_bucket.gather(-1, buckets[:, None, None].expand(*by_bucket.shape[:4], -1).long())

    return weigh
