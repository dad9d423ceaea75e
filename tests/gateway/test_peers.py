from __future__ import annotations

import pytest

from gateway.peers import HEADER, network_of


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4711", "2001:db8:1:2::"),
        ("ipv6:[2001:db8:1:2:ffff::]:1", "2001:db8:1:2::"),  # the same host's, for all we know
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4711", "10.0.0.1"),
        ("vsock:3:4711", "3"),
        ("", ""),
    ],
)
def test_a_native_call_comes_from_its_connections_address(peer: str, network: str) -> None:
    assert network_of(peer, {HEADER: "192.0.2.1"}) == network


@pytest.mark.parametrize("peer", ["inprocess", "unix:", "unix:/tmp/grpc"])
def test_the_shims_word_is_taken(peer: str) -> None:
    assert network_of(peer, {HEADER: "192.0.2.1"}) == "192.0.2.1"
    assert network_of(peer, {}) == ""
