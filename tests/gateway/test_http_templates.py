from __future__ import annotations

import pytest

from gateway.http.templates import canonical, parse


def values(template: str, path: str) -> dict[str, str] | None:
    parsed = parse(template)
    match = parsed.regex.fullmatch(canonical(path.encode()))
    if match is None:
        return None
    return dict(zip((v.field for v in parsed.variables), parsed.values(match), strict=True))


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("/v1/tune", "/v1/tune", {}),
        ("/v1/tune", "/v1/tunes", None),
        ("/v1/tune", "/v1/%74une", {}),
        ("/v1/tune/{id}", "/v1/tune/a", {"id": "a"}),
        ("/v1/tune/{id}", "/v1/tune/a/b", None),
        ("/v1/tune/{id}", "/v1/tune/", None),
        ("/v1/tune/{id}", "/v1/tune/a%2Fb", {"id": "a/b"}),
        ("/v1/tune/{id}", "/v1/tune/owner:name", {"id": "owner:name"}),
        ("/v1/tune/{id}", "/v1/tune/%C3%A9%20+%25", {"id": "é +%"}),
        ("/v1/tune/{id}", "/v1/tune/a%zz", {"id": "a%zz"}),
        ("/v1/tune/{id}", "/v1/tune/..", {"id": ".."}),
        ("/v1/tune/{id}/events:list", "/v1/tune/a/events:list", {"id": "a"}),
        ("/v1/tune/{id}/events:list", "/v1/tune/a/events", None),
        ("/v1/tune/{id}/events:list", "/v1/tune/a/events%3Alist", None),
        ("/v1/{name=a/*}", "/v1/a/x", {"name": "a/x"}),
        ("/v1/{name=a/*}", "/v1/b/x", None),
        ("/v1/{name=a/*/b/*}:go", "/v1/a/x%2Fy/b/z:go", {"name": "a/x%2Fy/b/z"}),
        ("/v1/{name=**}", "/v1/x/y%20z/w", {"name": "x/y z/w"}),
        ("/v1/{name=*}", "/v1/x%2Fy", {"name": "x/y"}),
        ("/v1/*/b", "/v1/anything/b", {}),
        ("/v1/**", "/v1/any/thing", {}),
        ("/v1/{a.b_c}/x/{d=e}", "/v1/1/x/e", {"a.b_c": "1", "d": "e"}),
    ],
)
def test_a_template_matches_what_its_grammar_says(template: str, path: str, expected: dict[str, str] | None) -> None:
    assert values(template, path) == expected


@pytest.mark.parametrize(
    "template",
    [
        "",
        "v1",
        "/",
        "/v1/",
        "/v1/{",
        "/v1/{}",
        "/v1/{a=}",
        "/v1/{a=b",
        "/v1/{a={b}}",
        "/v1/a:",
        "/v1/a:b:c",
        "/v1//a",
        "/v1/**/a",
        "/v1/{a=**}/b",
        "/{a}/{a}",
        "/v1/{a-b}",
        "/v1/{1a}",
        "/v1/{a}b",
        "/v1/***",
    ],
)
def test_what_breaks_the_grammar_is_no_template(template: str) -> None:
    with pytest.raises(ValueError, match="path template"):
        parse(template)


def test_the_more_particular_template_comes_first() -> None:
    texts = ["/v1/{name=**}", "/v1/{id}", "/v1/{id}:go", "/v1/special", "/v1/{id}/x"]

    ordered = sorted(map(parse, texts), key=lambda template: template.rank)

    assert [template.text for template in ordered] == [
        "/v1/special",
        "/v1/{id}:go",
        "/v1/{id}/x",
        "/v1/{id}",
        "/v1/{name=**}",
    ]
