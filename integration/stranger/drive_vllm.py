"""Generate on vLLM, plainly or through echo; write one JSON document. Run by the stranger's interpreter."""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer
from vllm import LLM, SamplingParams


def main() -> None:
    answered, folder, prompt, count, drafter = sys.argv[1:]
    settings = {"accelplug": {"drafter": drafter, "num_tokens": 3}} if drafter != "none" else {}
    tokens = AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    llm = LLM(folder, dtype="float32", max_model_len=128, max_num_seqs=2, enforce_eager=True, additional_config=settings)
    (found,) = llm.generate([{"prompt_token_ids": tokens}], SamplingParams(temperature=0.0, max_tokens=int(count)))
    status = llm.collective_rpc("accelplug_status")[0] if settings else None
    Path(answered).write_text(json.dumps({"tokens": list(found.outputs[0].token_ids), "status": status}))


if __name__ == "__main__":
    main()
