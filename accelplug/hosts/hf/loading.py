"""Load a second model, and refuse one whose tokens are not the target's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

from accelplug._errors import HostError
from accelplug.hosts.hf.masks import check_trees
from accelplug.hosts.hf.rollback import check_cache
from accelplug.hosts.hf.second import Second
from accelplug.hosts.hf.translated import Tokens, Translated


def load_second(given: Any, target: Any, tokenizer: Any, tokens: str = "same") -> Second | Translated:
    """Return a second model beside `target`.

    :param given: a model of Transformers, loaded, or what ``from_pretrained`` takes: a folder or a name on the hub, which
        is then loaded in the target's dtype and to its device.
    :param tokenizer: the target's, or None.
    :param tokens: ``"same"``, or how a model with other tokens drafts: ``"intersection"`` or ``"text"``, see `Translated`.
    :raises HostError: it cannot be loaded, does not have the target's tokens, or cannot be read as drafts are.
    """
    model, own_tokenizer = _from_pretrained(given, target) if isinstance(given, str) else (given, None)
    if not callable(getattr(model, "forward", None)) or not hasattr(model, "config"):
        raise HostError(f"a second model is a loaded model, a folder or a name on the hub, got {given!r:.60}")
    if model.config.is_encoder_decoder:
        raise HostError(f"the second model {_name(model)} is an encoder-decoder; use a decoder-only one")
    check_readable(model)
    if tokens != "same":
        common = _common(model, target, own_tokenizer, tokenizer, tokens)
        return Translated(Second(model, _width(model), target.device), common, tokens, _width(target))
    check_tokens(model, target, own_tokenizer, tokenizer)
    return Second(model, _width(target), target.device)


def _common(model: Any, target: Any, own: Any, tokenizer: Any, tokens: str) -> Tokens:
    if tokenizer is None:
        raise HostError(f"tokens={tokens!r} translates between two tokenizers and the target's is not given; pass tokenizer=... to attach()")
    if own is None:
        raise HostError(
            f"tokens={tokens!r} translates between two tokenizers and that of {_name(model)} is not at hand; give the second model by a path "
            "that has one"
        )
    return Tokens(tokenizer, own, (_width(target), _width(model)))


def loaded_beside(target: Any, kind: Any, name: str, what: str = "second model") -> Any:
    """Load a model in the target's dtype and to its device.

    :param kind: one of Transformers' auto classes.
    :param name: a folder, or a name on the hub.
    :param what: it in words.
    :raises HostError: it cannot be loaded.
    """
    try:
        return kind.from_pretrained(name, dtype=target.dtype).to(target.device).eval()
    except (OSError, ValueError) as exc:
        # Transformers takes a folder that is not there for a name on the hub, and complains of its spelling.
        is_missing = name.startswith(("/", ".", "~")) and not Path(name).exists()
        reason = "there is no such folder" if is_missing else " ".join(str(exc).split()).rstrip(".")
        raise HostError(f"the {what} {name!r} cannot be loaded: {reason}; give a folder, a name on the hub, or a loaded model") from exc


def _from_pretrained(name: str, target: Any) -> tuple[Any, Any]:
    model = loaded_beside(target, AutoModelForCausalLM, name)
    try:
        return model, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):  # weights without a tokenizer: then the sizes must do
        return model, None


def check_readable(model: Any) -> None:
    """Refuse a model whose attention cannot be masked node by node.

    :raises HostError: naming what stands in the way.
    """
    cache = DynamicCache(config=model.config)
    try:
        check_cache(model, cache)
        check_trees(model, cache)
    except HostError as exc:
        raise HostError(f"the second model {_name(model)} cannot draft: {exc}") from exc


def check_tokens(model: Any, target: Any, own: Any, tokenizer: Any) -> None:
    """Refuse a model that does not have the target's tokens; models of one family may differ in padding.

    :param own: the second model's tokenizer, or None where it is not at hand.
    :param tokenizer: the target's, or None.
    :raises HostError: naming both and what differs.
    """
    both = f"the second model {_name(model)} and the target {_name(target)}"
    if own is not None and tokenizer is not None:
        if different := _differences(own, tokenizer):
            raise HostError(f"{both} differ in {different} tokens; use a second model with the target's tokenizer, or tokens='intersection'")
    elif _width(model) != _width(target):
        raise HostError(
            f"{both} have {_width(model)} and {_width(target)} tokens; use a second model with the target's tokenizer, "
            "and where only the padding differs give it by its path, and tokenizer=... to attach()"
        )


def _differences(own: Any, tokenizer: Any) -> int:
    """Return how many ids spell something else, special tokens apart."""
    special = {*own.all_special_tokens, *tokenizer.all_special_tokens}
    ours, theirs = ({item for item in each.get_vocab().items() if item[0] not in special} for each in (own, tokenizer))
    return len(ours ^ theirs)


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


def _width(model: Any) -> int:
    width: int = model.config.get_text_config(decoder=True).vocab_size
    return width
