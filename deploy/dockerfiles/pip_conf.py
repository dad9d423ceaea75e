"""Turns this machine's pip settings, variables and files alike, into the one file that a build gets as its secret
`pip`. Called by build. So a private index reaches the steps and no Dockerfile or layer names it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from deploy.dockerfiles import host

FOLLOWED = ("index-url", "extra-index-url", "find-links", "cert", "client-cert", "trusted-host", "timeout", "retries")


def read() -> dict[str, str]:
    """What pip here would use, by option; a variable goes before a file."""
    settings: dict[str, str] = {}
    for line in host.output(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if option.removeprefix("default-") in FOLLOWED and (section == ":env:" or option not in settings):
            settings[option.removeprefix("default-")] = ast.literal_eval(value)
    return settings


def text(settings: dict[str, str]) -> str:
    """As pip reads it."""
    lines = (f"{option} = {' '.join(value.split())}" for option, value in settings.items())
    return "\n".join(["[global]", *lines, ""])


def local_paths(settings: dict[str, str]) -> list[Path]:
    """Files and folders of this machine that the settings name, which the build has to see too."""
    found: list[Path] = []
    for option, value in settings.items():
        for word in value.split():
            path = Path(unquote(urlsplit(word).path)) if word.startswith("file:") else Path(word)
            if not path.is_absolute() or not path.exists():
                continue
            # An index's links lead to files beside it.
            found.append(path.parent if option.endswith("index-url") else path)
    return found
