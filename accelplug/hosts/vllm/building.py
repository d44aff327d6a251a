"""Build what was selected, in a worker whose model is loaded, and refuse what its runner cannot run right."""

from __future__ import annotations

from typing import Any

from accelplug._errors import HostError
from accelplug.hooks.binding import BoundDrafter, bind_drafter
from accelplug.hooks.capabilities import Selection, admit, verifier_traits
from accelplug.hooks.context import BuildContext
from accelplug.hooks.registry import Technique, registry
from accelplug.hooks.spelling import Spec
from accelplug.hooks.unbuilt import unbuilt
from accelplug.hosts.vllm.attachment import trims
from accelplug.hosts.vllm.capabilities import host_of
from accelplug.hosts.vllm.clock import Clock
from accelplug.hosts.vllm.compat import RunnerName
from accelplug.hosts.vllm.context import build_context
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.nothing import nothing
from accelplug.hosts.vllm.requests import refuse_no_numbers
from accelplug.hosts.vllm.session import Session
from accelplug.hosts.vllm.settings import Settings


def build_session(runner: Any, name: RunnerName, settings: Settings) -> Session | tuple[Technique, Judge | None]:
    """Build and admit the drafter and the verifier; without a drafter, the verifier and what applies it.

    :param runner: vLLM's model runner.
    :raises AccelplugError: a plugin fails to build, or vLLM's runner of that name cannot run it.
    """
    config = runner.vllm_config
    clock = Clock(pads=name == "V2" and not trims(config), ranks=config.parallel_config.tensor_parallel_size)
    context = build_context(runner, clock.seconds)
    bound, selection = select(settings, context, name, clock.ranks)
    rule = selection.verifier
    judge = None if verifier_traits(rule).standard else Judge(rule, context.device, stops=settings.on_refused == "stop")
    method = config.speculative_config.method
    if bound is None:
        LOG.info("accelplug: vLLM's own %s drafts in its %s runner", method, name)
    else:
        LOG.info("accelplug: %s drafts in vLLM's %s runner; vLLM shows it as method %r", bound.technique, name, method)
    if judge is None:
        above = "sampled requests are refused" if verifier_traits(rule).lossless == "greedy" and not settings.allow_lossy else "token-wise above it"
        LOG.info("accelplug: %s is vLLM's own rejection sampler: exact match at temperature 0, %s", rule, above)
    else:
        LOG.info("accelplug: %s verifies in place of vLLM's rejection sampler%s", rule, "; it may change the output" if judge.lossy else "")
    return (rule, judge) if bound is None else Session(bound, selection, context.vocab_size, judge, clock)


def refuse_unbuilt(settings: Settings, name: RunnerName, tensor_parallel_size: int) -> Technique | None:
    """Refuse what a runner cannot run, as far as that is known before anything is built.

    :returns: the verifier with its options and nothing else, None where only building it says what it is.
    :raises AccelplugError: the runner cannot run it.
    """
    verifier, drafter = (None if spec is None else unbuilt(*registry().find(kind, spec)) for kind, spec in _wanted(settings))
    if verifier is not None:
        _admit(Selection(drafter, verifier), settings, name, tensor_parallel_size, sampling=False)
    return verifier


def _wanted(settings: Settings) -> tuple[tuple[str, Spec], tuple[str, Spec | None]]:
    return ("verifier", settings.verifier), ("drafter", settings.drafter)


def _admit(selection: Selection, settings: Settings, name: RunnerName, tensor_parallel_size: int, *, sampling: bool) -> None:
    """Refuse a selection.

    :param sampling: nobody refuses sampled requests one by one (`requests.check_params`), should the rule be exact for greedy decoding only.
    """
    admit(selection, host_of(name, tensor_parallel_size), sampling=sampling, allow_lossy=settings.allow_lossy)
    if not verifier_traits(selection.verifier).standard:
        refuse_no_numbers(selection.verifier)


def select(settings: Settings, context: BuildContext, name: RunnerName, tensor_parallel_size: int = 1) -> tuple[BoundDrafter | None, Selection]:
    """Build what the settings name, and admit it to a runner.

    :raises AccelplugError: a plugin fails to build, or the runner cannot run it.
    """
    known = refuse_unbuilt(settings, name, tensor_parallel_size) is not None
    verifier = registry().build("verifier", settings.verifier, context)
    drafter = nothing(settings) if settings.drafter is None else registry().build("drafter", settings.drafter, context)
    selection = Selection(drafter, verifier)
    _admit(selection, settings, name, tensor_parallel_size, sampling=not known)
    if drafter is None:
        return None, selection
    bound = bind_drafter(drafter)
    if name == "V2" and bound.propose_on_device is not None:
        refuse_no_numbers(drafter)
    if name == "V1" and bound.is_device_only:
        raise HostError(f"{drafter} drafts on the device only, which vLLM's V1 runner cannot use; give it propose(view) or use runner 'v2'")
    return bound, selection
