"""From where a call comes, as far as limits on strangers go. Called by the interceptors, to which the HTTP shim says it
for its own callers, and by HTTP's admission. Nothing is allowed to anybody for an address.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote

HEADER = "x-tunesmith-peer"  # metadata in which the shim says from where an HTTP request comes
SHIM = ("inprocess", "unix:")  # gRPC peers that are the HTTP shim


def is_shim(peer: str) -> bool:
    """Whether a gRPC peer is our own HTTP shim, whose word is taken."""
    return peer.startswith(SHIM)


def network_of(peer: str, metadata: dict[str, Any]) -> str:
    """Where a call comes from: an IPv4 address, or an IPv6 network, of which one host has all addresses.

    Args:
        peer: As gRPC says it: `ipv4:10.0.0.1:4711`, `ipv6:%5B::1%5D:4711`.
        metadata: Of the call.
    """
    if is_shim(peer):
        return network(str(metadata.get(HEADER, "")))
    return network(unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]"))


def network(host: str) -> str:
    """What that host is counted as: its IPv4 address, or its IPv6 network; itself where it is no address."""
    found = address(host)
    if isinstance(found, IPv6Address):
        return str(IPv6Address(int(found) >> 64 << 64))
    return host if found is None else str(found)


def address(host: str) -> IPv4Address | IPv6Address | None:
    """A host's address, IPv4 also where it came as IPv6; None where it is none."""
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
