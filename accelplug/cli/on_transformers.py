"""Run a job on Transformers: plain and accelerated rounds take turns in one process, on the same weights."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from accelplug._errors import HostError
from accelplug.cli.job import Job, Measurement, Output
from accelplug.cli.workload import check_length, missing_weights

if TYPE_CHECKING:
    from accelplug.hosts.hf import Grammar


def measure(job: Job) -> Measurement:
    """Load the model, warm both ways up once, then take the rounds in turns.

    :raises AccelplugError: the model cannot be loaded, the job does not fit it, or a technique is refused.
    """
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    model, tokenizer = load(job.model, job.dtype)
    inputs = tokenizer(job.prompt, return_tensors="pt").to(model.device)
    check_room(model, inputs["input_ids"].shape[1], job.max_new_tokens)
    rounds = _Rounds(job, model, tokenizer, inputs)
    for _ in range(job.rounds + 1):
        rounds.take()
    plain = rounds.output(rounds.plain) if job.compare else None
    margins = row_margins(model, inputs["input_ids"], plain.tokens, rounds.grammar) if plain is not None and job.temperature == 0 else None
    return Measurement(
        rounds.output(rounds.accelerated),
        plain,
        margins,
        rounds.stats,
        str(model.dtype).removeprefix("torch."),
        f"medians of {job.rounds} rounds after one warm-up" + _turns(job),
        {name: version(name) for name in ("accelplug", "transformers", "torch")},
        None if rounds.grammar is None else said_of(rounds.grammar, rounds.output(rounds.accelerated).tokens),
    )


def _turns(job: Job) -> str:
    return "" if not job.compare else ", plain and accelerated in turns" + (", both under the grammar" if job.grammar else "")


def said_of(grammar: Grammar, tokens: list[int]) -> dict[str, Any]:
    """Return what became of a grammar: by whom, which keywords are enforced and which checked, and what the final check of an answer found."""
    said = grammar.statement
    return {"engine": said.engine, "enforced": list(said.enforced), "checked": list(said.checked), "problem": grammar.problem_of(tokens)}


def load(name: str, dtype: str) -> tuple[Any, Any]:
    """Return model and tokenizer, on the accelerator where there is one.

    :raises HostError: Transformers cannot load one of them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    kind = AutoModelForSeq2SeqLM if is_encoder_decoder(name) else AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = kind.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, ImportError) as exc:
        raise missing_weights(name, exc) from exc
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def is_encoder_decoder(name: str) -> bool:
    """Whether the prompts of a model, as yet not loaded, go into an encoder.

    :raises HostError: Transformers cannot read its configuration.
    """
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.from_pretrained(name).is_encoder_decoder)
    except (OSError, ValueError, ImportError) as exc:
        raise missing_weights(name, exc) from exc


def before_the_answer(model: Any, prompt_length: int) -> int:
    """Return how many tokens stand before a row's answer in what ``generate()`` returns: the prompt, or a decoder's one start token."""
    return 1 if model.config.is_encoder_decoder else prompt_length


def prompt_room(model: Any, max_new_tokens: int) -> int:
    """Return the most prompt tokens that go with so many new ones; with an encoder of its own a prompt takes no room from the answer."""
    from accelplug.hosts.hf.context import build_context

    limit = build_context(model, None).max_length
    return limit - max_new_tokens if not model.config.is_encoder_decoder else limit if max_new_tokens < limit else 0


def check_room(model: Any, prompt_length: int, max_new_tokens: int) -> None:
    """Refuse a run that does not fit the model.

    :raises OptionError: naming the model's limit and what fits.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if model.config.is_encoder_decoder:
        check_length(prompt_length, 0, limit)
    check_length(before_the_answer(model, prompt_length), max_new_tokens, limit)


class _Rounds:
    """The repetitions of one job. The first of each way is the warm-up; the rest are timed."""

    def __init__(self, job: Job, model: Any, tokenizer: Any, inputs: Any) -> None:
        from accelplug.hosts.hf import grammar

        self.job, self.model, self.tokenizer, self.inputs = job, model, tokenizer, inputs
        self.begins = before_the_answer(model, inputs["input_ids"].shape[1])
        self.grammar = None if job.grammar is None else grammar(model, job.grammar, tokenizer=tokenizer)
        self.plain: list[tuple[list[int], float]] = []
        self.accelerated: list[tuple[list[int], float]] = []
        self.stats: dict[str, Any] = {}

    def take(self) -> None:
        """Generate once in each way that the job asks for."""
        from accelplug.hosts.hf import attach

        if self.job.compare:
            masks = {} if self.grammar is None else {"logits_processor": [self.grammar.after(self.begins)]}
            self.plain.append(self._timed(**masks))
        job = self.job
        chosen: dict[str, Any] = {"drafter": job.drafter, "verifier": job.verifier, "allow_lossy": job.allow_lossy, "grammar": self.grammar}
        with attach(self.model, tokenizer=self.tokenizer, **chosen) as session:
            self.accelerated.append(self._timed())
        self.stats = session.stats.as_dict()

    def _timed(self, **masks: Any) -> tuple[list[int], float]:
        import torch

        torch.manual_seed(self.job.seed)
        began = time.perf_counter()
        found = self.model.generate(**self.inputs, max_new_tokens=self.job.max_new_tokens, **decoding(self.job.temperature), **masks)
        tokens: list[int] = found[0, self.begins :].tolist()
        return tokens, time.perf_counter() - began

    def output(self, taken: list[tuple[list[int], float]]) -> Output:
        """Return what the rounds generated, which is the same in each, and the timed rounds' seconds.

        :raises HostError: rounds with one seed differ, so that nothing can be said about equality.
        """
        tokens = taken[-1][0]
        if any(other != tokens for other, _ in taken):
            raise HostError(
                "generation with one seed gave different tokens in different rounds, so outputs cannot be compared; use --rounds 1"
            )
        return Output(tokens, self.tokenizer.decode(tokens, skip_special_tokens=True), [seconds for _, seconds in taken[1:]])


def decoding(temperature: float) -> dict[str, Any]:
    """Return generate()'s arguments; the model's own sampling defaults are switched off, so that hosts agree."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0}


def row_margins(model: Any, prompt: Any, tokens: list[int], grammar: Grammar | None = None) -> list[float]:
    """Return how far the two best logits lie apart in each row that `tokens` came from, by one forward pass.

    :param prompt: [1, prompt_length] token ids.
    :param grammar: leaves the logits of tokens that it forbids out.
    :returns: [len(tokens)], of the raw logits, before any other logits processor; very large where only one token is legal.
    """
    import torch

    start = [model.generation_config.decoder_start_token_id] if model.config.is_encoder_decoder else []
    written = torch.tensor([start + tokens], device=prompt.device, dtype=prompt.dtype)
    with torch.inference_mode():
        if start:
            logits = model(prompt, decoder_input_ids=written).logits[0, :-1].float()  # [len(tokens), vocab_size]
        else:
            logits = model(torch.cat((prompt, written), dim=1)).logits[0, prompt.shape[1] - 1 : -1].float()
    if grammar is not None:
        ids = written if start else torch.cat((prompt, written), dim=1)
        begins = ids.shape[1] - len(tokens)
        mask = grammar.after(begins)
        logits = torch.cat([mask(ids[:, : begins + row], logits[row : row + 1]) for row in range(len(tokens))])
    best = logits.topk(2, dim=-1).values
    margins: list[float] = (best[:, 0] - best[:, 1]).clamp(max=torch.finfo(best.dtype).max).tolist()
    return margins
