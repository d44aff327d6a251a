"""The process that holds one vLLM engine for ``accelplug run``: a job file in, an answer file out."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelplug._errors import HostError
from accelplug.cli.check import engine_of
from accelplug.cli.errors import sentence
from accelplug.cli.job import Job
from accelplug.cli.workload import check_length, missing_weights
from accelplug.hooks.masking import CompileLimits, GrammarSpec
from accelplug.hooks.spelling import Spec

COUNTERS = ("requests", "forwards", "tokens", "drafts", "drafted", "accepted", "lossy_accepts")
VLLMS_WORDS = {
    "json_schema": "json", "regex": "regex", "ebnf": "grammar", "lark": "grammar", "choice": "choice", "structural_tag": "structural_tag"
}  # fmt: skip
"""Kind of grammar -> what vLLM's requests call it; between the two notations called grammar vLLM tells by the text."""


def main(asked: str, answered: str) -> None:
    """Answer the job in the file `asked`; a failure is answered too, as one sentence."""
    given = json.loads(Path(asked).read_text())
    try:
        answer = measure(Job(**given["job"]), accelerated=given["accelerated"])
    except Exception as exc:  # noqa: BLE001  the parent tells the user, whatever it was
        traceback.print_exc()
        answer = {"refused": sentence(exc) or f"vLLM failed with {type(exc).__name__}: {' '.join(str(exc).split())[:500]}"}
    Path(answered).write_text(json.dumps(answer))


def measure(job: Job, *, accelerated: bool) -> dict[str, Any]:
    """Build one engine, warm it up once, and take the timed rounds.

    :raises HostError: vLLM is missing or untested, cannot load the model, or a technique was switched off.
    """
    engine = engine_of("vllm")
    engine.require()
    if job.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
    asked = {} if job.grammar is None else structured(job.grammar)
    prompt, length, dtype = _read_model(job)
    llm = _build(job, length, dtype, accelerated=accelerated)
    rounds, before = [], {}
    for _ in range(job.rounds + 1):
        before = _status(llm) if accelerated else {}
        rounds.append(_generate(llm, job, prompt, asked))
    after = _status(llm) if accelerated else {}
    tokens, text, _ = rounds[-1]
    return {
        "tokens": tokens,
        "text": text,
        "seconds": [seconds for _, _, seconds in rounds[1:]],
        "margins": _margins(llm, job, prompt, asked) if not accelerated and job.temperature == 0 else None,
        "stats": since(before["stats"], after["stats"]) if accelerated else None,
        "runner": after["runner"] if accelerated else None,
        "grammar": _said(llm, job.grammar, tokens) if job.grammar is not None else None,
        "dtype": str(llm.llm_engine.model_config.dtype).removeprefix("torch."),
        "versions": {"accelplug": version("accelplug"), "vllm": str(engine.version()), "torch": version("torch")},
    }


