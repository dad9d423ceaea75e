"""Reads a Dockerfile: text -> stages of instructions, and the small languages inside them (variables, commands,
durations). Called by build; runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

# Every instruction that is understood, with its flags. All else is refused by name and line.
FLAGS: dict[str, set[str]] = {
    "FROM": set(),
    "ARG": set(),
    "ENV": set(),
    "WORKDIR": set(),
    "COPY": {"from", "chown", "chmod"},
    "RUN": {"mount"},
    "USER": set(),
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
    "CMD": set(),
    "ENTRYPOINT": set(),
    "EXPOSE": set(),
    "VOLUME": set(),
    "STOPSIGNAL": set(),
    "LABEL": set(),
}
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}  # seconds


class DockerfileError(ValueError):
    """A Dockerfile says something wrong, or something that is not understood here; the message starts with the line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    line: int
    """Where it starts; the first line is 1."""
    name: str
    """In capitals."""
    flags: tuple[tuple[str, str], ...]
    """--name=value, in their order; `mount` may come more than once."""
    rest: str
    """What follows the flags, variables not yet replaced."""

    def flag(self, name: str) -> str | None:
        """The flag's last value; None: not given."""
        return dict(self.flags).get(name)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"--{name}={value}" for name, value in self.flags), self.rest])


@dataclass(frozen=True)
class Stage:
    """FROM and what follows it, up to the next FROM."""

    base: str
    """An image or the name of an earlier stage, variables not yet replaced."""
    name: str
    """After AS; empty where there is none."""
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Dockerfile:
    """A whole file."""

    arguments: tuple[Instruction, ...]
    """ARGs above the first FROM: only FROM lines see them."""
    stages: tuple[Stage, ...]


def parse(text: str) -> Dockerfile:
    """Reads a file's text.

    Raises:
        DockerfileError: An instruction or flag is unknown, or there is no stage.
    """
    arguments: list[Instruction] = []
    stages: list[tuple[str, str, list[Instruction]]] = []
    for line, joined in _logical_lines(text):
        instruction = _instruction(line, joined)
        if instruction.name == "FROM":
            stages.append((*_base_and_name(instruction), []))
        elif stages:
            stages[-1][2].append(instruction)
        elif instruction.name == "ARG":
            arguments.append(instruction)
        else:
            raise DockerfileError(f"{line}: {instruction.name} stands before the first FROM")
    if not stages:
        raise DockerfileError("1: there is no FROM")
    return Dockerfile(tuple(arguments), tuple(Stage(base, name, tuple(body)) for base, name, body in stages))


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """Joins what a backslash continues. Comments and blank lines vanish, also between two continued lines."""
    logical: list[tuple[int, str]] = []
    continued = False
    for number, raw in enumerate(text.splitlines(), 1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            if number == 1 and re.match(r"#\s*escape\s*=", raw):
                raise DockerfileError("1: another escape character is not understood here")
            continue
        part = raw.rstrip()
        line, start = logical.pop() if continued else (number, "")
        continued = part.endswith("\\")
        logical.append((line, start + part.removesuffix("\\")))
    return logical


def _instruction(line: int, joined: str) -> Instruction:
    name, _, rest = joined.strip().partition(" ")
    name, rest = name.upper(), rest.strip()
    if name not in FLAGS:
        raise DockerfileError(f"{line}: {name} is not understood here; known are {', '.join(FLAGS)}")
    flags: list[tuple[str, str]] = []
    while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        if match[1] not in FLAGS[name]:
            raise DockerfileError(f"{line}: {name} --{match[1]} is not understood here")
        flags.append((match[1], match[2]))
        rest = rest[match.end() :]
    if rest.startswith("--"):
        raise DockerfileError(f"{line}: {name} {rest.split()[0]} is not understood here")
    if not rest:
        raise DockerfileError(f"{line}: {name} says nothing")
    if name in ("RUN", "COPY") and re.search(r"<<-?[\"']?\w", rest):
        raise DockerfileError(f"{line}: a here-document is not understood here")
    return Instruction(line, name, tuple(flags), rest)


def _base_and_name(instruction: Instruction) -> tuple[str, str]:
    words = instruction.rest.split()
    if len(words) == 1:
        return words[0], ""
    if len(words) == 3 and words[1].upper() == "AS":
        return words[0], words[2]
    raise DockerfileError(f"{instruction.line}: wanted FROM IMAGE or FROM IMAGE AS NAME")


VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:(:[-+])([^}]*))?\})")


def words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Splits at blanks as Docker does: quotes keep together, variables are replaced except in single quotes.

    >>> words('A="x $B" C=${D:-e}', {"B": "1"})
    ['A=x 1', 'C=e']
    """
    found: list[str | None] = [None]  # None: no word has begun, which is not the same as ""
    quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        if quote != "'" and (match := VARIABLE.match(text, at)):
            _add(found, _value(match, variables), splitting=not quote)
            at = match.end()
            continue
        at += 1
        if character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote = character
            _add(found, "", splitting=False)
        elif character == "\\" and quote != "'" and at < len(text):
            _add(found, text[at], splitting=False)
            at += 1
        else:
            _add(found, character, splitting=not quote)
    if quote:
        raise ValueError(f"{text!r} has a quote that is never closed")
    return [word for word in found if word is not None]


def _add(found: list[str | None], text: str, *, splitting: bool) -> None:
    """Adds to the last word; with splitting, blanks end it."""
    if not splitting:
        found[-1] = (found[-1] or "") + text
        return
    for character in text:
        if not character.isspace():
            found[-1] = (found[-1] or "") + character
        elif found[-1] is not None:
            found.append(None)


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    plain, name, operator, other = match.groups()
    value = variables.get(plain or name, "")
    if operator == ":-":
        return value or other
    if operator == ":+":
        return other if value else ""
    return value


def pairs(text: str, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """`A=1 B="2 3"` of ENV and LABEL.

    Raises:
        ValueError: A word has no `=`; the old form `ENV A 1` is one of those.
    """
    split = [word.partition("=") for word in words(text, variables)]
    for name, separator, _ in split:
        if not separator:
            raise ValueError(f"{name!r} has no value; NAME=VALUE was wanted")
    return [(name, value) for name, _, value in split]


def command(text: str) -> tuple[str, ...]:
    """CMD, ENTRYPOINT and RUN: a JSON list is run as it stands, all else by the shell."""
    if text.startswith("["):
        listed = json.loads(text)
        if not all(isinstance(word, str) for word in listed):
            raise ValueError(f"{text} is no list of strings")
        return tuple(listed)
    return ("/bin/sh", "-c", text)


def seconds(text: str) -> float:
    """A duration of HEALTHCHECK: "30s", "1m30s", "500ms".

    Raises:
        ValueError: It is none.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is no duration, such as 30s or 1m30s")
    return sum(float(number) * UNITS[unit] for number, unit in parts)
