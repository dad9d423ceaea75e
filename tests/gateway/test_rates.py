"""Token buckets, on a clock that is moved by hand."""

from __future__ import annotations

import pytest

from gateway.rates import BURST, Buckets


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def buckets(clock: Clock) -> Buckets:
    return Buckets(clock)


def taken(buckets: Buckets, name: str, rate: float, tries: int) -> int:
    return sum(buckets.take(name, rate) == 0 for _ in range(tries))


def test_who_was_quiet_may_take_a_burst_and_then_the_rate(buckets: Buckets, clock: Clock) -> None:
    assert taken(buckets, "a", 2.0, 100) == 2 * BURST
    clock.now += 3
    assert taken(buckets, "a", 2.0, 100) == 6
    clock.now += 1000
    assert taken(buckets, "a", 2.0, 100) == 2 * BURST


def test_the_wait_is_as_long_as_it_says(buckets: Buckets, clock: Clock) -> None:
    taken(buckets, "a", 2.0, 100)

    wait = buckets.take("a", 2.0)
    clock.now += wait - 0.01
    early = buckets.take("a", 2.0)
    clock.now += 0.02

    assert wait == pytest.approx(0.5)
    assert early > 0
    assert buckets.take("a", 2.0) == 0


def test_one_name_takes_nothing_of_another(buckets: Buckets) -> None:
    taken(buckets, "a", 1.0, 100)

    assert taken(buckets, "b", 1.0, 100) == BURST


def test_a_rate_far_below_one_still_gives_one(buckets: Buckets, clock: Clock) -> None:
    assert taken(buckets, "a", 0.01, 10) == 1
    clock.now += 99
    assert taken(buckets, "a", 0.01, 10) == 0
    clock.now += 2
    assert taken(buckets, "a", 0.01, 10) == 1


def test_to_look_takes_nothing(buckets: Buckets) -> None:
    assert [buckets.wait("a", 0.1) for _ in range(10)] == [0.0] * 10
    assert buckets.take("a", 0.1) == 0


def test_who_had_a_lower_rate_has_used_no_more_of_a_higher_one(buckets: Buckets, clock: Clock) -> None:
    taken(buckets, "a", 1.0, 100)
    clock.now += 1

    assert taken(buckets, "a", 100.0, 5000) == pytest.approx(100 * BURST - 9, abs=1)


def test_a_rate_that_is_given_back_locks_nobody_out(buckets: Buckets, clock: Clock) -> None:
    assert taken(buckets, "a", 0.01, 2) == 1

    assert taken(buckets, "a", 200.0, 10) == 10


def test_a_rate_that_is_lowered_counts_from_an_empty_bucket_at_most(buckets: Buckets, clock: Clock) -> None:
    taken(buckets, "a", 200.0, 5000)

    wait = buckets.take("a", 0.01)
    clock.now += wait - 1
    early = buckets.take("a", 0.01)
    clock.now += 1.1

    assert wait == pytest.approx(100)
    assert early == pytest.approx(1)
    assert buckets.take("a", 0.01) == 0


def test_memory_has_a_bound(buckets: Buckets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rates.MOST", 2)

    for name in ("a", "b", "c"):
        taken(buckets, name, 1.0, 100)

    assert len(buckets._full_at) == 2
    assert buckets.wait("a", 1.0) == 0
    assert buckets.wait("c", 1.0) > 0
