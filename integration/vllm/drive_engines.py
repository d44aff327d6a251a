"""Runs engines, one after the other in one process, and writes down what they did. Started by the tests as a subprocess.

The job is a JSON file: ``{"engines": [{"name": ..., "kwargs": {...}, "batches": [{"prompts": [[ids]], "params": {...}}]}]}``.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def run(job: dict[str, Any]) -> dict[str, Any]:
    try:
        llm = LLM(**job["kwargs"])
    except Exception as exc:
        return {"error": type(exc).__name__, "message": str(exc)}
    config = llm.llm_engine.vllm_config
    outputs = [generate(llm, batch, job["log"]) for batch in job["batches"]]
    configured = "accelplug" in (config.additional_config or {})
    done = {
        "outputs": outputs,
        "status": llm.collective_rpc("accelplug_status") if configured else None,
        "v2": config.use_v2_model_runner,
        "async": bool(config.scheduler_config.async_scheduling),
        "worker_cls": config.parallel_config.worker_cls,
        "metrics": {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")},
        "modules": sorted(name for name in sys.modules if name.startswith("accelplug")),
    }
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return done


def generate(llm: LLM, batch: dict[str, Any], log: str | None) -> list[dict[str, Any]]:
    if log:
        with Path(log).open("a") as marks:
            marks.write('"next batch"\n')
    params = batch["params"]
    given = [SamplingParams(**one) for one in params] if isinstance(params, list) else SamplingParams(**params)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in batch["prompts"]], given, use_tqdm=False)
    return [
        {"token_ids": list(one.token_ids), "text": one.text, "finish_reason": one.finish_reason, "stop_reason": one.stop_reason}
        for output in outputs
        for one in output.outputs
    ]


if __name__ == "__main__":
    given, result = Path(sys.argv[1]), Path(sys.argv[2])
    result.write_text(json.dumps({job["name"]: run(job) for job in json.loads(given.read_text())["engines"]}))
