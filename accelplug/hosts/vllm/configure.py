"""Turn accelplug's settings into vLLM's own: a speculative configuration, a runner, and a worker class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from accelplug._errors import AccelplugError, HostError
from accelplug.hooks.capabilities import verifier_traits
from accelplug.hooks.registry import registry
from accelplug.hosts.vllm.answers import name_techniques
from accelplug.hosts.vllm.building import refuse_unbuilt
from accelplug.hosts.vllm.compat import ENGINE, V1_ONLY, RunnerName, require_audits, require_front_end, require_grammars, require_lengths
from accelplug.hosts.vllm.grammar_front import compile_ahead
from accelplug.hosts.vllm.lengths import SCHEDULE, lengthened, refuse_one_length
from accelplug.hosts.vllm.log import LOG
from accelplug.hosts.vllm.metrics import expose, tell_refused
from accelplug.hosts.vllm.plugin import KEY, check_requests, wrapped
from accelplug.hosts.vllm.scheduler import governed
from accelplug.hosts.vllm.seat import refuse_other_rules
from accelplug.hosts.vllm.settings import Settings, read_settings, serves_anyway
from accelplug.hosts.vllm.settings_file import settings_of
from accelplug.hosts.vllm.v2_form import cost_on_v1
from accelplug.hosts.vllm.worker import attached

METHODS: Final[Mapping[RunnerName, Mapping[str, str]]] = {
    "V1": {"method": "custom_class", "model": "accelplug.hosts.vllm.v1.Proposer"},
    "V2": {"method": "ngram_gpu"},
}
"""What vLLM is told. V2 admits no drafters of users, so vLLM's n-gram drafter keeps the place until the model is loaded."""


def configure(args: Any, create: Callable[[], Any]) -> Any:
    """Return vLLM's configuration with accelplug's drafter in it.

    :param args: vLLM's EngineArgs, which are left as they came, since vLLM may ask again.
    :param create: makes vLLM's configuration out of `args`.
    :raises AccelplugError: the settings are wrong, or vLLM cannot run them, unless they ask to serve then without accelplug.
    """
    given = args.additional_config
    settings = settings_of(given)
    try:
        args.additional_config = {**(given or {}), KEY: settings}
        return _configured(args, create)
    except AccelplugError as exc:
        if not serves_anyway(settings):
            raise
        LOG.error("accelplug: %s; the engine serves without it, as on_refused='serve' asks", exc)
        tell_refused(str(exc))
        args.additional_config = {name: value for name, value in (given or {}).items() if name != KEY}
        return create()
    finally:
        args.additional_config = given


def _configured(args: Any, create: Callable[[], Any]) -> Any:
    require_front_end()
    settings = read_settings(args.additional_config[KEY])
    _refuse_rust()
    _refuse_conflicts(args, settings)
    if settings.drafts:
        runner, config = _create(args, create, settings)
        _refuse_pipelines(config, settings)
    else:
        runner, config = _with_vllms_drafter(args, create, settings)
    if config.model_config.runner_type != "generate":
        who = settings.drafter or settings.grammar or settings.verifier
        raise HostError(f"{who} works for models that generate, and this one runs as {config.model_config.runner_type!r}")
    attaches = settings.drafts or _judges(settings)  # a grammar alone needs no worker of accelplug's
    if attaches:
        _refuse_early(config, settings, runner)
        _refuse_shards(config)
    if runner == "V1" and attaches:
        _refuse_dropped_processors(config)
    if runner == "V1" and settings.drafter is not None:
        LOG.info("accelplug: %s", cost_on_v1(registry().find("drafter", settings.drafter)[0]))
    if runner == "V2" and config.speculative_config is not None and config.lora_config is not None and config.device_config.device_type == "cpu":
        raise HostError("vLLM's V2 runner with LoRA on a CPU fails as soon as anything is drafted (its logits take one row a request); use runner 'v1'")
    check_requests()
    expose()
    if settings.audit:
        _install_audits()
    if settings.grammar is not None:
        _govern(config, settings)
    _adapt(config, settings, v2=runner == "V2")
    if attaches:
        name_techniques(config, settings)
        config.parallel_config.worker_cls = attached(config.parallel_config.worker_cls)
    _say_in_effect(config)
    return config


def _say_in_effect(config: Any) -> None:
    """Write a line to the log for each place that was taken; the workers write those of the model runner."""
    for method in wrapped():
        LOG.info("accelplug: in effect in vLLM's front end: %s is wrapped", method)
    drafter, scheduler = config.speculative_config, config.scheduler_config.scheduler_cls
    if config.parallel_config.worker_cls.startswith("accelplug."):
        LOG.info("accelplug: in effect in vLLM's configuration: worker_cls is %s", config.parallel_config.worker_cls)
    if drafter is not None and read_settings(config.additional_config[KEY]).drafts:
        LOG.info("accelplug: in effect in vLLM's configuration: speculative_config names %s, %d tokens", drafter.method, drafter.num_speculative_tokens)
    if isinstance(scheduler, str) and scheduler.startswith("accelplug."):
        LOG.info("accelplug: in effect in vLLM's configuration: scheduler_cls is %s", scheduler)


