"""Which IP addresses are the public internet's, and which lead into somebody's own network. Called by outbound; sends
nothing.

The list is IANA's registries of special-purpose addresses, written out: `ipaddress.is_global` has changed between patch
releases of Python, lets multicast and translated addresses through, and is asked as a second opinion only.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

NOT_PUBLIC = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host: Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is a cloud's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public address in name: on one cloud's machines it is the host's own agent
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # once the nearest 6to4 relay
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
    )
)
#: All that was ever given out for use between networks; the rest is private, local, multicast or nobody's.
GLOBAL_UNICAST = IPv6Network("2000::/3")
NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # for protocols, Teredo among them: an IPv4 address in disguise
        "2001:db8::/32",
        "2002::/16",  # 6to4, likewise
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
#: IPv6 addresses whose last 32 bits are an IPv4 address that the packets end at, by this host or by a translator that
#: networks without IPv4 rely on: what is inside is judged.
EMBEDDING = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


def is_public(address: Address) -> bool:
    """Whether packets to it leave for the public internet."""
    address = unwrapped(address)
    if isinstance(address, IPv4Address):
        return address.is_global and not any(address in network for network in NOT_PUBLIC)
    listed = any(address in network for network in NOT_PUBLIC_6)
    return address.is_global and address in GLOBAL_UNICAST and not listed


def is_own(address: Address) -> bool:
    """Whether it is this host's. What a host sends to itself passes no firewall, also by its public address, so that
    ports would be open which are closed from outside. In a container the host is the container.
    """
    address = unwrapped(address)
    if _source(address) == address:
        return True
    # A further address of an interface is the source of nothing, but can be bound. Where the kernel lets any address be
    # bound (net.ipv4.ip_nonlocal_bind), that tells nothing.
    return _binds(address) and not _binds(NOBODYS[address.version])


#: For documentation: no host has them.
NOBODYS: dict[int, Address] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8::1")}


def _source(address: Address) -> Address | None:
    """Which of this host's addresses it would send from; None where there is no way, or no such version of IP."""
    try:
        with _socket(address) as probe:
            probe.connect((str(address), 9))  # UDP: it only chooses the way
            return ip_address(probe.getsockname()[0])
    except OSError:
        return None


def _binds(address: Address) -> bool:
    try:
        with _socket(address) as probe:
            probe.bind((str(address), 0))
    except OSError:
        return False
    return True


def _socket(address: Address) -> socket.socket:
    return socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM)


def is_in(address: Address, networks: Iterable[Network]) -> bool:
    """Whether it lies in one of the networks, also where it is written as the other version's."""
    address = unwrapped(address)
    return any(address in network for network in networks)


def unwrapped(address: Address) -> Address:
    """The IPv4 address in an IPv6 address that only carries one; else the address itself."""
    if isinstance(address, IPv6Address) and any(address in network for network in EMBEDDING):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def literal(host: str) -> Address | None:
    """The address that a host is written as; None for a name.

    Raises:
        ValueError: It ends as only an IPv4 address does, and is none. Resolvers take `127.1`, `0x7f000001`,
            `0177.0.0.1` and `2130706433` for 127.0.0.1, so that they are no names either.
    """
    if ":" in host:
        return ip_address(host)
    last = host.removesuffix(".").rpartition(".")[2].lower()
    digits = last.removeprefix("0x")
    if last.isdecimal() or (digits != last and all(digit in "0123456789abcdef" for digit in digits)):
        return IPv4Address(host)
    return None
