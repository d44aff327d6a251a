"""The vLLM host: accelplug's drafters and verification rules inside vLLM's V1 and V2 model runners."""