def _read_model(job: Job) -> tuple[list[int], int, str]:
    """Return the prompt's token ids, the context length the job needs, and the dtype to load."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(job.model)
        config = AutoConfig.from_pretrained(job.model)
    except (OSError, ValueError, ImportError) as exc:
        raise missing_weights(job.model, exc) from exc
    prompt: list[int] = tokenizer(job.prompt)["input_ids"]
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    check_length(len(prompt), job.max_new_tokens, limit)
    room = len(prompt) + job.max_new_tokens + 64  # drafts past the last token need places too
    stored = str(config.dtype).removeprefix("torch.") if config.dtype is not None else "auto"
    return prompt, min(room, limit or room), stored if job.dtype == "auto" else job.dtype


def _build(job: Job, length: int, dtype: str, *, accelerated: bool) -> Any:
    from vllm import LLM

    masked = {} if job.grammar is None else {"grammar": "auto"}
    settings = {"drafter": job.drafter, "verifier": job.verifier, "allow_lossy": job.allow_lossy} if accelerated else {}
    return LLM(
        job.model,
        dtype=dtype,
        max_model_len=length,
        seed=job.seed,
        enable_prefix_caching=False,
        additional_config={"accelplug": {**settings, **masked}} if settings or masked else {},
    )


def structured(given: dict[str, Any]) -> dict[str, Any]:
    """Return a grammar in vLLM's words for a request, with its options for accelplug, as SamplingParams takes them.

    Of several grammars vLLM has words for the first, and accelplug's option has the rest.
    """
    from vllm.sampling_params import StructuredOutputsParams

    from accelplug.hosts.vllm.grammar_request import MORE  # the kind of several grammars, too

    spec = GrammarSpec.of(given)
    if spec.kind == MORE:
        first, *rest = map(_given, spec.parts())
        asked = structured(first)
        options = asked["extra_args"]["accelplug"]
        return asked | {"extra_args": {"accelplug": {**options, MORE: [*options.get(MORE, ()), *rest]}}} if rest else asked
    wanted = StructuredOutputsParams(**{VLLMS_WORDS[spec.kind]: spec.value() if spec.kind == "choice" else spec.text})
    return {"structured_outputs": wanted, "extra_args": {"accelplug": {name: given[name] for name in given if name != spec.kind}}}


def _given(spec: GrammarSpec) -> dict[str, Any]:
    """Return a grammar as users write it, with the options that it sets."""
    options = {one.name: getattr(spec, one.name) for one in fields(spec) if one.name not in {"kind", "text"}}
    defaults = GrammarSpec(spec.kind, spec.text)
    return {spec.kind: spec.text} | {name: value for name, value in options.items() if value != getattr(defaults, name)}


def _said(llm: Any, given: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    """Return what became of the grammar; compiled as the engine's own was, for the same tokens."""
    from accelplug.cli.on_transformers import said_of
    from accelplug.hosts.hf import Grammar
    from accelplug.hosts.vllm.grammar_engines import Engines, whole_vocabulary

    config = llm.llm_engine.vllm_config
    vocabulary = whole_vocabulary(config, llm.get_tokenizer())
    return said_of(Grammar(Engines(Spec("auto"), config).engine(None), GrammarSpec.of(given), vocabulary, CompileLimits()), tokens)


def _sampling(job: Job, **more: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=job.temperature, seed=job.seed, max_tokens=job.max_new_tokens, **more)


def _generate(llm: Any, job: Job, prompt: list[int], asked: dict[str, Any]) -> tuple[list[int], str, float]:
    began = time.perf_counter()
    (found,) = llm.generate([{"prompt_token_ids": prompt}], _sampling(job, **asked), use_tqdm=False)
    seconds = time.perf_counter() - began
    return list(found.outputs[0].token_ids), found.outputs[0].text, seconds


def _margins(llm: Any, job: Job, prompt: list[int], asked: dict[str, Any]) -> list[float]:
    """Return how far the two best log-probabilities of each generated row lie apart, by one more run."""
    (found,) = llm.generate([{"prompt_token_ids": prompt}], _sampling(job, logprobs=2, **asked), use_tqdm=False)
    best = [sorted((entry.logprob for entry in row.values()), reverse=True) for row in found.outputs[0].logprobs]
    return [min(row[0] - row[1], sys.float_info.max) for row in best]  # a grammar may leave one token alone


def _status(llm: Any) -> dict[str, Any]:
    """Return what the worker says of the techniques; nothing on a plain engine.

    :raises HostError: a technique failed while serving and was switched off.
    """
    if "accelplug" not in (llm.llm_engine.vllm_config.additional_config or {}):
        return {}
    status: dict[str, Any] = llm.collective_rpc("accelplug_status")[0]
    drafter = status["drafter"]
    if drafter.get("switched_off"):
        who = f"drafter {drafter['name']!r} ({drafter['distribution']} {drafter['version']})"
        raise HostError(f"{who} was switched off: {drafter['switched_off']}; report it to {drafter['distribution']}")
    return status


def since(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the counters that one round added, and the ratios made of them."""
    added = {name: after[name] - before[name] for name in COUNTERS}
    techniques = [
        {**late, **{name: late[name] - early[name] for name in ("drafts", "drafted", "accepted")}}
        for early, late in zip(before["techniques"], after["techniques"], strict=True)
    ]
    acceptance = added["accepted"] / added["drafted"] if added["drafted"] else 0.0
    per_forward = added["tokens"] / added["forwards"] if added["forwards"] else 0.0
    return {**added, "techniques": techniques, "acceptance": acceptance, "tokens_per_forward": per_forward}


if __name__ == "__main__":
    main(*sys.argv[1:])
