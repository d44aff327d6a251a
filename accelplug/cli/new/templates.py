"""What a new plugin package consists of: path -> text, with $name, $module, $technique and $title to fill in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PYPROJECT: Final = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$name"
version = "0.1.0"
description = "The $kind $technique for accelplug."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["accelplug>=$low,<$below"]

[project.optional-dependencies]
dev = ["accelplug[transformers]", "mypy>=1.15", "pytest>=8", "ruff>=0.9"]

[project.entry-points.accelplug]
$technique = "$module"

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
$module = ["py.typed"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["B", "D", "E", "F", "I", "UP", "W"]
ignore = ["D203", "D213"]

[tool.ruff.lint.per-file-ignores]
"tests/**" = ["D"]

[tool.mypy]
strict = true
files = ["src"]
mypy_path = "src"
"""

DRAFTER: Final = '''\
"""The drafter $technique: guess that what followed the last token once follows it again.

Output     unchanged (the verifier decides)
Hosts      transformers, vllm
"""

from collections.abc import Sequence
from dataclasses import dataclass

import accelplug
from accelplug.hooks import IntArray, Register, RequestDrafter


@dataclass
class $title:
    """Copy what stood behind the latest earlier occurrence of the last token."""

    num_tokens: int = accelplug.option(4, ge=1, le=64, help="tokens to draft")

    def propose_one(self, tokens: IntArray, budget: int) -> Sequence[int]:
        """Guess at most `budget` tokens that follow `tokens`, [length]."""
        (found,) = (tokens[:-1] == tokens[-1]).nonzero()
        return [] if len(found) == 0 else list(tokens[found[-1] + 1 :][: min(self.num_tokens, budget)])


@accelplug.hookimpl
def register_drafters(register: Register[RequestDrafter]) -> None:
    """Offer it."""
    register("$technique", $title)
'''

VERIFIER: Final = '''\
"""The verifier $technique: keep a drafted token with probability min(1, target / draft).

Output     unchanged under greedy decoding; unchanged in distribution under sampling
Hosts      transformers, vllm
"""

from typing import TYPE_CHECKING, ClassVar

import accelplug
from accelplug.hooks import Register, Verifier, VerifierTraits, VerifyView

if TYPE_CHECKING:
    from torch import Tensor


class $title:
    """Speculative sampling's rule. Another `accept` may need a `residual(view)` to stay lossless."""

    traits: ClassVar[VerifierTraits] = VerifierTraits(lossless="sampling")

    def accept(self, view: VerifyView) -> "Tensor":
        """Return each candidate's acceptance probability, [n]."""
        return (view.target_at_tokens() / view.draft_at_tokens()).clamp(max=1.0)


@accelplug.hookimpl
def register_verifiers(register: Register[Verifier]) -> None:
    """Offer it."""
    register("$technique", $title)
'''

