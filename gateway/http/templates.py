"""Path templates of google.api.http: reads the grammar, matches request paths, decodes what the variables hold.

Called by bindings and transcoding; knows no field and no rpc. The grammar, from google/api/http.proto:

    Template = "/" Segments [ Verb ] ;
    Segments = Segment { "/" Segment } ;
    Segment  = "*" | "**" | LITERAL | Variable ;
    Variable = "{" FieldPath [ "=" Segments ] "}" ;
    FieldPath = IDENT { "." IDENT } ;
    Verb     = ":" LITERAL ;
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

_SYMBOL = re.compile(r"\{|\}|=|/|\*\*|\*|:|[^{}=/*:]+")
_FIELD_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_UNRESERVED = re.compile(r"%(4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9AaEe]|3[0-9]|2[DdEe]|5[Ff])")


@dataclass(frozen=True)
class Variable:
    """A field that a path gives."""

    field: str
    """Field path in the request: `id`, `tune.id`."""
    many: bool
    """Whether it holds several segments: then its slashes stay, and an encoded slash stays encoded."""


@dataclass(frozen=True)
class Template:
    """A template, read."""

    text: str
    regex: re.Pattern[str]
    """Matches a whole path as it was sent, percent-encoded; one group a variable."""
    variables: tuple[Variable, ...]
    rank: tuple[tuple[int, str], ...]
    """Sorts the more particular template first: a literal before a variable, a verb before none."""

    def values(self, match: re.Match[str]) -> list[str]:
        """Returns what the variables hold, decoded, in their order; bytes that are not UTF-8 are lone surrogates."""
        return [_decoded(value, v.many) for v, value in zip(self.variables, match.groups(), strict=True)]


def canonical(raw_path: bytes) -> str:
    """Returns a request's path as templates match it: an escape that stands for an unreserved character is resolved."""
    path = raw_path.decode("latin-1")
    if "%" not in path:
        return path
    return _UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path)


def parse(text: str) -> Template:
    """Reads a template.

    Raises:
        ValueError: It does not follow the grammar.
    """
    return _Parser(text).template()


def _decoded(value: str, many: bool) -> str:
    if "%" not in value:
        return value.encode("latin-1").decode(errors="surrogateescape")
    if not many:
        return unquote(value, errors="surrogateescape")
    # By the rule for several segments, whoever reads the value must be able to tell "/" from an encoded one.
    kept = re.sub(r"%(2[Ff])", r"%25\1", value)
    return unquote(kept, errors="surrogateescape")


class _Parser:
    """Recursive descent over the symbols of one template."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.symbols = _SYMBOL.findall(text)
        self.at = 0
        self.variables: list[Variable] = []
        self.rank: list[tuple[int, str]] = []

    def template(self) -> Template:
        self.want("/")
        pattern = "/" + self.segments()
        if self.peek() == ":":
            self.want(":")
            verb = self.literal()
            self.rank.append((0, verb))
            pattern += ":" + re.escape(verb)
        else:
            self.rank.append((9, ""))
        if self.at != len(self.symbols):
            raise self.fault("ends here")
        fields = [variable.field for variable in self.variables]
        if len(set(fields)) != len(fields):
            raise ValueError(f"path template {self.text!r}: a variable occurs twice")
        return Template(self.text, re.compile(pattern), tuple(self.variables), tuple(self.rank))

    def segments(self, inside: bool = False) -> str:
        parts = [self.segment(inside)]
        while self.peek() == "/":
            self.want("/")
            parts.append(self.segment(inside))
        if any(part == ".*" for part in parts[:-1]) or any("(.*)" in part for part in parts[:-1]):
            raise ValueError(f"path template {self.text!r}: ** must come last")
        return "/".join(parts)

    def segment(self, inside: bool) -> str:
        symbol = self.peek()
        if symbol == "{" and not inside:
            return self.variable()
        if symbol in ("*", "**"):
            self.want(symbol)
            self.rank.append((1, "") if symbol == "*" else (2, ""))
            return "[^/]+" if symbol == "*" else ".*"
        literal = self.literal()
        self.rank.append((0, literal))
        return re.escape(literal)

    def variable(self) -> str:
        self.want("{")
        field = self.literal()
        if not _FIELD_PATH.fullmatch(field):
            raise self.fault("wants a field path")
        start = len(self.rank)
        if self.peek() == "=":
            self.want("=")
            pattern = self.segments(inside=True)
        else:
            self.rank.append((1, ""))
            pattern = "[^/]+"
        self.want("}")
        many = len(self.rank) - start > 1 or self.rank[-1][0] == 2
        self.variables.append(Variable(field, many))
        return f"({pattern})"

    def literal(self) -> str:
        symbol = self.peek()
        if not symbol or symbol in "{}=/:" or symbol in ("*", "**"):
            raise self.fault("wants a word")
        self.at += 1
        return symbol

    def peek(self) -> str:
        return self.symbols[self.at] if self.at < len(self.symbols) else ""

    def want(self, symbol: str) -> None:
        if self.peek() != symbol:
            raise self.fault(f"wants {symbol!r}")
        self.at += 1

    def fault(self, wanted: str) -> ValueError:
        return ValueError(f"path template {self.text!r}: at {''.join(self.symbols[: self.at])!r} it {wanted}")
