"""Run accelplug techniques inside Transformers' ``generate()``: the only package here that imports it."""

from accelplug.hosts.hf.grammar import Grammar
from accelplug.hosts.hf.session import Session, attach, generate, grammar

__all__ = ["Grammar", "Session", "attach", "generate", "grammar"]
