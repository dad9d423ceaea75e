"""How many connections are let in, of all and from one place."""

from __future__ import annotations

import pytest

from gateway.http.admission import Admission

MOST = 8


@pytest.fixture(autouse=True)
def few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (2 * MOST, 2 * MOST))


def admitted(admission: Admission, hosts: list[str]) -> list[str]:
    """Those of the hosts that got a seat."""
    return [host for host in hosts if admission.admit(host) is not None]


def test_one_network_takes_as_many_as_it_leaves_free_and_others_still_find_some() -> None:
    admission = Admission()

    first = admitted(admission, ["192.0.2.1"] * MOST)
    second = admitted(admission, ["192.0.2.2"] * MOST)
    third = admitted(admission, ["192.0.2.3"] * MOST)

    assert [len(each) for each in (first, second, third)] == [4, 2, 1]


@pytest.mark.parametrize(
    "hosts",
    [["2001:db8::1", "2001:db8::2", "2001:db8::ffff:3"], ["192.0.2.1", "::ffff:192.0.2.1"]],
    ids=["v6", "mapped"],
)
def test_addresses_of_one_network_are_one_place(hosts: list[str]) -> None:
    assert len(admitted(Admission(), hosts * MOST)) == MOST // 2


def test_trusted_proxy_speaks_for_many_and_is_bounded_by_all_alone() -> None:
    admission = Admission("127.0.0.1, ::1,10.1.0.0/16")

    through = admitted(admission, ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.1.2.3"] * MOST)

    assert len(through) == MOST
    assert admission.admit("192.0.2.1") is None
    assert admission.admit("127.0.0.1") is None


def test_seat_that_is_given_back_is_free_once() -> None:
    admission = Admission()
    seats = [admission.admit("192.0.2.1") for _ in range(MOST // 2)]
    first = seats[0]
    assert first is not None
    assert admission.admit("192.0.2.1") is None

    admission.leave(first)
    admission.leave(first)

    assert admitted(admission, ["192.0.2.1"] * MOST) == ["192.0.2.1"]
