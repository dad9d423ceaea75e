"""What has been encoded, kept in memory across tunes within a bound. Called by `encoding`; knows keys and tensors, not
what they mean.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

Encoded = dict[str, Tensor]
"""Named tensors on the CPU."""


class Cache:
    """Keeps the most recently used. A key names content and all that encoding depends on, so nothing ever ages."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[Hashable, Encoded] = OrderedDict()
        self.size_bytes = 0
        """Of all tensors held."""

    def get(self, key: Hashable, make: Callable[[], Encoded]) -> Encoded:
        """What is held by that key, or else what `make` makes."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        made = make()
        self._held[key] = made
        self.size_bytes += _size(made)
        # What the caller has just got lives on with the caller; here even it may be dropped at once.
        while self.size_bytes > self._limit:
            self.size_bytes -= _size(self._held.popitem(last=False)[1])
        return made

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held


def _size(encoded: Encoded) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in encoded.values())