GRAMMAR: Final = '''\
"""The grammar engine $technique: compile choices, by comparing what was written with each of them.

Output     one of the choices
Hosts      transformers, vllm
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import accelplug
from accelplug.hooks import CompileLimits, GrammarEngine, GrammarSpec, GrammarStatement, Register, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


class $title:
    """Compile `GrammarSpec`s for a model's vocabulary; whatever else is refused."""

    def compile(self, spec: GrammarSpec, vocabulary: Vocabulary, limits: CompileLimits) -> "Choices":
        """Compile a grammar, or refuse it."""
        if spec.kind != "choice":
            raise accelplug.ConstraintError(f"$technique compiles choices only, got {spec}; use the engine auto")
        return Choices(tuple(text.encode() for text in spec.value()), vocabulary)


@dataclass(frozen=True)
class Choices:
    """A compiled grammar: shared by requests and threads, so it never changes."""

    texts: tuple[bytes, ...]
    vocabulary: Vocabulary
    statement: GrammarStatement = GrammarStatement("$technique 0.1.0", enforced=("choice",))

    def matcher(self) -> "Matcher":
        """Return a fresh matcher at the beginning."""
        return Matcher(self)

    def check(self, text: str) -> str | None:
        """Return what is wrong with a finished text, None if nothing is."""
        return None if text.encode() in self.texts else f"{text!r} is none of the choices"


@dataclass
class Matcher:
    """What one request has written so far."""

    grammar: Choices
    tokens: list[int] = field(default_factory=list)

    @property
    def is_terminated(self) -> bool:
        """Whether an EOS was accepted."""
        return bool(self.tokens) and self.tokens[-1] in self.grammar.vocabulary.eos_token_ids

    def fill(self, row: "Tensor") -> None:
        """Write the mask: token i is bit i % 32 of word i // 32."""
        row.zero_()
        for token in self._legal():
            row[token // 32] |= 1 << token % 32 if token % 32 < 31 else -(1 << 31)

    def accept(self, tokens: Sequence[int]) -> int:
        """Advance up to the first illegal token; return how many were legal."""
        for count, token in enumerate(tokens):
            if token not in self._legal():
                return count
            self.tokens.append(token)
        return len(tokens)

    def rollback(self, count: int) -> None:
        """Take accepted tokens back."""
        del self.tokens[len(self.tokens) - count :]

    def validate(self, tokens: Sequence[int]) -> int:
        """Return how many tokens `accept` would take."""
        return Matcher(self.grammar, list(self.tokens)).accept(tokens)

    def forced(self) -> Sequence[int]:
        """Return tokens that must follow: here the next one, where only one is legal."""
        legal = self._legal()
        return legal if len(legal) == 1 else []

    def _legal(self) -> list[int]:
        known, ends = self.grammar.vocabulary.tokens, self.grammar.vocabulary.eos_token_ids
        if self.is_terminated:
            return []
        written = b"".join(known[token] for token in self.tokens)
        rests = [text[len(written) :] for text in self.grammar.texts if text.startswith(written)]
        found = [token for token, more in enumerate(known) if more and any(rest.startswith(more) for rest in rests)]
        return found + [end for end in ends if b"" in rests]


@accelplug.hookimpl
def register_grammars(register: Register[GrammarEngine]) -> None:
    """Offer it."""
    register("$technique", $title)
'''

TEST: Final = '''\
"""Everything that the contract asks of a $kind, checked by accelplug's own kit."""

import accelplug
from accelplug.testing import ${kit}

import $module


class Test$title(${kit}):
    technique = "$technique"
${examples}
    def registry(self) -> accelplug.hooks.Registry:
        return accelplug.load_registry([$module], entry_points=False)
'''

README: Final = """\
# $name

The $kind `$technique` for accelplug: $where.

```sh
pip install -e '.[dev]'
accelplug plugins                       # $technique is listed, with this distribution
$use
pytest && ruff check . && mypy
```

`src/$module/__init__.py` is the technique and the hook that registers it; `tests/` holds it to accelplug's contract. What the views
carry and what a technique may rely on is in accelplug's `docs/contract.md` and `docs/hooks.md`.
"""

IGNORE: Final = """\
__pycache__/
*.egg-info/
build/
dist/
.venv/
"""

WHERE: Final[Mapping[str, str]] = {
    "drafter": "one object, inside Transformers and vLLM",
    "verifier": "a rule for drafts in Transformers and vLLM",
    "grammar": "masks for answers in Transformers and vLLM",
}
SOURCES: Final[Mapping[str, str]] = {"drafter": DRAFTER, "verifier": VERIFIER, "grammar": GRAMMAR}
KITS: Final[Mapping[str, str]] = {"drafter": "DrafterConformance", "verifier": "VerifierConformance", "grammar": "GrammarConformance"}
EXAMPLES: Final[Mapping[str, str]] = {"grammar": '    examples = (({"choice": ["yes", "no"]}, ["yes", "no"], ["ye", "maybe"]),)  # right texts, wrong texts\n'}
USES: Final[Mapping[str, str]] = {
    "grammar": "vllm serve MODEL --additional-config '{\"accelplug\": {\"grammar\": \"$technique\"}}'  # or accelplug.grammar(..., engine=\"$technique\")"
}
RUN: Final = "accelplug run --$kind $technique --compare --model DIR_OR_HUB_ID --prompt TEXT"


def files(kind: str) -> Mapping[str, str]:
    """Return the package's files for a kind, path -> text; paths have the same fillings."""
    return {
        ".gitignore": IGNORE,
        "README.md": README,
        "pyproject.toml": PYPROJECT,
        "src/$module/__init__.py": SOURCES[kind],
        "src/$module/py.typed": "",
        "tests/test_$module.py": TEST,
    }