def _refuse_early(config: Any, settings: Settings, runner: RunnerName) -> None:
    """Refuse what the worker would refuse once the model is loaded, as far as it is known by now."""
    rule = refuse_unbuilt(settings, runner, config.parallel_config.tensor_parallel_size)
    if rule is not None and not verifier_traits(rule).standard:
        refuse_other_rules(rule, config)


def _refuse_pipelines(config: Any, settings: Settings) -> None:
    """Neither runner carries a drafter of others there: both were seen to die on their first rank, V1 before it serves and V2 (0.32) with the first draft."""
    ranks = config.parallel_config.pipeline_parallel_size
    if ranks > 1:
        raise HostError(
            f"{_drafter(settings)} cannot draft under pipeline parallelism (pipeline_parallel_size={ranks}), where vLLM's first ranks do not know its "
            "drafts; use tensor or data parallelism"
        )


def _refuse_shards(config: Any) -> None:
    """Each rank would judge its own requests, and only the first one's counters are read. No release before 0.32 has the setting."""
    if getattr(config.parallel_config, "enable_batch_sharded_sampling", False):
        raise HostError(
            "with vLLM's enable_batch_sharded_sampling each tensor-parallel rank verifies requests of its own, which accelplug's counters would leave "
            "out; turn that off"
        )


def _install_audits() -> None:
    require_audits()
    from accelplug.hosts.vllm.audit import install

    install()


def _govern(config: Any, settings: Settings) -> None:
    """Put accelplug's scheduler on top of vLLM's, which is where grammars are compiled and drafts meet them."""
    require_grammars()
    if config.model_config.skip_tokenizer_init:
        raise HostError(f"grammar '{settings.grammar}' needs the tokenizer's tokens; start vLLM without skip_tokenizer_init, or remove the grammar")
    if settings.drafts and settings.drafter is None and config.scheduler_config.async_scheduling:
        raise HostError(
            f"grammar '{settings.grammar}' alone drafts what it forces, and under asynchronous scheduling nobody knows that before the next step "
            "runs; set async_scheduling=False, leave num_tokens out, or add a drafter"
        )
    if getattr(config.speculative_config, "draft_sample_method", None) == "probabilistic":
        raise HostError(
            f"vLLM cuts the drafts that grammar '{settings.grammar}' forbids and verifies the others with probabilities of all, which is not exact; "
            "take draft_sample_method='probabilistic' out of the speculative_config, or remove the grammar"
        )
    compile_ahead()
    config.scheduler_config.scheduler_cls = governed(config.scheduler_config.get_scheduler_cls())


def _create_of_any_length(args: Any, create: Callable[[], Any]) -> Any:
    """Make a configuration in which drafts have a length for each size of a batch, so that vLLM is ready for several; `args` are left as they came.

    :raises HostError: this release has no such thing, or the user has decided about it.
    """
    require_lengths()
    given, name = args.speculative_config, "num_speculative_tokens_per_batch_size"
    if name in {key.replace("-", "_") for key in given or ()}:
        raise HostError(f"vLLM's {name} and length 'adaptive' both decide how many tokens are drafted; remove one of them")
    if given or args.spec_method or args.spec_model:
        args.speculative_config = {**(given or {}), name: SCHEDULE}
    try:
        return create()
    finally:
        args.speculative_config = given


def _adapt(config: Any, settings: Settings, *, v2: bool) -> None:
    """Put accelplug's scheduler on top of the one so far, which is where lengths are decided."""
    if settings.length == "fixed":
        return
    refuse_one_length(config, v2=v2)
    scheduler = config.scheduler_config.scheduler_cls or config.scheduler_config.get_scheduler_cls()
    config.scheduler_config.scheduler_cls = lengthened(scheduler if isinstance(scheduler, str) else f"{scheduler.__module__}.{scheduler.__qualname__}")


def _refuse_rust() -> None:
    """The front end in Rust runs none of the methods that are wrapped here: what a request sets would go to the techniques unchecked."""
    from vllm import envs

    if envs.VLLM_USE_RUST_FRONTEND:
        raise HostError(
            "vLLM's Rust front end (VLLM_USE_RUST_FRONTEND=1 in the environment) checks no options of requests and no grammars, audits nothing "
            "and shows none of accelplug's counters; remove the variable, so that vLLM's Python front end serves"
        )


