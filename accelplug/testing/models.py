"""A tiny Llama that goes round in circles and sometimes leaves them, so that drafts come out right, partly right and wrong."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from accelplug.hooks.context import BuildContext

if TYPE_CHECKING:
    from torch import Tensor

VOCAB, HIDDEN = 40, 48
MAX_LENGTH = 256
CIRCLES = (1, 1, 2, 3, 5, 8, 20)
"""Lengths of the circles that the likeliest tokens go round in, :data:`VOCAB` tokens together."""


@cache
def looping_llama(seed: int = 1) -> Any:
    """Return the model: two layers with attention, float64 so that two logits are never near a tie; it has no EOS of its own.

    :param seed: another one makes a model that agrees with it now and then, as a draft model does.

    Its output matrix is its embedding, moved on by one along circles. Random attention on top makes it depend on all
    of the context and now and then change circles.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH, initializer_range=0.18, eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval().double()
        embedding = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, dtype=torch.float64)).Q[:VOCAB]
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(4 * embedding)
        model.get_output_embeddings().weight.copy_(4 * embedding[_before()])
    return model


def _before() -> Tensor:
    """Return the token that each token follows on its circle, [VOCAB]."""
    import torch

    order = list(range(VOCAB))
    for begin, end in pairwise(accumulate(CIRCLES, initial=0)):
        order[begin:end] = [end - 1, *range(begin, end - 1)]
    return torch.tensor(order)


@cache
def byte_tokenizer() -> Any:
    """Return a fast tokenizer for the model: one printable character per token, padding first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<unk>": 1} | {chr(ord("0") + i): i + 2 for i in range(VOCAB - 2)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")


def build_context() -> BuildContext:
    """Describe the model to factories, as the Transformers host does, with four slots and steps already measured."""
    from accelplug.hosts.hf.context import build_context as of_model

    return dataclasses.replace(of_model(looping_llama(), byte_tokenizer()), num_slots=4, step_seconds=lambda: {1: 1.0, 9: 1.4})


@dataclasses.dataclass(frozen=True)
class Call:
    """One greedy ``generate()`` call of the model, as text shows it in a failure."""

    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    eos_token_id: int | None = None

    def __call__(self, model: Any) -> list[list[int]]:
        """Return prompts and outputs, left-padded as a batch."""
        import torch

        width = max(map(len, self.prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in self.prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in self.prompts])
        output: list[list[int]] = model.generate(
            ids, attention_mask=mask, max_new_tokens=self.max_new_tokens, eos_token_id=self.eos_token_id, do_sample=False
        ).tolist()
        return output


@cache
def plain_output(call: Call) -> list[list[int]]:
    """Return what the model says by itself; ask before attaching anything to it."""
    return call(looping_llama())


@cache
def calls() -> tuple[Call, ...]:
    """Return calls that make it hard: one token, a prompt worth copying, one that repeats, an EOS in mid-sentence, a ragged batch."""
    rng = np.random.default_rng(8)
    short, mixed = (int(rng.integers(1, VOCAB)),), tuple(rng.integers(1, VOCAB, 9).tolist())
    circle, repeating = (*range(20, VOCAB), 25), tuple(rng.integers(1, VOCAB, 7).tolist()) * 3
    free = [Call((prompt,), 40) for prompt in (short, mixed, circle, repeating)]
    stopped = [Call(call.prompts, 40, eos_token_id=plain_output(call)[0][-13]) for call in free]
    return (*free, *stopped, Call((mixed,), 1), Call((short, mixed, repeating), 24, eos_token_id=stopped[1].eos_token_id))
