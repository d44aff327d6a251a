"""Generate plainly and through echo on Transformers; write one JSON document. Run by the stranger's interpreter."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import accelplug

answered, folder, prompt, count = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = tokenizer(prompt, return_tensors="pt")
arguments = {**inputs, "max_new_tokens": count, "do_sample": False}
plain = model.generate(**arguments)
with accelplug.attach(model, drafter="echo(times=3)") as session:
    found = model.generate(**arguments)
length = inputs["input_ids"].shape[1]
answer = {
    "tokens": found[0, length:].tolist(),
    "plain": plain[0, length:].tolist(),
    "stats": session.stats.as_dict(),
    "accelplug": accelplug.__file__,
}
answered.write_text(json.dumps(answer))