def _refuse_conflicts(args: Any, settings: Settings) -> None:
    given = args.speculative_config or {flag: value for flag in ("spec_method", "spec_model", "spec_tokens") if (value := getattr(args, flag, None))}
    if given and settings.drafts:
        raise HostError(
            f"speculative_config={given} and accelplug's {_drafter(settings)} are two drafters; remove one of them "
            "(accelplug's verifiers also judge what vLLM's drafters draft)"
        )


def _judges(settings: Settings) -> bool:
    """Whether a rule was asked for: beside a grammar, the default stands for none."""
    return settings.grammar is None or settings.verifier.name != "token_wise"


def _drafter(settings: Settings) -> str:
    return f"grammar '{settings.grammar}' with num_tokens" if settings.drafter is None else f"drafter '{settings.drafter}'"


def _with_vllms_drafter(args: Any, create: Callable[[], Any], settings: Settings) -> tuple[RunnerName, Any]:
    """Leave vLLM's drafter as the user wrote it: our verifier judges what vLLM drafts, our grammars mask it, our scheduler says how much it is."""
    config = create() if settings.length == "fixed" else _create_of_any_length(args, create)
    if config.speculative_config is None and settings.length == "adaptive":
        raise HostError("length 'adaptive' is that of what vLLM's own drafters draft, and nothing drafts; add a speculative_config, or remove the length")
    if config.speculative_config is None and _judges(settings):
        raise HostError(
            f"verifier '{settings.verifier}' judges drafts and nothing drafts; add {{'drafter': 'prompt_lookup'}} or a speculative_config"
        )
    if config.use_v2_model_runner and ENGINE.restriction() is not None:
        raise HostError(f"verifier '{settings.verifier}' cannot be used: vLLM {ENGINE.version()} runs {V1_ONLY}; set VLLM_USE_V2_MODEL_RUNNER=0")
    return ("V2" if config.use_v2_model_runner else "V1"), config


def _create(args: Any, create: Callable[[], Any], settings: Settings) -> tuple[RunnerName, Any]:
    """Configure V2 where vLLM would run it, else V1."""
    problem = _why_not_v2(settings)
    if problem is None:
        config = _create_for("V2", args, create, settings)
        if config.use_v2_model_runner:
            return "V2", config
        problem = "vLLM does not run " + ", ".join(config._get_v2_model_runner_unsupported_features()) + " on it"
    if settings.runner == "v2":
        raise HostError(f"runner 'v2' cannot be used: {problem}; use runner 'auto'")
    config = _create_for("V1", args, create, settings)
    if config.use_v2_model_runner:
        raise HostError("runner 'v1' cannot be used: this configuration makes vLLM run V2; use runner 'auto'")
    return "V1", config


def _why_not_v2(settings: Settings) -> str | None:
    """Return what rules V2 out before a configuration is made, or None."""
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    forced = envs.VLLM_USE_V2_MODEL_RUNNER
    if settings.runner == "v1":
        if forced:
            raise HostError("runner 'v1' contradicts VLLM_USE_V2_MODEL_RUNNER=1 in the environment; remove one of them")
        return "runner 'v1' was asked for"
    if ENGINE.restriction() is not None:
        return f"vLLM {ENGINE.version()} runs {V1_ONLY}"
    if forced is False:
        return "VLLM_USE_V2_MODEL_RUNNER=0 in the environment"
    return None if HAS_TRITON else "it needs Triton, which is not installed or not active here"


def _create_for(runner: RunnerName, args: Any, create: Callable[[], Any], settings: Settings) -> Any:
    """Make vLLM's configuration; `args` are left as they came, since vLLM may ask again."""
    if runner == "V1" and args.async_scheduling:
        raise HostError(f"on vLLM's V1 runner {_drafter(settings)} drafts without asynchronous scheduling, which the configuration asks for; leave that out")
    given = args.speculative_config
    args.speculative_config = {**METHODS[runner], "num_speculative_tokens": settings.num_tokens}
    try:
        config = create()
    finally:
        args.speculative_config = given
    method = getattr(config.speculative_config, "method", None)
    if method != METHODS[runner]["method"]:
        raise HostError(f"the checkpoint brings its own drafter (method {method!r}) beside {_drafter(settings)}; serve the target model itself")
    return config


def _refuse_dropped_processors(config: Any) -> None:
    """V1 drops installed logits processors without a word when it speculates, and stops at those that its configuration names."""
    named = [one if isinstance(one, str) else one.__qualname__ for one in config.model_config.logits_processors or ()]
    installed = named + [entry_point.name for entry_point in entry_points(group="vllm.logits_processors")]
    if installed:
        raise HostError(
            f"vLLM's V1 runner takes no logits processors while drafting, and would drop {', '.join(installed)}; "
            "use the V2 runner, remove them, or run without a drafter"
        )
