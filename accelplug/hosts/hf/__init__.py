"""Run accelplug techniques inside Transformers' ``generate()``: the only package here that imports it."""

from accelplug.hosts.hf.session import Session, attach, generate

__all__ = ["Session", "attach", "generate"]
