"""Tree policies: which tokens to draft from a model's rows, and how they are drawn. One policy, one file."""

from __future__ import annotations

from typing import Final

POLICIES: Final = {
    "chain": "accelplug.spec.trees.chain:Chain",
    "top_k": "accelplug.spec.trees.top_k:TopK",
    "best_first": "accelplug.spec.trees.best_first:BestFirst",
    "gumbel_top_k": "accelplug.spec.trees.gumbel_top_k:GumbelTopK",
    "stochastic_beam": "accelplug.spec.trees.stochastic_beam:StochasticBeam",
    "sequoia": "accelplug.spec.trees.sequoia:Sequoia",
}
"""What may stand in a drafter's option ``tree``."""
