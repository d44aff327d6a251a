"""Hook specifications: everything a plugin may implement, and nothing that a decoding step calls.

A hook runs once per process, when the registry is built. What it registers is a factory of ordinary objects, and hosts
call those objects' methods directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelplug.hooks.drafting import DeviceDrafter, Drafter, RequestDrafter
    from accelplug.hooks.later import KVCompressor, VisionReducer
    from accelplug.hooks.masking import GrammarEngine
    from accelplug.hooks.verifying import PathVerifier, Verifier

T_contra = TypeVar("T_contra", contravariant=True)

hookspec = HookspecMarker("accelplug")
"""Marks the specifications."""
hookimpl = HookimplMarker("accelplug")
"""Marks a plugin's own functions of the hooks' names."""


class Register(Protocol[T_contra]):
    """`register(name, factory)`: offer one technique under one name."""

    def __call__(self, name: str, factory: Callable[..., T_contra] | str, *, api: int = 1) -> None:
        """Offer one technique.

        :param name: snake case, what users write.
        :param factory: a class or function called with the user's options once per engine, or
            ``"package.module:Name"``, imported when first used. If it has a parameter named ``context`` it is given
            the engine's BuildContext.
        :param api: the contract version the technique was written against.
        """


@hookspec
def register_drafters(register: Register[Drafter | RequestDrafter | DeviceDrafter]) -> None:
    """Offer drafters: objects that guess the next tokens for the target model to verify.

    :param register: call as ``register("echo", EchoDrafter)``.

    When: once per process, in every process that the host starts; touch no device here.
    Since: contract version 1.
    """


@hookspec
def register_verifiers(register: Register[Verifier | PathVerifier]) -> None:
    """Offer verifiers: the rules that decide which drafted tokens stay.

    :param register: as for :func:`register_drafters`.

    When: once per process, in every process that the host starts; touch no device here.
    Since: contract version 1.
    """


@hookspec
def register_grammars(register: Register[GrammarEngine]) -> None:
    """Offer grammar engines: compilers from schemas to token masks.

    :param register: as for :func:`register_drafters`.

    When: once per process, in every process that the host starts; touch no device here.
    Since: contract version 1.
    """


@hookspec
def register_kv_compressors(register: Register[KVCompressor]) -> None:
    """Offer KV-cache compressors: objects that choose which cached positions stay. No host runs this kind yet.

    :param register: as for :func:`register_drafters`.

    When: once per process, in every process that the host starts; touch no device here.
    Since: contract version 1, provisional.
    """


@hookspec
def register_vision_reducers(register: Register[VisionReducer]) -> None:
    """Offer vision-token reducers: objects that choose which image tokens stay. No host runs this kind yet.

    :param register: as for :func:`register_drafters`.

    When: once per process, in every process that the host starts; touch no device here.
    Since: contract version 1, provisional.
    """
