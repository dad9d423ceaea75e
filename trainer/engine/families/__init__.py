"""The architectures that can be tuned, by their engine's name. A new one is one more file here."""

from __future__ import annotations

from types import MappingProxyType

from trainer.engine.families.base import Family
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.failures import UnknownEngine

FAMILIES: MappingProxyType[str, type[Family]] = MappingProxyType({StableDiffusion15.engine: StableDiffusion15})


def family(engine: str) -> type[Family]:
    """The family of that name.

    Raises:
        UnknownEngine: there is none.
    """
    if engine not in FAMILIES:
        raise UnknownEngine(f"this trainer knows no engine {engine!r}; it knows {', '.join(FAMILIES)}")
    return FAMILIES[engine]
