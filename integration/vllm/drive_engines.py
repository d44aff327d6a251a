"""Runs engines, one after the other in one process, and writes down what they did. Started by the tests as a subprocess.

A line of its input names a job and where to write what came of it. The job is a JSON file:
``{"engines": [{"name": ..., "kwargs": {...}, "batches": [{"prompts": [[ids]], "params": {...}}]}]}``.
An engine may have ``"others": [{"name": ..., "accelplug": {...}, "batches": [...]}]``: other settings, one after the other,
put into the same engine, since starting one takes longer than all that is asked of it. An engine that is ``"shared"``
is started once and stays; whoever asks for it gets the settings put into it that stand beside its ``"kwargs"``. Batches under
``"profiled"`` are run behind the others, in a profile in which waits for the device are counted.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from counting import count_graphs, profiled
from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest
from vllm.reasoning import ReasoningParserManager
from vllm.sampling_params import StructuredOutputsParams

from accelplug.hosts.vllm import audit, worker

SWAPPED = ("drafter", "speculator", "rejection_sampler", "_sample", "_get_spec_decode_draft_probs", "execute_model", "sample_tokens")
vllms_own: dict[str, Any] = {}
graphs = count_graphs()
"""Captured by the engine that lives, and replayed since this process began."""


def remember_what_is_swapped() -> None:
    """Keep what accelplug replaces in a runner, so that another selection can be attached to it."""
    attach = worker.attach

    def attach_and_remember(runner: Any, *, v2: bool) -> Any:
        vllms_own.update({name: getattr(runner, name) for name in SWAPPED if hasattr(runner, name)})
        return attach(runner, v2=v2)

    worker.attach = attach_and_remember


def switch(llm: LLM, settings: dict[str, Any], reasoning: str | None) -> None:
    """Put other techniques into an engine."""
    core = llm.llm_engine.engine_core.engine_core
    inner = core.model_executor.driver_worker.worker
    runner = inner.model_runner
    for name, value in vllms_own.items():
        setattr(runner, name, value)
    runner.vllm_config.additional_config["accelplug"] = llm.llm_engine.vllm_config.additional_config["accelplug"] = settings
    if "audit" in settings:
        audit.install()
    govern(core.scheduler, settings, reasoning)
    vars(llm.llm_engine.input_processor).pop("accelplug_grammars", None)  # what the front end keeps of the settings before
    inner.accelplug = worker.attach(runner, v2=inner.use_v2_model_runner)
    inner.accelplug_board = None  # whose file names the techniques before
    inner.accelplug.verify()


def govern(scheduler: Any, settings: dict[str, Any], reasoning: str | None) -> None:
    """Let a scheduler do what the one does that these settings would have made: accelplug's where they name a grammar's engine, else vLLM's own.

    vLLM's own cannot become accelplug's once it is made, so an engine in which grammars are asked for later has to be started with one.
    """
    manager = scheduler.structured_output_manager
    for kept, name in ((scheduler, "accelplug"), (manager, "grammar_init")):
        vars(kept).pop(name, None)
    manager.reasoner_cls = reasoning and ReasoningParserManager.get_reasoning_parser(reasoning)
    made = getattr(scheduler, "made_as", type(scheduler))
    _, ours, vllms, *_ = made.__mro__
    if "grammar" in settings:
        scheduler.__class__ = made
        scheduler.accelplug_govern()
        scheduler.accelplug.board = None
    elif ours.__module__.startswith("accelplug."):
        own = {name: getattr(vllms, name) for name in vars(ours) if not name.startswith("__") and hasattr(vllms, name)}
        scheduler.__class__ = type("Ungoverned", (made,), {**own, "made_as": made})


def run(job: dict[str, Any]) -> dict[str, Any]:
    if job.get("shared"):
        return shared(job)
    graphs["captured"] = 0
    try:
        llm = LLM(**job["kwargs"])
    except Exception as exc:
        return {job["name"]: {"error": type(exc).__name__, "message": str(exc)}}
    found = {job["name"]: asked(llm, job)} | others(llm, job)
    llm.llm_engine.engine_core.shutdown()
    del llm
    vllms_own.clear()
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


held: list[tuple[dict[str, Any], LLM]] = []


def shared(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job in the engine that stays."""
    if not held:
        held.append((job["kwargs"], LLM(**job["kwargs"])))
    ((kwargs, llm),) = held
    assert job["kwargs"] == kwargs, f"{job['name']} asks for another engine"
    return others(llm, {"others": [job]}) if "accelplug" in job else {job["name"]: asked(llm, job)}


