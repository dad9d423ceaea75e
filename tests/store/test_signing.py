"""Signed URLs of the gateway: what they name, until they expire, and nothing else."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest

from store.objects.signing import Signer

KEY = "incoming/assets/a"


@pytest.fixture
def signer() -> Signer:
    return Signer("http://gateway.test/", b"secret")


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def test_a_signed_url_leads_to_the_gateway(signer: Signer) -> None:
    assert urlsplit(signer.get(KEY, 60))[:3] == ("http", "gateway.test", "/v1/objects/incoming/assets/a")


def test_a_signed_put_allows_what_it_names_and_nothing_else(signer: Signer) -> None:
    query = query_of(signer.put(KEY, 60, 1000, "acme"))

    assert (query["most"], query["owner"]) == ("1000", "acme")
    assert signer.verify("PUT", KEY, query)
    assert not signer.verify("GET", KEY, query)
    assert not signer.verify("PUT", "incoming/assets/b", query)
    for name, value in [
        ("expires", str(int(query["expires"]) + 1)),
        ("expires", "soon"),
        ("expires", "\u0661"),
        ("most", "1001"),
        ("most", ""),
        ("most", "-1"),
        ("owner", "other"),
        ("owner", "acme\n"),
        ("signature", query["signature"][:-1] + "é"),
        ("signature", ""),
    ]:
        assert not signer.verify("PUT", KEY, {**query, name: value}), (name, value)
    for name in query:
        assert not signer.verify("PUT", KEY, {other: query[other] for other in query if other != name})


def test_a_signed_get_allows_head_too(signer: Signer) -> None:
    query = query_of(signer.get(KEY, 60))

    assert signer.verify("GET", KEY, query)
    assert signer.verify("HEAD", KEY, query)
    assert not signer.verify("PUT", KEY, query)
    assert not signer.verify("PUT", KEY, {**query, "most": "1000", "owner": "acme"})


def test_what_a_signature_covers_cannot_be_cut_otherwise(signer: Signer) -> None:
    """The parts of the message are kept apart: no key ends in what looks like an expiry."""
    query = query_of(signer.put(KEY, 60, 1000, "acme"))

    assert not signer.verify("GET", f"{KEY}\n{query['expires']}", {**query, "expires": query["most"]})


def test_a_signed_url_expires(signer: Signer) -> None:
    assert not signer.verify("GET", KEY, query_of(signer.get(KEY, -1)))


def test_another_secret_signs_nothing(signer: Signer) -> None:
    other = Signer("http://gateway.test", b"other")
    query = query_of(other.get(KEY, 60))

    assert not signer.verify("GET", KEY, query)
    assert other.verify("GET", KEY, query)


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="secret"):
        Signer("http://gateway.test", b"")
