"""The tests of `integration/vllm` on CUDA, its graphs on: exact output through every hard event, rules, lossy ones, sampling, and serving.

They are the same functions, given another machine by the conftest here. It also has every engine's captured and replayed graphs counted, and fails
without any. The model is tiny and random, in float32 throughout, so that greedy text is one and the same in every batch.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from test_vllm_lossless import reference, test_copies_are_kept_as_far_as_they_are_right, test_output_equals_plain_vllm
from test_vllm_lossy import model, test_fly_overlooks_what_its_definition_says
from test_vllm_sampling import test_a_plugins_drafts_that_were_drawn, test_drafts_that_were_drawn, test_joint_distribution_is_the_models
from test_vllm_serve import outputs, test_bench_serve, test_serves_right_and_survives_its_drafter_and_its_rule
from test_vllm_verifiers import oracle, test_behind_vllms_ngram_on_v2, test_pairs_of_drafters_and_verifiers, test_rules

__all__ = [  # what pytest finds here, fixtures among them; each is explained where it comes from
    "model",
    "oracle",
    "outputs",
    "reference",
    "test_a_plugins_drafts_that_were_drawn",
    "test_behind_vllms_ngram_on_v2",
    "test_bench_serve",
    "test_copies_are_kept_as_far_as_they_are_right",
    "test_drafts_that_were_drawn",
    "test_fly_overlooks_what_its_definition_says",
    "test_joint_distribution_is_the_models",
    "test_output_equals_plain_vllm",
    "test_pairs_of_drafters_and_verifiers",
    "test_rules",
    "test_serves_right_and_survives_its_drafter_and_its_rule",
]
