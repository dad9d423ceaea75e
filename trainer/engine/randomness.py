"""Everything random, as a function of (tune seed, purpose, step, position). Called wherever a number is drawn; knows
no model.

No generator lives on between two draws, so no state of one is ever saved: a resumed tune draws what it would have
drawn, and a tune's numbers do not depend on who shares the device with it. Drawn on the CPU, whatever the device, then
moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import torch
from torch import Tensor


class Dice:
    """Draws for one tune."""

    def __init__(self, seed: int, course: str = "") -> None:
        """seed: 0 to 2^32 - 1. course: two of a tune's, each with its own, never draw the same."""
        assert 0 <= seed < 2**32, seed
        self._seed = seed
        self._course = course
        # Seeded anew for every draw; one object saves making 2.5 kB of state each time.
        self._generator = torch.Generator("cpu")

    def bits(self, purpose: str, step: int, position: int = 0) -> int:
        """A seed of 32 bits, for what is not drawn here."""
        return bits(self._seed, self._course + purpose, step, position)

    def generator(self, purpose: str, step: int, position: int = 0) -> torch.Generator:
        """Freshly seeded. The next call seeds it again: draw first."""
        return self._generator.manual_seed(self.bits(purpose, step, position))

    def normal(self, purpose: str, step: int, positions: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(B, *shape) of N(0, 1), one draw a position."""
        return self._stacked(torch.randn, purpose, step, positions, shape)

    def uniform(self, purpose: str, step: int, positions: Sequence[int]) -> list[float]:
        """B numbers in [0, 1)."""
        draws: list[float] = self._stacked(torch.rand, purpose, step, positions, ()).tolist()
        return draws

    def below(self, limit: int, purpose: str, step: int, positions: Sequence[int]) -> Tensor:
        """(B,) of int64 in [0, limit)."""
        draws = [torch.randint(limit, (1,), generator=self.generator(purpose, step, p)) for p in positions]
        return torch.cat(draws)

    def shuffled(self, n: int, purpose: str, step: int, position: int = 0) -> list[int]:
        """0 to n - 1 in random order."""
        order: list[int] = torch.randperm(n, generator=self.generator(purpose, step, position)).tolist()
        return order

    def _stacked(
        self, draw: Callable[..., Tensor], purpose: str, step: int, positions: Sequence[int], shape: Sequence[int]
    ) -> Tensor:
        out = torch.empty((len(positions), *shape))
        for row, position in zip(out, positions, strict=True):
            draw(row.shape, generator=self.generator(purpose, step, position), out=row)
        return out


def bits(seed: int, purpose: str, step: int, position: int) -> int:
    """32 bits of blake2b: torch's CPU generator keeps only the low 32 bits of its seed."""
    said = f"{seed}/{purpose}/{step}/{position}".encode()
    return int.from_bytes(blake2b(said, digest_size=4).digest(), "little")
