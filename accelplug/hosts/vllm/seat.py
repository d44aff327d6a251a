"""A plugin's verification rule in its place: the runner's rejection sampler, on that one instance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accelplug._errors import HostError
from accelplug.hooks.drafting import IntArray
from accelplug.hooks.registry import Technique
from accelplug.hosts.vllm.attachment import require_in_effect
from accelplug.hosts.vllm.judging import Judge
from accelplug.hosts.vllm.requests import RequestOptions, defaults_of


class Seat:
    """Puts a rule into a runner, before vLLM profiles or captures anything.

    :param runner: vLLM's model runner, its model loaded.
    :param requests: what the running requests set for themselves.
    :param real: V2: how many drafts of each slot are no padding, [num_slots]; None where nothing is padded.
    :raises HostError: the speculative configuration asks for another rule of vLLM's, or for one that depends on it.
    """

    def __init__(self, runner: Any, judge: Judge, requests: RequestOptions, *, v2: bool, real: Tensor | None = None) -> None:
        refuse_other_rules(judge.rule, runner.vllm_config)
        self.runner, self.judge, self.requests = runner, judge, requests
        self.defaults = defaults_of(judge.rule)
        if v2:
            from accelplug.hosts.vllm.v2_judging import JudgingSampler as JudgingSamplerV2

            self.sampler: Any = JudgingSamplerV2(runner.rejection_sampler, judge, self._of_slots, real)
        else:
            from accelplug.hosts.vllm.v1_judging import JudgingSampler as JudgingSamplerV1

            self.sampler = JudgingSamplerV1(runner.rejection_sampler, judge, self._of_batch)
        runner.rejection_sampler = self.sampler

    def _of_batch(self) -> dict[str, Tensor]:
        """Return V1's requests' options, row by row."""
        return self._values(self.runner.input_batch.req_ids)

    def _of_slots(self, slots: IntArray) -> dict[str, Tensor]:
        """Return the options of the requests in V2's slots."""
        if not self.requests:
            return {}
        names = self.runner.req_states.index_to_req_id
        return self._values([names[slot] for slot in slots.tolist()])

    def _values(self, req_ids: list[str]) -> dict[str, Tensor]:
        return self.requests.tensors(self.defaults, req_ids, self.runner.device)

    def verify(self) -> None:
        """Refuse to serve if somebody replaced the sampler; from here on the rule's work counts."""
        require_in_effect(self.runner.rejection_sampler, self.sampler, "runner.rejection_sampler")
        self.judge.serving = True


def refuse_other_rules(rule: Technique, config: Any) -> None:
    """Refuse settings of vLLM's that need its own rule.

    :raises HostError: naming the setting.
    """
    speculative = config.speculative_config
    method = speculative.rejection_sample_method
    if method != "standard":
        raise HostError(f"{rule} and vLLM's rejection_sample_method {method!r} are two verification rules; remove one of them")
    if getattr(speculative, "enable_adaptive_verification", False):
        raise HostError(f"{rule} judges all that was drafted, and vLLM's adaptive verification leaves drafts out; turn that off")
    if getattr(config, "watermark_config", None) is not None:
        raise HostError(f"vLLM's watermarks need its own verification rule, and {rule} was asked for; use verifier 'token_wise'")
