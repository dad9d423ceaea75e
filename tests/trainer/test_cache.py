"""What is kept across tunes."""

from __future__ import annotations

import torch

from trainer.engine.cache import Cache


def kilobyte() -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(128), "b": torch.zeros(128)}


def test_what_is_held_is_not_made_again() -> None:
    cache = Cache(10_000)

    first = cache.get("a", kilobyte)
    again = cache.get("a", lambda: {})

    assert again is first
    assert cache.size_bytes == 1024


def test_the_least_recently_used_goes_first_and_the_bound_is_kept() -> None:
    cache = Cache(3 * 1024)
    for key in "abc":
        cache.get(key, kilobyte)

    cache.get("a", kilobyte)
    cache.get("d", kilobyte)

    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.size_bytes == 3 * 1024


def test_what_is_larger_than_the_bound_is_given_and_not_kept() -> None:
    cache = Cache(1000)

    assert cache.get("a", kilobyte)["a"].shape == (128,)
    assert cache.size_bytes == 0
