"""How many connections HTTP may have: in all, and from one place. Asked by connection and listener as soon as one is
accepted; knows neither HTTP nor TLS.

    all           half of the files that the process may have open
    one network   no more than it leaves free: alone half of all, and whoever comes next finds some left. A proxy whose
                  X-Forwarded-For is believed speaks for many, and is bounded by `all` alone
"""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_network

from gateway import peers


@dataclass(frozen=True, eq=False)
class Seat:
    """One connection's, from its acceptance to its end."""

    network: str
    """From where it comes."""


class Admission:
    """Who is in. Written by the connections and the listener of one loop.

    Args:
        proxies: As TUNESMITH_TRUSTED_PROXIES has them.
    """

    def __init__(self, proxies: str = "") -> None:
        self._proxies = [ip_network(each.strip()) for each in proxies.split(",") if each.strip()]
        self._seats: set[Seat] = set()
        self._taken: Counter[str] = Counter()

    def admit(self, host: str) -> Seat | None:
        """A seat for a connection from that address; None where there is none left for it."""
        network = peers.network(host)
        free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - len(self._seats)
        if free <= 0 or (self._taken[network] >= free and not self._is_proxy(host)):
            return None
        seat = Seat(network)
        self._seats.add(seat)
        self._taken[network] += 1
        return seat

    def leave(self, seat: Seat) -> None:
        """Gives it back; once, however often it is said."""
        if seat not in self._seats:
            return
        self._seats.discard(seat)
        self._taken[seat.network] -= 1
        if not self._taken[seat.network]:
            del self._taken[seat.network]

    def _is_proxy(self, host: str) -> bool:
        address = peers.address(host)
        return address is not None and any(address in each for each in self._proxies)
