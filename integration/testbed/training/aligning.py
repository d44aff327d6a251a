"""A start from which a small T5 copies what its encoder reads, and keeps its place where the two texts differ.

A token's embedding is a code of signs in the first places of the residual stream. The encoder's first layers are trained to
turn each token's code into that of the token it should become, and to raise a flag over tokens that should vanish. Its
last layer, written here, then notes at each token what stands before it in the text as it should be: the nearest token that
stays, and two averages of those before, one over some three tokens and one over ten. The decoder notes the same averages of what it
has written; its cross-attention finds the place before which the same tokens stand and carries the code there into the output.

A change therefore does not cost the place: keys and queries both speak of the corrected text. Relative biases, which a
T5 shares between layers, give each head its distances.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

CODE = range(80)  # places of the stream that hold the token itself, or the one it should become
BEFORE, FEW, MANY = range(80, 120), range(120, 152), range(152, 176)  # what stands before, and the averages of that
ONE, FLAG = 176, 177
FREE = 178  # the first place that the circuit leaves alone
SEEN = {BEFORE: CODE[:40], FEW: CODE[40:72], MANY: CODE[56:]}  # which signs each of them shows
COMPARED = {BEFORE: (21, 0.8), FEW: (14, 0.9), MANY: (12, 1.5)}  # how many of them a cross-attention's head compares, and how keenly
DECAYS = {BEFORE: 4.0, FEW: 1.0, MANY: 0.25}  # nats per token of distance
AVERAGED = {BEFORE: 1.0, FEW: 1.5, MANY: 2.5}  # what makes up for averages being small
LOUD = 4.0  # how much of the copied code goes into the output, beside the last token's own
FLAG_COST = 3.0  # of attending to a flagged token
FAR = 24.0  # nats by which a head avoids the wrong side, less for the token itself
LARGEST = 0.7  # that training may make of a free place in an embedding


class Circuit:
    """Writes the circuit into a model, and keeps it there."""

    def __init__(self, model: T5ForConditionalGeneration, begin: int) -> None:
        self.model, self.size = model, model.config.d_kv
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._write(begin)
        self._protect()

    @torch.no_grad()
    def keep(self) -> None:
        """Put the circuit back after an optimizer's step."""
        for parameter, mask, value in self.kept:
            parameter.copy_(torch.where(mask, value, parameter))
        self.model.shared.weight[:, FREE:].clamp_(-LARGEST, LARGEST)

    @torch.no_grad()
    def _write(self, begin: int) -> None:
        for name, weight in self.model.named_parameters():
            if name.endswith(("Attention.o.weight", "wo.weight", "relative_attention_bias.weight")):
                nn.init.zeros_(weight)
            elif name.endswith(("q.weight", "k.weight", "v.weight", "wi.weight")):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * (0.5 if name.endswith(("q.weight", "k.weight")) else 1.0))
        self._embed(self.model.shared.weight, begin)
        encoder, decoder = self.model.encoder.block, self.model.decoder.block
        left = [{-d: -rate * (d - 1) for d in range(1, 128)} | {0: -FAR + 4} for rate in DECAYS.values()]
        right = [{d: -rate * (d - 1) for d in range(1, 128)} | {0: 0.0} for rate in (2.0, 0.5)]
        _distances(encoder[0].layer[0].SelfAttention, [*left, *right])
        written = [{-d: -rate * d for d in range(128)} for rate in (DECAYS[FEW], DECAYS[MANY])]
        _distances(decoder[0].layer[0].SelfAttention, [*written, *({-d: 0.0 if d == n else -4.0 for d in range(128)} for n in (1, 2, 3))])
        last = encoder[-1].layer[0].SelfAttention
        for head, place in enumerate(DECAYS):
            self._average(last, head, place)
            self._link(last, head, 0, (ONE, 1.0), (FLAG, -FLAG_COST))
        for head, place in enumerate((FEW, MANY)):
            self._average(decoder[0].layer[0].SelfAttention, head, place)
        for head in range(self.model.config.num_heads):
            self._find(decoder[0].layer[1].EncDecAttention, head)
        self.model.decoder.final_layer_norm.weight[: len(CODE)] = 3.0
        self.model.decoder.final_layer_norm.weight[len(CODE) : FREE] = 0.0

    def _embed(self, weight: Tensor, begin: int) -> None:
        nn.init.normal_(weight, std=0.3)
        weight[:, : len(CODE)] = weight[:, : len(CODE)].sign()
        weight[:, len(CODE) : FREE] = 0
        weight[:, ONE], weight[:, FLAG] = 1, -1
        weight[begin, FLAG] = 1  # read, never written

    def _average(self, attention: T5Attention, head: int, place: range) -> None:
        """Let a head average the tokens at its distances, and write the signs that a place shows."""
        self._clear(attention, head)
        for i, (sign, dim) in enumerate(zip(SEEN[place], place, strict=True)):
            attention.v.weight[head * self.size + i, sign] = 1.0
            attention.o.weight[dim, head * self.size + i] = 0.63 * AVERAGED[place]

    def _find(self, attention: T5Attention, head: int) -> None:
        """Let a head find the token before which the same tokens stand as were written last, and carry its share of the code."""
        self._clear(attention, head)
        row = 0
        for place, (count, keen) in COMPARED.items():
            for i in range(count):
                at = (head * len(place) // self.model.config.num_heads + i) % len(place)
                self._link(attention, head, row, (SEEN[place][at] if place is BEFORE else place[at], keen), (place[at], keen))
                row += 1
        self._link(attention, head, row, (ONE, 1.0), (FLAG, -2 * FLAG_COST))
        share = len(CODE) // self.model.config.num_heads
        for i in range(share):
            attention.v.weight[head * self.size + i, head * share + i] = 1.0
            attention.o.weight[head * share + i, head * self.size + i] = LOUD

    def _link(self, attention: T5Attention, head: int, row: int, query: tuple[int, float], key: tuple[int, float]) -> None:
        attention.q.weight[head * self.size + row, query[0]] = query[1]
        attention.k.weight[head * self.size + row, key[0]] = key[1]

    def _clear(self, attention: T5Attention, head: int) -> None:
        rows = slice(head * self.size, (head + 1) * self.size)
        for part in (attention.q, attention.k, attention.v):
            part.weight[rows] = 0

    def _protect(self) -> None:
        """Note what training must leave alone: the circuit's heads and places, the tokens' codes."""
        last, (written, found, _) = self.model.encoder.block[-1].layer[0].SelfAttention, self.model.decoder.block[0].layer
        for attention, heads in ((last, len(DECAYS)), (written.SelfAttention, 2), (found.EncDecAttention, self.model.config.num_heads)):
            ours = torch.arange(attention.q.out_features) < heads * self.size
            for weight, mask in (
                (attention.q, ours[:, None]),
                (attention.k, ours[:, None]),
                (attention.v, ours[:, None]),
                (attention.o, ours),
            ):
                self._hold(weight.weight, mask)
        for stack in (self.model.encoder, self.model.decoder):
            stack.block[0].layer[0].SelfAttention.relative_attention_bias.requires_grad_(False)
            places = torch.arange(self.model.config.d_model)
            taken = ((places >= len(CODE)) & (places <= ONE)).unsqueeze(1)
            for block in stack.block:
                for part in (block.layer[0].SelfAttention.o, block.layer[-1].DenseReluDense.wo):
                    self._hold(part.weight, taken)
        self._hold(self.model.shared.weight, torch.arange(self.model.config.d_model) < FREE)

    def _hold(self, parameter: nn.Parameter, mask: Tensor) -> None:
        self.kept.append((parameter, mask.expand_as(parameter).clone(), parameter.detach().clone()))


def _distances(attention: T5Attention, heads: list[dict[int, float]]) -> None:
    """Give each head its bias by distance (of what it attends to, negative before it); other distances are far."""
    weight = attention.relative_attention_bias.weight
    weight.fill_(-FAR)
    for head, biases in enumerate(heads):
        distances = torch.tensor(sorted(biases, key=abs, reverse=True))  # a bucket of several takes the nearest's
        buckets = attention._relative_position_bucket(
            distances, not attention.is_decoder, attention.relative_attention_num_buckets, attention.relative_attention_max_distance
        )
        for distance, bucket in zip(distances.tolist(), buckets.tolist(), strict=True):
            weight[bucket, head] = biases[distance]
