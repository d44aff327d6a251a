"""What is asked of the random model, here and for all modules at once, so that one engine without a drafter answers for all."""

from __future__ import annotations

from typing import Any

# Ragged, more than run at once, so that slots are recycled and rows move.
PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22], [9, 9, 9, 9, 10, 11, 9, 9], [100, 200, 30, 100, 200], [77] * 17]
LENGTH = 24
INSIDE = (13, 14, 17, 18, 19, 23)
"""Positions of an answer that are accepted drafts with another accepted draft behind them, where the oracle drafts as it does unasked."""
MAX_LENGTH = 96
GREEDY = {"temperature": 0, "ignore_eos": True, "max_tokens": LENGTH}
WORDS = "one|two|red"
ALLOWED = list(range(200, 230))  # of those that the tokenizer has: vLLM 0.28 takes no others
RULES: dict[str, dict[str, Any]] = {
    "greedy": {"prompts": PROMPTS, "params": {**GREEDY, "logprobs": 0}},
    "seeded": {"prompts": PROMPTS, "params": [{**GREEDY, "temperature": 1.2, "top_k": 5, "seed": i} for i in range(len(PROMPTS))]},
    "masked": {"prompts": PROMPTS, "params": {**GREEDY, "temperature": 1.0, "seed": 3, "allowed_token_ids": ALLOWED}},
    "structured": {"prompts": PROMPTS[:2], "params": {"temperature": 0, "max_tokens": LENGTH, "structured_outputs": {"regex": f"({WORDS}){{4}}"}}},
}
"""Asked behind every verification rule."""

FAILING = {"prompts": [*PROMPTS[:2], [9, 9, 9, 9, 10, 11]], "params": {"temperature": 0, "max_tokens": 8, "ignore_eos": True}}
"""Asked of drafters that fail."""

TOKENS = 16
LAST = [3, 4, 3, 4]
"""A prompt that no other begins with: what is left over from the others must not show in its answer."""
SERVED = {
    "prompts": [*FAILING["prompts"], *([40 + i, 50 + i, 60 + i] for i in range(5)), LAST],
    "params": {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True},
}
"""Asked of servers, the last prompt after all others."""

TEXTS = ("one sees fish", "two eats a tree", "red red red boat")
"""Asked of servers as text."""

SETTINGS = {
    "prompts": PROMPTS,
    "params": [
        {**GREEDY, "repetition_penalty": 1.3},
        {**GREEDY, "presence_penalty": 1.5, "frequency_penalty": 0.7},
        {**GREEDY, "ignore_eos": False, "min_tokens": 12, "stop_token_ids": list(range(0, 400, 5))},
        {**GREEDY, "bad_words": ["one", " red"], "repetition_penalty": 0.7},
        {**GREEDY, "frequency_penalty": -1.0, "stop": ["e"], "include_stop_str_in_output": True},
    ],
}
"""What requests set that looks at the tokens so far, drafts among them."""

ALL = {**RULES, "settings": SETTINGS, "failing": FAILING, "served": SERVED}


def token_inside(continuations: list[list[int]]) -> int:
    """Return a token that first appears inside a draft of the oracle."""
    return next(tokens[i] for i in INSIDE for tokens in continuations if tokens[i] not in tokens[:i])
