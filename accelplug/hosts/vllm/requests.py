"""What a request sets for itself: ``extra_args={"accelplug": {"num_tokens": 0}}``, over HTTP ``vllm_xargs={"accelplug.num_tokens": 0}``.

The front end checks it before the request is queued; the worker hands it to the techniques in their views.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from accelplug._errors import AccelplugError, HostError, OptionError
from accelplug.hooks.capabilities import verifier_traits
from accelplug.hooks.options import Offer, check_request, fields_of, is_number, may_be_none, offers_of, per_request_options
from accelplug.hooks.registry import Technique, registry
from accelplug.hooks.unbuilt import unbuilt
from accelplug.hosts.vllm.board import was_refused
from accelplug.hosts.vllm.grammar_request import ENGINE, OFFERS
from accelplug.hosts.vllm.plugin import KEY
from accelplug.hosts.vllm.settings import Settings, read_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CAP: Final = "num_tokens"
"""The option that is the host's own, for every drafter: the most tokens to draft for the request, 0 for none."""
_NONE: Final = (1 << 63) - 1
"""In tensors, in place of a whole number that may be None."""


def read_request(extra_args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a request sets, unchecked.

    :param extra_args: of vLLM's SamplingParams; over HTTP its values are plain, so that the names are dotted.
    """
    if not extra_args:
        return {}
    nested = extra_args.get(KEY, {})
    found = dict(nested) if isinstance(nested, Mapping) else {KEY: nested}  # which no technique takes, see `check_params`
    return found | {name.removeprefix(f"{KEY}."): value for name, value in extra_args.items() if name.startswith(f"{KEY}.")}


def offers_under(settings: Settings) -> dict[str, Offer]:
    """Return the options that requests may set under these settings."""
    offers: dict[str, Offer] = {}
    for kind, spec in (("verifier", settings.verifier), ("drafter", settings.drafter)):
        if spec is not None:
            entry, _ = registry().find(kind, spec)
            offers |= offers_of(str(entry), entry.resolve())
    if settings.grammar is not None:
        offers |= OFFERS
    if settings.drafts:
        offers[CAP] = Offer("a request's draft length", "int", {"ge": 0, "le": settings.num_tokens})
    return offers


def check_params(vllm_config: Any, params: Any) -> None:
    """Refuse a request that vLLM's front end is asked to queue; engines without accelplug's settings refuse nothing.

    :param params: vLLM's SamplingParams, or PoolingParams, which set nothing.
    :raises OptionError: naming the option and what is allowed, or the rule that is not exact for a sampled request.
    """
    settings = (vllm_config.additional_config or {}).get(KEY)
    if settings is None:
        return
    try:
        _check(settings, params)
    except OptionError:
        if settings.get("on_refused") == "serve" and was_refused():
            return  # nothing of what it asks for runs, as where the front end knew that at the start
        raise


def _check(settings: Mapping[str, Any], params: Any) -> None:
    given, sampled = read_request(getattr(params, "extra_args", None)), _is_sampled(params)
    if not given and not sampled:
        return
    written = json.dumps(settings)
    if given:
        if KEY in given:
            raise OptionError(f"a request's options are a mapping such as {{'num_tokens': 4}}, over HTTP names like {KEY}.num_tokens, got {given[KEY]!r:.60}")
        check_request("accelplug", given, _offers(written))
    if sampled and (rule := _greedy_only(written)) is not None:
        raise OptionError(
            f"{rule} is exact for greedy decoding only and the request samples at temperature {params.temperature:.2g}; set temperature 0 in the request, "
            "or start the server with verifier 'token_wise'"
        )


def _is_sampled(params: Any) -> bool:
    kind = getattr(params, "sampling_type", None)
    return kind is not None and kind.name != "GREEDY"


@functools.cache
def _greedy_only(settings: str) -> Technique | None:
    """Return the rule if it is not exact for sampled requests and nobody allowed that; one whose traits only building tells is refused at the start."""
    read = read_settings(json.loads(settings))
    rule = unbuilt(*registry().find("verifier", read.verifier))
    return rule if rule is not None and verifier_traits(rule).lossless == "greedy" and not read.allow_lossy else None


@functools.cache
def _offers(settings: str) -> dict[str, Offer]:
    return offers_under(read_settings(json.loads(settings)))


def concerned(vllm_config: Any, params: Any) -> tuple[str, str, str]:
    """Return what a refused request is counted under: kind and name of the technique that refuses it, both empty where none has the option that it sets,
    and ``"option"``, ``"sampling"`` or ``"grammar"``. All of it is configured or installed, so that requests cannot make up labels.

    :param params: vLLM's SamplingParams.
    """
    given, settings = read_request(getattr(params, "extra_args", None)), json.dumps(vllm_config.additional_config[KEY])
    for name, value in given.items():
        try:
            check_request("accelplug", {name: value}, _offers(settings))
        except OptionError:
            return *_owners(settings).get(name, ("", "")), "option"
    if _is_sampled(params) and (rule := _greedy_only(settings)) is not None:
        return "verifier", rule.name, "sampling"
    engine = given.get(ENGINE) or read_settings(json.loads(settings)).grammar or ""
    try:
        return "grammar", registry().find("grammar", engine)[0].name, "grammar"
    except AccelplugError:  # the request's own word for an engine
        return "grammar", "", "grammar"


@functools.cache
def _owners(settings: str) -> dict[str, tuple[str, str]]:
    """Return the kind and name of the technique that each option belongs to."""
    read = read_settings(json.loads(settings))
    owners = dict.fromkeys(OFFERS, ("grammar", "" if read.grammar is None else read.grammar.name))
    for kind, spec in (("verifier", read.verifier), ("drafter", read.drafter)):
        if spec is not None:
            entry, _ = registry().find(kind, spec)
            owners |= dict.fromkeys(per_request_options(entry.resolve()), (kind, entry.name))
    return owners | {CAP: ("drafter", "nothing" if read.drafter is None else read.drafter.name)}


class RequestOptions:
    """What the running requests set, on the worker's side.

    :ivar given: request id -> its options, of those that set any.
    """

    def __init__(self) -> None:
        self.given: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.given)

    def begin(self, req_id: str, params: Any) -> dict[str, Any]:
        """Remember and return what a request sets.

        :param params: vLLM's SamplingParams, or None for a request that does not sample.
        """
        self.end((req_id,))  # what an earlier request under the same id had set
        given = read_request(getattr(params, "extra_args", None))
        if given:
            self.given[req_id] = given
        return given

    def end(self, req_ids: Iterable[str]) -> None:
        """Forget requests; unknown ones are passed over."""
        for req_id in req_ids if self.given else ():
            self.given.pop(req_id, None)

    def values(self, defaults: Mapping[str, Any], req_ids: Sequence[str]) -> dict[str, list[Any]]:
        """Return a technique's options, one value for each request; only those that one of the requests sets.

        :param defaults: the technique's options and what they are for requests that set nothing.
        """
        if not self.given:
            return {}
        given = [self.given.get(req_id, {}) for req_id in req_ids]
        return {
            name: [own.get(name, default) for own in given] for name, default in defaults.items() if any(name in own for own in given)
        }


    def tensors(self, defaults: Mapping[str, Any], req_ids: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """Return the same as `values` does, name -> [num_reqs], without waiting for the device; None becomes the largest int64."""
        from vllm.utils.torch_utils import async_tensor_h2d

        found = self.values(defaults, req_ids)
        return {name: async_tensor_h2d([_NONE if value is None else value for value in values], device) for name, values in found.items()}


def refuse_no_numbers(technique: Technique) -> None:
    """Refuse per-request options that cannot be handed over in tensors, which is how device drafters and rules read them.

    :raises HostError: naming the option.
    """
    for name, offer in offers_of(str(technique), technique.factory).items():
        is_limit = technique.kind == "drafter" and may_be_none(offer.annotation)
        if not (is_number(offer.annotation) or is_limit):
            raise HostError(f"{technique} lets requests set {name!r}, which may be no number, and vLLM's requests share tensors; make it int, float or bool")


def defaults_of(technique: Technique) -> dict[str, Any]:
    """Return what a built technique's per-request options are for requests that set nothing; draft lengths are the host's business."""
    fields = fields_of(technique.factory)
    options = per_request_options(technique.factory)
    return {name: getattr(technique.instance, name, fields[name].default) for name in options if name != CAP}
