"""The proxy of chaos does to connections what it says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.servers.proxy import Proxy, Way


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while piece := connection.recv(1024):
                    connection.sendall(piece)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy([unbound_port(), echo]) as proxy:
        yield proxy


def unbound_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def said(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(1024)


def is_served(proxy: Proxy) -> bool:
    try:
        with client(proxy) as connection:
            return said(connection, b"one") == b"one"
    except ConnectionError:
        return False


def test_bytes_go_both_ways_by_the_first_upstream_that_accepts(proxy: Proxy) -> None:
    with client(proxy) as connection:
        assert said(connection, b"one") == b"one"
        assert said(connection, b"two") == b"two"


def test_end_of_one_side_reaches_the_other(proxy: Proxy) -> None:
    with client(proxy) as connection:
        said(connection, b"one")

        connection.shutdown(socket.SHUT_WR)

        assert connection.recv(1024) == b""


@pytest.mark.parametrize("way", Way)
def test_dropped_way_says_nothing_and_is_reset_when_healed(proxy: Proxy, way: Way) -> None:
    with client(proxy) as connection:
        said(connection, b"one")

        proxy.drop(way)
        connection.sendall(b"two")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1024)
        proxy.heal()

        connection.settimeout(10)
        with pytest.raises(ConnectionResetError):
            connection.recv(1024)
    with client(proxy) as another:
        assert said(another, b"three") == b"three"


def test_reset_ends_what_there_is_and_serves_who_comes_again(proxy: Proxy) -> None:
    with client(proxy) as connection:
        said(connection, b"one")

        proxy.reset()

        with pytest.raises(ConnectionResetError):
            connection.recv(1024)
    with client(proxy) as another:
        assert said(another, b"two") == b"two"


def test_refusing_serves_nobody_until_it_is_healed(proxy: Proxy) -> None:
    proxy.refuse()
    served = is_served(proxy)

    proxy.heal()

    assert not served
    assert is_served(proxy)


def test_delayed_bytes_arrive(proxy: Proxy) -> None:
    with client(proxy) as connection:
        proxy.delay(0.05)

        assert said(connection, b"one") == b"one"
