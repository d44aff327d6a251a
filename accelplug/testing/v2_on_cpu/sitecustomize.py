"""Run vLLM's V2 model runner without a GPU, for tests. Python imports this at start where its folder is on PYTHONPATH.

vLLM's CPU build contains the V2 runner and lacks only Triton, which has no CPU backend. This declares one and has every
kernel run in Triton's own interpreter: the semantics of V2 at a small fraction of its speed. Nothing here runs on CUDA.

* ``ACCELPLUG_V2_ASYNC=1`` puts asynchronous scheduling back, which vLLM turns off on CPUs.
* The interpreter refuses masks that are no booleans, as the grammar's and the n-gram drafter's kernels have; they are made such.
* It rejects the kernel for top-k; a few lines of torch stand in for that.
* It has nothing of CUDA's library of functions; numpy's logarithm of 1 + x stands in for the one that is used where drafts were drawn.

Seams: ``triton.backends:backends``, ``vllm.platforms.cpu:CpuPlatform.check_and_update_config``,
``triton.runtime.interpreter:InterpreterBuilder``, ``triton.language.extra.libdevice:log1p`` and
``vllm.v1.sample.ops.topk_topp_triton:apply_top_k_top_p_triton``, of vLLM 0.32.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def _declare_backend(backends: ModuleType) -> None:
    """Make Triton believe in a CPU backend; in interpreter mode it is never asked to compile."""

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

    backends.backends["cpu"] = backends.Backend(compiler=None, driver=Driver)


def _allow_async(platform: ModuleType) -> None:
    """Keep asynchronous scheduling on."""
    check = platform.CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    platform.CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def _take_any_mask(interpreter: ModuleType) -> None:
    """Read masks by their lowest bit: the interpreter computes some as integers, and then refuses them."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    load, store = builder.create_masked_load, builder.create_masked_store

    def one_bit(mask: Any) -> Any:
        return mask if mask.data.dtype == bool else handle((mask.data & 1).astype(bool), interpreter.tl.int1)

    def create_masked_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        return load(self, pointers, one_bit(mask), *others)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        return store(self, pointers, value, one_bit(mask), *others)

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store


def _stand_in_for_log1p(functions: ModuleType) -> None:
    def log1p(x: Any) -> Any:
        import numpy as np

        with np.errstate(all="ignore"):  # kernels throw away what is none
            return type(x)(type(x.handle)(np.log1p(x.handle.data), x.handle.dtype), x.type)

    functions.log1p = log1p  # type: ignore[attr-defined]


def _stand_in_for_top_k(kernels: ModuleType) -> None:
    def apply_top_k_top_p(logits: Any, k: Any, p: Any, *_: Any, **__: Any) -> Any:
        """Mask in place all but the top-k and top-p tokens, with vLLM's own torch code."""
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

        return apply_top_k_top_p_pytorch(logits, k, p)

    kernels.apply_top_k_top_p_triton = apply_top_k_top_p  # type: ignore[attr-defined]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Changes modules right after they ran, so that Python processes which never import them pay nothing."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self.changes = changes

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find the module as the others do, and have it changed once it ran."""
        del path, target
        change = self.changes.pop(fullname, None)
        spec = importlib.util.find_spec(fullname) if change else None
        if change is not None and spec is not None and spec.loader is not None:
            _run_after(spec.loader, change)
        return spec


def _run_after(loader: importlib.abc.Loader, change: Callable[[ModuleType], None]) -> None:
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        change(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _run_the_other_sitecustomize() -> None:
    """Run the one that this one hides, if there is one."""
    here = Path(__file__).resolve().parent
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _install() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    changes = {
        "triton.backends": _declare_backend,
        "triton.runtime.interpreter": _take_any_mask,
        "triton.language.extra.libdevice": _stand_in_for_log1p,
        "vllm.v1.sample.ops.topk_topp_triton": _stand_in_for_top_k,
    }
    if os.environ.get("ACCELPLUG_V2_ASYNC") == "1":
        changes["vllm.platforms.cpu"] = _allow_async
    sys.meta_path.insert(0, _AfterImport(changes))


_run_the_other_sitecustomize()
_install()
