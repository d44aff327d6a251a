"""Steps of the V1 runner in which nobody has a draft: they run as they do in an engine that never speculates.

A runner with a speculative configuration works out in every step whose logits are whose, tells the padding of drafts from tokens, and
asks for drafts in between. Without drafts none of that changes the step, so it takes place without the configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Undrafted:
    """Stands in for a runner's `execute_model` and `sample_tokens`, which are what a step consists of.

    :param runner: vLLM's V1 model runner.
    :param draft: called behind a step without drafts, in which the runner does not ask for any, with what it returned.
    :ivar is_plain: whether the step that began last is such a one.
    """

    def __init__(self, runner: Any, draft: Callable[[Any], None]) -> None:
        self.runner, self.draft, self.speculative = runner, draft, runner.speculative_config
        self.execute, self.sample = runner.execute_model, runner.sample_tokens
        model = runner.model_config
        self.applies = not (model.is_hybrid or model.is_attention_free)  # recurrent states are laid out for drafts in every step
        self.is_plain = False
        runner.execute_model, runner.sample_tokens = self.execute_model, self.sample_tokens

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Begin a step.

        :param scheduler_output: vLLM's SchedulerOutput.
        """
        self.is_plain = self.applies and not scheduler_output.scheduled_spec_decode_tokens
        return self._run(self.execute, scheduler_output, *args, **kwargs)

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Finish it."""
        output = self._run(self.sample, *args, **kwargs)
        if self.is_plain:
            self.draft(output)
        return output

    def _run(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.is_plain:
            return method(*args, **kwargs)
        self.runner.speculative_config = None
        try:
            return method(*args, **kwargs)
        finally:
            self.runner.speculative_config = self.speculative
