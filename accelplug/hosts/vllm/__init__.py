"""The vLLM host: accelplug's drafters inside vLLM's V1 and V2 model runners, behind vLLM's own rejection sampler."""