def others(llm: LLM, job: dict[str, Any]) -> dict[str, Any]:
    """Put other settings into an engine, one after the other."""
    found = {}
    for other in job["others"]:
        try:
            switch(llm, other["accelplug"], other.get("reasoning"))
            found[other["name"]] = asked(llm, {"log": None, **other})
        except Exception as exc:
            found[other["name"]] = {"error": type(exc).__name__, "message": str(exc)}
    return found


def asked(llm: LLM, job: dict[str, Any]) -> dict[str, Any]:
    config = llm.llm_engine.vllm_config
    configured = config.parallel_config.worker_cls.startswith("accelplug.")  # a grammar alone needs no worker
    before, grammars, replayed = counted(llm), masked(llm), graphs["replayed"]
    outputs, stats, metrics = [], [], []
    for batch in job["batches"]:
        outputs.append(generate(llm, batch, job["log"]))
        stats.append(llm.collective_rpc("accelplug_status")[0]["stats"] if configured else None)
        metrics.append({name: value - before.get(name, 0) for name, value in counted(llm).items()})
    profile = profiled(llm, lambda: [generate(llm, batch, job["log"]) for batch in job["profiled"]]) if job.get("profiled") else None
    return {
        "outputs": outputs,
        "metrics of batches": metrics,  # counted since the start, like the next
        "profile": profile,
        "graphs": {"captured": graphs["captured"], "replayed": graphs["replayed"] - replayed, "mode": str(config.compilation_config.cudagraph_mode)},
        "stats of batches": stats,  # counted since the start
        "status": llm.collective_rpc("accelplug_status") if configured else None,
        "v2": config.use_v2_model_runner,
        "async": bool(config.scheduler_config.async_scheduling),
        "worker_cls": config.parallel_config.worker_cls,
        "metrics": {name: value - before.get(name, 0) for name, value in counted(llm).items()},
        "grammars": {name: {key: value - grammars.get(name, {}).get(key, 0) for key, value in tally.items()} for name, tally in masked(llm).items()},
        "refused": [sample.labels["reason"] for metric in REGISTRY.collect() if metric.name == "accelplug_refused_info" for sample in metric.samples],
        "modules": sorted(name for name in sys.modules if name.startswith("accelplug")),
    }


def counted(llm: LLM) -> dict[str, float]:
    """Return vLLM's own counters and those of audits, which run on through other settings in the same engine."""
    audits = {name: REGISTRY.get_sample_value(name) or 0.0 for name in ("accelplug_audited_requests_total", "accelplug_audit_mismatches_total")}
    return {**{metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}, **audits}


def masked(llm: LLM) -> dict[str, dict[str, float]]:
    """Return what grammars came to, by engine; none where accelplug compiles none."""
    grammars = getattr(llm.llm_engine.engine_core.engine_core.scheduler, "accelplug", None)
    return {} if grammars is None else grammars.status()


def generate(llm: LLM, batch: dict[str, Any], log: str | None) -> list[dict[str, Any]]:
    if log:
        with Path(log).open("a") as marks:
            marks.write('"next batch"\n')
    params = batch["params"]
    given = [sampling(one) for one in params] if isinstance(params, list) else sampling(params)
    adapters = [folder and LoRARequest("adapter", 1, folder) for folder in batch.get("adapters", ())] or None
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in batch["prompts"]], given, use_tqdm=False, lora_request=adapters)
    return [
        {"token_ids": list(one.token_ids), "text": one.text, "finish_reason": one.finish_reason, "stop_reason": one.stop_reason, **logprobs(one)}
        for output in outputs
        for one in output.outputs
    ]


def sampling(given: dict[str, Any]) -> SamplingParams:
    structured = given.get("structured_outputs")
    return SamplingParams(**{**given, "structured_outputs": structured and StructuredOutputsParams(**structured)})


def logprobs(one: Any) -> dict[str, Any]:
    """Return what vLLM says of the generated tokens' log-probabilities, where it was asked, and by how much the likeliest led where two are known."""
    if one.logprobs is None:
        return {}
    best = [sorted((entry.logprob for entry in row.values()), reverse=True)[:2] for row in one.logprobs]
    said = [row[token].logprob for row, token in zip(one.logprobs, one.token_ids, strict=True)]
    return {"logprobs": said, "margins": [row[0] - row[1] if len(row) > 1 else None for row in best]}


if __name__ == "__main__":
    remember_what_is_swapped()
    for line in sys.stdin:
        given, result = map(Path, line.rstrip("\n").split("\t"))
        found: dict[str, Any] = {}
        for job in json.loads(given.read_text())["engines"]:
            found |= run(job)
        whole = result.with_suffix(".new")
        whole.write_text(json.dumps(found))
        whole.rename(result)
