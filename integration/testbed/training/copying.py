"""A start from which a small Llama copies: an induction circuit (Olsson et al. 2022) in its first four layers.

Such a circuit continues with whatever followed the last tokens when they stood together before. A random start needs
most of a short training to find one, and finds a short-sighted one that loops where text repeats. So it is written down
here and kept, and training is left the rest: the fourth layer's other heads and its MLP, the last layer, a part of each
embedding.

A token's embedding is a code of signs. Layer 0's heads look one to four tokens back and write some bits of what they see,
each to a place of its own in the residual stream; layer 1 brings those from four tokens back, layer 2 all from eight, so
that every position knows the sixteen before it. Another head of layer 1 sees the last of the marks between an edit's
parts. Layer 2 tells the line: a head attends to its part's mark and line ends, and the mark's share says how many they
are; neurons make a thermometer of it. Layer 3's queries hold the last sixteen tokens and the line, its keys those of each
position, its values the token there; the change that was asked for goes before the function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

import data

FAST, SLOW = range(12), 19  # of a head's rotary frequencies: those that tell neighbours apart, and the first that hardly turns
BITS = 96  # places of the stream that hold the token itself
IS_CHANGE, IS_EDIT, IS_RESULT, IS_MARK, IS_BEGIN, IS_LINE, IN_CHANGE, IN_EDIT, IN_RESULT, SHARE = range(BITS, BITS + 10)
NEAR = 4  # as many tokens back as layer 0 looks
LINES = (0.5, 1.5, 2.5, 3.5, 5, 6.5, 8, 10, 12, 14.5, 17, 20, 23, 27, 31, 36)  # at which the thermometer's degrees change sign
PARTS = (IN_CHANGE, IN_EDIT, IN_RESULT)
THERMOMETER = range(BITS + 10, BITS + 10 + len(LINES))
MARK_COUNTS = 16  # as many line ends as a part's mark counts
WIDTHS = (9, 8, 6, 5, 4, 4, *[3] * 10)  # how many bits a head compares of the last token, the one before, ...
STORED = [max(pair) for pair in itertools.pairwise(WIDTHS)] + [WIDTHS[-1]]  # of what stood one, two, ... tokens back
GROUPS, HEADS_PER_GROUP = 2, 2
RECENT, OLDER, LINE = 2.5, 1.5, 2.0  # in nats, what it counts that a bit of the last six tokens is the same, ...
EDIT_BEHIND, RESULT_BEHIND, MARK_BEHIND = 4.0, 60.0, 80.0  # and how far places stand back
LARGEST = 0.25  # that training may make of a place in an embedding: more would shrink the circuit's places behind the norms
MARKS = {mark: data.SPECIAL.index(mark) for mark in data.SPECIAL}


def _bits(count: int) -> list[int]:
    """Return which bits of a token are compared, `count` for each group: the first ones of its half."""
    return [group * (BITS // GROUPS) + i for group in range(GROUPS) for i in range(count)]


def _places() -> list[dict[int, int]]:
    """Return for each distance back where in the stream each bit of that token lies; distance 0 is the token itself."""
    at, places = THERMOMETER.stop, [{bit: bit for bit in range(BITS)}]
    for count in STORED:
        places.append({bit: at + i for i, bit in enumerate(_bits(count))})
        at += len(places[-1])
    return places


PLACES = _places()
FREE = max(PLACES[-1].values()) + 1  # the first place of the stream that the circuit leaves alone


class Start:
    """Writes the circuit into a model, and keeps it there.

    :param line_ends: ids of the tokens that begin a line.
    """

    def __init__(self, model: LlamaForCausalLM, line_ends: Iterable[int]) -> None:
        self.model, self.size, self.hidden = model, model.config.head_dim, model.config.hidden_size
        self.layers = [layer.self_attn for layer in model.model.layers]
        self.kept: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.filled = BITS
        self._write(list(line_ends))

    @torch.no_grad()
    def keep(self) -> None:
        """Put the circuit back after an optimizer's step."""
        for parameter, mask, value in self.kept:
            parameter.copy_(torch.where(mask, value, parameter))
        self.model.model.embed_tokens.weight[:, FREE:].clamp_(-LARGEST, LARGEST)

    @torch.no_grad()
    def _write(self, line_ends: list[int]) -> None:
        for layer in self.model.model.layers:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
        self._embed(self.model.model.embed_tokens.weight, line_ends)
        self.model.model.norm.weight.fill_(0.2)
        for head, distance in enumerate(range(1, NEAR + 1)):
            _look_back(self.layers[0], head, distance, self.model.config.rope_parameters["rope_theta"])
            self._carry(0, head, list(PLACES[distance].items()), first=head % HEADS_PER_GROUP * 64)
        self.filled += sum(map(len, PLACES[1 : NEAR + 1]))
        self._bring(1, NEAR)
        self._tell_part(1, 2)
        self.filled += sum(map(len, PLACES[NEAR + 1 : 2 * NEAR + 1])) + 2
        self._bring(2, 2 * NEAR)
        self._tell_line(2, 2)
        self.filled += sum(map(len, PLACES[2 * NEAR + 1 :])) + len(LINES)
        for group in range(GROUPS):
            self._match(3, group)
            self._copy(3, group)
        self._protect()

    @property
    def gain(self) -> float:
        """What takes a place's size after a norm back to that before it, by how many places are filled with 0.5."""
        return 0.5 * (self.filled / self.hidden) ** 0.5

    def _embed(self, tokens: Tensor, line_ends: list[int]) -> None:
        # Large beside the optimizer's steps, which would wash embeddings of the usual 0.02 away.
        codes = torch.randint(0, 2, (len(tokens), BITS), generator=torch.Generator().manual_seed(1)) - 0.5
        tokens[:, :FREE] = 0
        tokens[:, FREE:] *= 5
        tokens[:, :BITS] = codes
        tokens[[MARKS[data.CHANGE], MARKS[data.RESULT]]] = tokens[MARKS[data.EDIT]].clone()  # they begin alike
        for mark, place in ((data.CHANGE, IS_CHANGE), (data.EDIT, IS_EDIT), (data.RESULT, IS_RESULT)):
            tokens[MARKS[mark], place] = tokens[MARKS[mark], IS_MARK] = 0.5
        tokens[MARKS[data.SAME], IS_MARK] = 0.5
        tokens[[MARKS[data.CHANGE], MARKS[data.EDIT], MARKS[data.RESULT]], IS_BEGIN] = 0.5
        tokens[[*line_ends, MARKS[data.SAME]], IS_LINE] = 0.5

    def _attend(self, layer: int, head: int, query: dict[int | None, float], key: dict[int | None, float], dim: int) -> None:
        """Let one dimension of a head compare places of the stream, None standing for a constant."""
        attention, group = self.layers[layer], head // HEADS_PER_GROUP
        for projection, row, parts in ((attention.q_proj, head, query), (attention.k_proj, group, key)):
            for place, factor in parts.items():
                if place is None:
                    projection.bias[row * self.size + dim] = factor * self.size**0.25
                else:
                    projection.weight[row * self.size + dim, place] = factor * self.gain * self.size**0.25

    def _carry(self, layer: int, head: int, moves: Sequence[tuple[int, int]], first: int = 0) -> None:
        """Let a head write what stands at some places of the attended position to others of its own."""
        attention, group = self.layers[layer], head // HEADS_PER_GROUP
        for at, (source, place) in enumerate(moves, first):
            attention.v_proj.weight[group * self.size + at] = 0
            attention.v_proj.weight[group * self.size + at, source] = self.gain
            attention.o_proj.weight[place, head * self.size + at] = 1.0

    def _bring(self, layer: int, distance: int) -> None:
        """Let a layer's first head bring what the token so far back knows of those before it."""
        _look_back(self.layers[layer], 0, distance, self.model.config.rope_parameters["rope_theta"])
        reach = range(distance + 1, min(2 * distance, len(WIDTHS)) + 1)
        self._carry(layer, 0, [(PLACES[d - distance][bit], place) for d in reach for bit, place in PLACES[d].items()])

    def _tell_part(self, layer: int, head: int) -> None:
        """Let a head see the last mark between an edit's parts, and write which it is."""
        self._clear(layer, head)
        self._attend(layer, head, {None: 3.0}, {IS_CHANGE: 14.0, IS_EDIT: 22.0, IS_RESULT: 30.0}, _slow(self.size)[0])
        self._carry(layer, head, list(zip((IS_CHANGE, IS_EDIT, IS_RESULT), PARTS, strict=True)))

    def _tell_line(self, layer: int, head: int) -> None:
        """Let a head tell how many lines its part has so far; the layer's first neurons make a thermometer of that."""
        self._clear(layer, head)
        slow = _slow(self.size)
        self._attend(layer, head, {None: 2.0}, {IS_LINE: 7.0, IS_BEGIN: 7.0 + math.log(MARK_COUNTS)}, slow[0])
        for dim, part in zip(slow[1:4], PARTS, strict=True):
            self._attend(layer, head, {part: 6.0}, {part: 6.0}, dim)
        self._carry(layer, head, [(IS_BEGIN, SHARE)])
        mlp, shares = self.model.model.layers[layer].mlp, [MARK_COUNTS / (MARK_COUNTS + line) for line in LINES]
        steep, neuron = 40.0, itertools.count()
        wide = [1.0, *shares, 0.12]

        def relu(constant: float, share: float, place: int, factor: float) -> None:
            """Add `factor * relu(constant + share * SHARE)` to a place, inside an edit."""
            at = next(neuron)
            mlp.gate_proj.weight[at], mlp.up_proj.weight[at], mlp.down_proj.weight[:, at] = 0, 0, 0
            mlp.gate_proj.weight[at, SHARE] = steep * share * 2 * self.gain
            for part in PARTS:  # one of them is 0.5 inside an edit
                mlp.gate_proj.weight[at, part] = steep * constant * 2 * self.gain
                mlp.up_proj.weight[at, part] = 2 * self.gain
            mlp.down_proj.weight[place, at] = factor / steep

        for i, place in enumerate(THERMOMETER):
            half = (wide[i] - wide[i + 2]) / 2
            relu(1 - shares[i] / half, 1 / half, place, 0.5)
            relu(-1 - shares[i] / half, 1 / half, place, -0.5)
            relu(1.0, 0.0, place, -0.5)

    def _match(self, layer: int, group: int) -> None:
        """Let a group's first head find the keys before which the same tokens stood, on the same line if it can."""
        head, slow = group * HEADS_PER_GROUP, iter(_slow(self.size))
        self._clear(layer, head)
        pairs = []
        for back, count in enumerate(WIDTHS):
            bits = _bits(count)[group * count : (group + 1) * count]
            pairs += [(PLACES[back][bit], PLACES[back + 1][bit], RECENT if back < 6 else OLDER) for bit in bits]
        pairs += [(place, place, LINE) for place in THERMOMETER]
        for query, key, nats in pairs:
            unit = 2 * nats**0.5  # places hold halves
            self._attend(layer, head, {query: unit}, {key: unit}, next(slow))
        behind = {IN_EDIT: EDIT_BEHIND, IN_RESULT: RESULT_BEHIND, IS_MARK: MARK_BEHIND}
        self._attend(layer, head, {None: 4.0}, {place: -2 * nats / 4 for place, nats in behind.items()}, next(slow))

    def _copy(self, layer: int, group: int) -> None:
        """Let a group carry a half of the token's bits from where it attends."""
        share = BITS // GROUPS
        self.layers[layer].v_proj.weight[group * self.size : (group + 1) * self.size] = 0
        self._carry(layer, group * HEADS_PER_GROUP, [(share * group + i, share * group + i) for i in range(share)])
        rows = slice(share * group, share * (group + 1))
        self.layers[layer].o_proj.weight[rows] *= 3.0

    def _clear(self, layer: int, head: int) -> None:
        attention, group = self.layers[layer], head // HEADS_PER_GROUP
        attention.k_proj.weight[group * self.size : (group + 1) * self.size] = 0
        attention.q_proj.weight[head * self.size : (head + 1) * self.size] = 0

    def _protect(self) -> None:
        """Note what training must leave alone: three whole layers, the fourth's copying heads, the tokens' codes."""
        *below, layer = self.model.model.layers[:4]
        for module in below:
            module.requires_grad_(False)
        # What reaches the fourth layer is fixed: no gradient goes further down, to the embeddings neither.
        layer.register_forward_pre_hook(lambda _, given: (given[0].detach(), *given[1:]))
        layer.input_layernorm.requires_grad_(False)
        attention, size = layer.self_attn, self.size
        copying = torch.arange(attention.q_proj.out_features) // size % HEADS_PER_GROUP == 0
        self._hold(attention.q_proj.weight, copying.unsqueeze(1))
        self._hold(attention.q_proj.bias, copying)
        attention.k_proj.requires_grad_(False)
        attention.v_proj.requires_grad_(False)
        self._hold(attention.o_proj.weight, copying)
        self._hold(self.model.model.embed_tokens.weight, torch.arange(self.hidden) < FREE)

    def _hold(self, parameter: nn.Parameter, mask: Tensor) -> None:
        self.kept.append((parameter, mask.expand_as(parameter).clone(), parameter.detach().clone()))


def _look_back(attention: nn.Module, head: int, distance: int, theta: float) -> None:
    """Let a head attend `distance` tokens back: constant query and key, the one turned by that much."""
    size, group = attention.head_dim, head // HEADS_PER_GROUP
    half = size // 2
    angles = distance * theta ** (-torch.arange(half) / half)
    attention.k_proj.weight[group * size : (group + 1) * size] = 0
    attention.q_proj.weight[head * size : (head + 1) * size] = 0
    for i in FAST:
        attention.k_proj.bias[group * size + i] = 8.0
        attention.q_proj.bias[head * size + i] = 8.0 * torch.cos(angles[i])
        attention.q_proj.bias[head * size + half + i] = -8.0 * torch.sin(angles[i])


def _slow(size: int) -> list[int]:
    """Return a head's dimensions that hardly turn, the steadiest first."""
    return sorted((i for i in range(size) if i % (size // 2) >= SLOW), key=lambda i: -(i % (size // 2)))
