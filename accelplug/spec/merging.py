"""One request's tree out of several drafters' answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from accelplug.hooks.drafting import ROOT

Answer = tuple[Sequence[int], Sequence[int]]
"""What one drafter drafted for the request: tokens and parents, parents before their children."""
Tree = tuple[list[int], list[int], list[int]]
"""Tokens, parents, and which answer each node was taken from."""


def merged(answers: Sequence[Answer], most: int) -> Tree:
    """Merge drafts by longest common prefix: each node once, after the one it follows.

    Where there is not room for all, the drafters take turns, a new node each, so that a long answer does not push out a short one.

    :param most: nodes of the tree.
    """
    tree = _union(answers)
    return tree if len(tree[0]) <= most else _in_turns(answers, most)


def _union(answers: Sequence[Answer]) -> Tree:
    first, above = answers[0]
    nodes = dict(zip(zip(above, first, strict=True), range(len(first)), strict=True))  # (parent, token) -> node
    if len(nodes) < len(first):  # it drafted a token twice after the same one
        return _in_turns(answers, sum(len(drafted) for drafted, _ in answers))
    tokens, parents = list(first), list(above)
    sources = [0] * len(first)
    for source, (drafted, above) in enumerate(answers[1:], 1):
        own = [ROOT]  # the answer's root and nodes in the tree
        for parent, token in zip(above, drafted, strict=True):
            new = len(tokens)
            key = own[parent + 1], token
            node = nodes.setdefault(key, new)
            own.append(node)
            if node == new:
                tokens.append(token)
                parents.append(key[0])
        sources.extend(repeat(source, len(tokens) - len(sources)))
    return tokens, parents, sources


def _in_turns(answers: Sequence[Answer], most: int) -> Tree:
    tokens: list[int] = []
    parents: list[int] = []
    sources: list[int] = []
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    places = [[ROOT] for _ in answers]  # of each answer's root and nodes, as far as it was walked
    in_turn = list(range(len(answers)))
    while in_turn:
        for source in in_turn:
            (drafted, above), own, end = answers[source], places[source], len(tokens) + 1
            for i in range(len(own) - 1, len(drafted)):
                if len(tokens) == end:
                    break
                parent, token, new = own[above[i] + 1], drafted[i], len(tokens)
                node = nodes.setdefault((parent, token), new)
                if node == new:
                    if new == most:
                        return tokens, parents, sources
                    tokens.append(token)
                    parents.append(parent)
                    sources.append(source)
                own.append(node)
        in_turn = [source for source in in_turn if len(places[source]) <= len(answers[source][0])]
    return tokens, parents, sources
