"""Models that read the whole text at every step, as plain ``generate()`` has them do without a cache.

The drafts ride behind it in the same forward pass. Nothing is kept between steps, so there is nothing to roll back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from accelplug._errors import HostError
from accelplug.hosts.hf.compat import cache_name, takes_cache
from accelplug.hosts.hf.given import placeholders
from accelplug.hosts.hf.inside import of_text
from accelplug.hosts.hf.masks import Attention
from accelplug.hosts.hf.ragged import Rows
from accelplug.hosts.hf.tree import Tree


class Whole:
    """The target model without a cache, for the rows of one call.

    Each pass is given what plain ``generate()`` would give it, made by Transformers one token after the other. Rows of several lengths
    are filled up behind their drafts, which nothing before them sees.

    :param rows: the call's rows where they advance apart; those that are over are left out of the passes.
    """

    pads = False
    most_drafts: int | None = None

    def __init__(self, model: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], rows: Rows | None = None) -> None:
        self.model, self.rows, self.device = model, rows, input_ids.device
        self.side = "decoder_" if model.config.is_encoder_decoder else ""
        self.past = model_kwargs.get(cache_name())  # left as it is: empty, of a model that takes none
        self.given, self.length = dict(model_kwargs), input_ids.shape[1]  # what is given beside so many tokens
        self.last = model._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
        self.logits: Tensor = self.last.logits[:, -1:].to(self.device)  # [count, 1, vocab_size]
        self.is_causal = bool(model.training)  # not known yet; with dropout it cannot be
        self.is_watched = bool(generation_config.output_attentions or generation_config.output_hidden_states)
        self.outputs = self.last if self.is_watched else None
        self.attention, self.placeholders = Attention(model), placeholders(model, model_kwargs)
        self.texts: list[list[int]] = input_ids.tolist()  # committed but for the last token, which the next pass reads
        self.batch, self.read = list(range(len(input_ids))), [0] * len(input_ids)  # the rows of a pass; what follows their texts in it
        self._check(input_ids)

    def readable(self, trees: list[Tree], _last_tokens: Sequence[int], _over: Sequence[bool]) -> list[Tree]:
        """Return the drafts as they are: positions are counted from the text's beginning, as in plain ``generate()``."""
        return trees

    def _check(self, input_ids: Tensor) -> None:
        """Refuse what plain ``generate()`` does not simply give the text so far."""
        name = type(self.model).__name__
        fed = self._inputs(torch.cat([input_ids, input_ids[:, -1:]], 1))[f"{self.side}input_ids"].shape[1]
        if fed <= self.length:
            instead = "pass use_cache=False" if self.given["use_cache"] else "use another model"
            raise HostError(f"{name} keeps a memory of its own kind, from which rejected drafts cannot be taken; {instead}")
        if fed > self.length + 1:
            raise HostError(f"{name} foretells at a token put behind the text, one for each forward pass, so drafts cannot be verified; use another model")
        mask = self.given.get(f"{self.side}attention_mask")
        if self.is_watched and mask is not None and not mask.all():
            raise HostError(
                "without a cache the hidden states and attentions of a prompt's padding, which sees everything, are other ones with drafts; "
                "give prompts of one length, or leave them out of the output"
            )
        shapes = {weights.shape[-2:] for weights in self.last.get(f"{self.side}attentions") or () if weights is not None}
        if self.is_watched and any(rows != columns for rows, columns in shapes):
            raise HostError(f"{name} returns attentions that have no part for each token, so those of drafts cannot be told apart; leave output_attentions out")

    def _inputs(self, ids: Tensor) -> dict[str, Any]:
        """Return what plain ``generate()`` would give to a forward pass over `ids` [rows, length]."""
        given = self._grown(ids.shape[1])
        inputs: dict[str, Any] = self.model.prepare_inputs_for_generation(ids, next_sequence_length=1 if given["use_cache"] else None, **given)
        return inputs

    def _grown(self, length: int) -> dict[str, Any]:
        given = dict(self.given)
        for _ in range(length - self.length):
            given = self.model._update_model_kwargs_for_generation(self.last, given, is_encoder_decoder=bool(self.side))
        return given

    def step(self, last_tokens: Sequence[int], trees: Sequence[Tree]) -> Tensor:
        """Run the texts, the last committed tokens and the draft nodes; return logits [rows, 1 + most nodes, vocab_size]."""
        self._leave()
        self.read = list(last_tokens)
        texts = [[*self.texts[row], last_tokens[row], *self._readable(last_tokens[row], trees[row])] for row in self.batch]
        begins, length = [len(self.texts[row]) for row in self.batch], max(map(len, texts))
        inputs = self._inputs(torch.tensor([text + text[-1:] * (length - len(text)) for text in texts], device=self.device))
        own = [trees[row] for row in self.batch]
        if any(tree.parents is not None for tree in own):
            inputs |= self._branches(own, begins, length, inputs)
        num_wanted = length - min(begins) + 1  # the first one, which is known, shows whether the model is causal
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = num_wanted
        self.last = self.model(**inputs, return_dict=True)
        self.outputs = self.last if self.is_watched else None
        return self._own_logits(self.last.logits[:, -num_wanted:].to(self.device), begins, 1 + max(map(len, own)))

    def _readable(self, last: int, tree: Tree) -> Sequence[int]:
        """Return the nodes' tokens, another one where the model would fail to find the image that one stands for."""
        return [last if token in self.placeholders else token for token in tree.tokens] if self.placeholders else tree.tokens

    def _own_logits(self, logits: Tensor, begins: list[int], width: int) -> Tensor:
        """Return of the last positions' logits those of every row's own slots, `width` of them behind its text."""
        places = torch.tensor(begins, device=self.device).unsqueeze(1) - min(begins) + torch.arange(1 + width, device=self.device)
        own = logits.gather(1, places.clamp(max=logits.shape[1] - 1).unsqueeze(2).expand(-1, -1, logits.shape[2]))
        if not self.is_causal and not alike(own[:, :1], self.logits[self.batch]):
            raise HostError(
                f"{type(self.model).__name__} makes something else of a token once others follow it, so drafts would change its output; use a causal model"
            )
        self.is_causal = True
        return own[:, 1:]

    def _branches(self, trees: Sequence[Tree], begins: Sequence[int], length: int, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return mask and positions that put each tree's node behind its ancestors alone."""
        places = torch.arange(length, device=self.device).repeat(len(trees), 1)
        seen = torch.ones(length, length, dtype=torch.bool, device=self.device).tril_().repeat(len(trees), 1, 1)
        if (mask := inputs.get(f"{self.side}attention_mask")) is not None:
            seen &= mask.bool().unsqueeze(1)
        for row, (tree, begin) in enumerate(zip(trees, begins, strict=True)):
            own = slice(begin, begin + 1 + len(tree))
            places[row, own] = begin + torch.tensor(tree.depths(), device=self.device)
            seen[row, own, own] = tree.ancestors(1 + len(tree)).to(self.device)
        seen |= torch.eye(length, dtype=torch.bool, device=self.device)  # softmax over nothing, as in padding, is no number
        positions = inputs.get(f"{self.side}position_ids")
        if positions is not None:
            shape = (*positions.shape[:-2], *places.shape)
            positions = positions.expand(shape).gather(-1, places.expand(shape))
        own_masks = self.attention.windowed(seen, places, places)
        return {f"{self.side}attention_mask": own_masks, f"{self.side}position_ids": places if positions is None else positions}

    def commit(self, trees: Sequence[Tree], paths: Sequence[Sequence[int]], kept: int) -> None:
        """Append the last committed token and the first `kept` nodes of every row's accepted path to its text."""
        for row in self.batch:
            accepted = [trees[row].tokens[node] for node in paths[row][:kept]]
            if not self.placeholders.isdisjoint(accepted):
                raise HostError(
                    f"{type(self.model).__name__} wrote a token that stands for an image, audio or video, on which plain generate() fails without a cache; "
                    "leave use_cache on, or suppress that token"
                )
            self.texts[row] += [self.read[row], *accepted]
        length = min(len(self.texts[row]) for row in self.batch)
        self.given, self.length = self._grown(length), length

    def slots(self, paths: Sequence[Sequence[int]], kept: int) -> list[list[int]]:
        """Return the last forward pass's slots of every row's committed tokens, counted from behind its text."""
        return [[0, *(node + 1 for node in path[:kept])] for path in paths]

    def inside(self, name: str, layers: Sequence[Any], slots: Tensor) -> tuple[Any, ...]:
        """Return what the layers' outputs `name` have of the text and of these slots, as if a pass had ended there."""
        return tuple(of_text(name, states, slots, len(self.texts[0])) for states in layers)

    def finish(self) -> None:
        """Leave everything as plain ``generate()`` would: it is already."""

    def _leave(self) -> None:
        """Take the rows that are over out of the passes."""
        if self.rows is None or len(self.batch) == len(self.rows.active):
            return
        stay = torch.tensor([i for i, row in enumerate(self.batch) if not self.rows.is_over(row)], device=self.device)
        for name in ("attention_mask", "position_ids"):
            tensor = self.given.get(name)
            if tensor is not None and tensor.shape[-2] == len(self.batch):
                self.given[name] = tensor.index_select(-2, stay.to(tensor.device))
        self.batch = [self.batch[i] for i in stay.tolist()]


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether logits differ by rounding at most."""
    most = 3e-4 if expected.dtype in (torch.float32, torch.float64) else 0.1
    return bool((found.double() - expected.double()).norm() <= most * expected.double().norm())


def reads_whole(model: Any, model_kwargs: dict[str, Any]) -> bool:
    """Whether plain ``generate()`` gives each forward pass the whole text: it keeps no cache, or the model takes none."""
    return not model_kwargs.get("use_cache") or not takes_cache(model)
