"""Which addresses are public: a table of special ones, and of those written so that they do not look it."""

from __future__ import annotations

import errno
import socket
from ipaddress import AddressValueError, ip_address, ip_network

import pytest

from gateway.addresses import is_in, is_own, is_public, literal

PUBLIC = """
1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.167.255.255 198.17.255.255 223.255.255.255
168.63.129.15 169.253.1.1 2001:4860:4860::8888 2606:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8
"""
PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
168.63.129.16 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1
198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe
64:ff9b:1::1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 3fff::1
5f00::1 fc00::1 fd00:ec2::254 fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
"""


NUMBERS = """
2130706433 0x7f000001 0177.0.0.1 0x7f.1 127.1 127.0.1 127.0.0.1. 127.0.0.256 1.2.3.4.5 017700000001 a.0x0 a.1 0 0x
"""


@pytest.mark.parametrize("address", PUBLIC.split())
def test_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", PRIVATE.split())
def test_special_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


def test_hosts_own_address_is_known_as_its_own() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert is_own(ip_address("::ffff:127.0.0.1"))
    assert not is_own(ip_address("192.0.2.1"))
    assert not is_own(ip_address("2001:db8::1"))


def test_further_address_of_the_host_is_its_own_though_nothing_is_sent_from_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("127.0.0.2", 9))

        assert probe.getsockname()[0] == "127.0.0.1"
    assert is_own(ip_address("127.0.0.2"))


def test_address_is_nobodys_own_where_the_kernel_lets_any_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lenient(socket.socket):
        def bind(self, address: object) -> None:
            pass

    monkeypatch.setattr(socket, "socket", Lenient)

    assert not is_own(ip_address("8.8.8.8"))
    assert is_own(ip_address("127.0.0.1"))


def test_host_without_ipv6_has_no_address_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, type: int = -1) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, type)

    monkeypatch.setattr(socket, "socket", WithoutIPv6)

    assert not is_own(ip_address("2001:4860:4860::8888"))
    assert is_own(ip_address("127.0.0.1"))


@pytest.mark.parametrize("host", NUMBERS.split())
def test_host_that_ends_as_a_number_is_an_address_or_nothing(host: str) -> None:
    with pytest.raises(AddressValueError):
        literal(host)


def test_address_is_read_as_one_and_a_name_as_none() -> None:
    assert literal("10.0.0.1") == ip_address("10.0.0.1")
    assert literal("::1") == ip_address("::1")
    assert [literal(host) for host in ("example.com", "1e100.net", "0x7g", "0xcafe.example", "a-1")] == [None] * 5


def test_allowed_network_holds_also_where_the_address_is_wrapped() -> None:
    allowed = [ip_network("10.1.0.0/16"), ip_network("fd12::/64")]

    held = {text: is_in(ip_address(text), allowed) for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::5", "10.2.0.1")}

    assert held == {"10.1.2.3": True, "::ffff:10.1.2.3": True, "fd12::5": True, "10.2.0.1": False}
