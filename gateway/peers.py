"""From where a call comes, as far as limits on strangers go. Called by the interceptors; the HTTP shim says it for its
own callers. Nothing is allowed to anybody for an address.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
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
        host = str(metadata.get(HEADER, ""))
    else:
        host = unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
    return str(address)
