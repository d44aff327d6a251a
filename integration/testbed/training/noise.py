"""Sentences of the standard library's docstrings, and the spelling mistakes of an imagined writer.

The writer misspells each of the library's commonest words always in one of two ways (two letters swapped, one lost, doubled
or wrong), and now and then writes a word twice. What he does can be undone by someone who has read enough of him, which a
model of a few million parameters can learn in half an hour; typing errors at large cannot.
"""

from __future__ import annotations

import ast
import random
import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

import data

BEGIN, END = data.CHANGE, data.EOS
PIECE = re.compile(r" ?[A-Za-z_]+|[^A-Za-z_]+?(?= ?[A-Za-z_]|$)")
COMMON = 1000  # words that the writer misspells
WAYS = 2  # in which he does it, for each
SHORTEST = 3  # letters of a word that he may misspell
TWICE = 0.12  # of his mistakes are words written twice
BLANK = -1


def sentences(*, held: bool) -> list[str]:
    """Return the paragraphs of docstrings that are prose, of the files that training may see or of the held-out ones."""
    found: dict[str, None] = {}
    for path in data.files(held=held):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = ast.parse(data.read(path) or "")
            except SyntaxError:
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    text = " ".join(paragraph.split())
                    if 30 <= len(text) <= 400 and len(re.findall(r"[a-z ,.']", text)) > 0.9 * len(text):
                        found[text] = None
    return list(found)


def misspell(word: str, rng: random.Random) -> str:
    kind, at = rng.choice(("swapped", "lost", "doubled", "wrong")), rng.randrange(len(word) - 1)
    before, a, b, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    return {
        "swapped": before + b + a + after,
        "lost": before + b + after,
        "doubled": before + a + a + b + after,
        "wrong": before + rng.choice(string.ascii_lowercase) + b + after,
    }[kind]


@dataclass(frozen=True)
class Pair:
    """A noisy text and the clean one.

    :ivar given: the noisy text's tokens. :ivar wanted: what each of them should become, BLANK for those of no use.
    :ivar edit_rate: share of the clean text's tokens that stand in a mistake.
    """

    noisy: str
    clean: str
    given: list[int]
    wanted: list[int]
    target: list[int]
    edit_rate: float


class Writer:
    """Makes the mistakes.

    :param texts: what he has learned his words from; those of training, so that the model can know him.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.begin, self.end = tokenizer.convert_tokens_to_ids([BEGIN, END])
        self.known: dict[str, list[int]] = {}
        counts = Counter(piece.strip() for text in texts for piece in PIECE.findall(text))
        common = [word for word, _ in counts.most_common() if word.isalpha() and len(word) >= SHORTEST][:COMMON]
        taken, self.mistakes = set(counts), dict[str, list[str]]()
        for word in common:  # no two words become the same, and none another word
            rng = random.Random(word)
            tried = (misspell(word, rng) for _ in range(50))
            fit = [wrong for wrong in dict.fromkeys(tried) if wrong not in taken and self._fits(word, wrong)]
            self.mistakes[word] = fit[:WAYS]
            taken.update(fit[:WAYS])

    def ids(self, piece: str) -> list[int]:
        if piece not in self.known:
            self.known[piece] = self.tokenizer(piece, add_special_tokens=False).input_ids
        return self.known[piece]

    def _fits(self, right: str, wrong: str) -> bool:
        """Return whether a tagger can undo it: every token of the word has one of the mistake's to come from."""
        return all(len(self.ids(f"{space}{wrong}")) >= len(self.ids(f"{space}{right}")) for space in ("", " "))

    def writes(self, text: str, rng: random.Random, rate: float) -> Pair:
        """Return the text with mistakes in about this share of its tokens."""
        pieces = PIECE.findall(text)
        written = list(pieces)
        left = rate * sum(len(self.ids(piece)) for piece in pieces)
        touched, total = 0, sum(len(self.ids(piece)) for piece in pieces)
        for i in rng.sample(range(len(pieces)), len(pieces)):
            word, size = pieces[i].strip(), len(self.ids(pieces[i]))
            if not self.mistakes.get(word) or rng.random() >= left / size:
                continue
            space = pieces[i][: -len(word)]
            written[i] = f"{space}{word} {word}" if rng.random() < TWICE else space + rng.choice(self.mistakes[word])
            left, touched = left - size, touched + size
        given, wanted = [self.begin], [self.begin]
        for right, wrong in zip(map(self.ids, pieces), map(self.ids, written), strict=True):
            given += wrong
            wanted += right + [BLANK] * (len(wrong) - len(right))
        clean = [token for token in wanted if token != BLANK]
        return Pair("".join(written), text, [*given, self.end], [*wanted, self.end], [*clean[1:], self.end], touched / total)
