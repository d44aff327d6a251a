"""A second language model beside the target, which the host loads and runs for a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from accelplug.hooks.drafting import IntArray

if TYPE_CHECKING:
    from torch import Tensor


class SecondModel(Protocol):
    """What ``context.load_model(...)`` returns: a model with the target's vocabulary and a cache of its own for every slot.

    One loaded with ``tokens="text"`` is given texts in the target's ids and drafts in its own, which are as many as its logits are wide.

    It reads committed text by `extend` and drafts by `expand`. What was drafted is forgotten at the next `extend`, so
    nothing needs to be rolled back.
    """

    def start(self, slots: IntArray) -> None:
        """Begin with nothing read in each slot."""

    def finish(self, slots: IntArray) -> None:
        """Free the cache of each slot."""

    def extend(self, slots: IntArray, histories: Sequence[IntArray], ahead: Sequence[int] | None = None) -> Tensor:
        """Read what each request's text has gained since it was last read here, and forget all drafts.

        :param slots: [num_reqs], any of those started.
        :param histories: one array of token ids per request, its whole text, longer than when it was last read.
        :param ahead: [num_reqs], how many tokens at the end of each are not committed yet (`DraftView.ahead`), 0 if not given: if others
            come in their place, they are read instead of them.
        :return: logits of each request's next token, [num_reqs, vocab_size], on the target's device.
        """

    def expand(self, requests: Sequence[int], tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Read draft nodes, all in one forward pass; each sees its request's text and its own ancestors.

        :param requests: [num_nodes], which request of the last `extend` each node belongs to.
        :param tokens: [num_nodes] token ids.
        :param parents: [num_nodes]; nodes are numbered from 0 in the order they were given since the last `extend`,
            over all requests; ROOT (-1) for the first level. A parent is of an earlier call.
        :return: logits of each node's next token, [num_nodes, vocab_size], on the target's device.
        """

    def spelled(self, tokens: Sequence[int]) -> list[int]:
        """Return the target's ids of what was drafted in one request; other ones for models loaded with ``tokens="text"`` only.

        :param tokens: own ids, as `expand` was given them, that follow the request's text.
        """
