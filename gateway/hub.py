"""What a Hugging Face repository holds, and which of it becomes an asset. Called by fetches, through the same guarded
client as every URL of a caller's; knows no rows.

Two kinds of repository serve:

- a checkpoint as a folder of parts (`model_index.json`): nothing is fetched here. The asset names the repository at the
  commit of today, and trainers fetch it as they do those of the catalogue. So it must be open to everybody: a trainer
  has no caller's token, and may have its operator's, which must open nothing for callers.
- any weights in just one .safetensors file: that file is fetched, and judged as an upload is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gateway.outbound import Outbound, OutboundRefused

#: OWNER/NAME, as the hub allows them.
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
LONGEST_ANSWER = 4 * 2**20  # bytes; a repository of ten thousand files has two million
SECONDS = 60.0  # for that answer
#: Of a folder, what a trainer fetches (trainer/engine/families/sources.py).
PART = re.compile(r"[a-z0-9_]+/(model|diffusion_pytorch_model)\.safetensors")


class Unfetchable(Exception):
    """The repository will not do: a stable word and a sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence


@dataclass(frozen=True)
class Repository:
    """What the hub says of one."""

    name: str
    """OWNER/NAME."""
    commit: str
    """The full hash of its newest commit."""
    is_open: bool
    """Whether everybody may read it, with no token and nothing accepted first."""
    files: Mapping[str, int]
    """Path -> bytes; 0 where the hub does not say."""


@dataclass(frozen=True)
class File:
    """The one file that makes the asset."""

    url: str
    """Where it is."""


@dataclass(frozen=True)
class Folder:
    """The folder that makes the asset."""

    source: dict[str, Any]
    """As the asset's row says it."""


class Hub:
    """One hub."""

    def __init__(self, outbound: Outbound, base_url: str) -> None:
        self._outbound = outbound
        self._base_url = base_url.rstrip("/")

    async def look(self, name: str, token: str | None) -> Repository:
        """Asks for a repository.

        Raises:
            Unfetchable: There is none that the token, or nobody's, opens.
            OutboundError: The hub was not reached, or answered something else.
        """
        url = f"{self._base_url}/api/models/{name}?blobs=true"
        try:
            async with self._outbound.stream(
                url, max_bytes=LONGEST_ANSWER, timeout_seconds=SECONDS, secret_headers=bearer(token)
            ) as chunks:
                answer = b"".join([chunk async for chunk in chunks])
        except OutboundRefused as exc:
            if exc.reason == "STATUS_NOT_OK":
                who = "this token" if token else "somebody without a token"
                sentence = f"the hub shows no repository {name} to {who}"
                raise Unfetchable("HF_REPO_NOT_FOUND", sentence) from exc
            raise
        return read(name, answer)

    def choose(self, repository: Repository, asset_type: str, *, max_bytes: int) -> File | Folder:
        """What of it makes an asset of that type.

        Raises:
            Unfetchable: Nothing does, or more than one file.
        """
        if asset_type == "checkpoint" and "model_index.json" in repository.files:
            return Folder(folder_source(repository, max_bytes))
        found = sorted(path for path in repository.files if path.endswith(".safetensors"))
        if len(found) != 1:
            what = f"has {len(found)} .safetensors files ({', '.join(found[:3])}, ...)" if found else "has none"
            sentence = (
                f"wanted a repository with one .safetensors file, or a checkpoint's folder: {repository.name} {what}"
            )
            raise Unfetchable("HF_REPO_UNSUITABLE", sentence)
        return File(f"{self._base_url}/{repository.name}/resolve/{repository.commit}/{quote(found[0])}")


def folder_source(repository: Repository, max_bytes: int) -> dict[str, Any]:
    """The folder as a source for trainers.

    Raises:
        Unfetchable: They cannot read it, or should not.
    """
    if not repository.is_open:
        sentence = (
            f"{repository.name} is a folder, which trainers fetch without a token, and it is not open to everybody"
        )
        raise Unfetchable("HF_REPO_NOT_OPEN", sentence)
    parts = {path: size for path, size in repository.files.items() if PART.fullmatch(path)}
    if not any(path.startswith("unet/") for path in parts):
        raise Unfetchable("HF_REPO_UNSUITABLE", f"{repository.name} has no unet/diffusion_pytorch_model.safetensors")
    if sum(parts.values()) > max_bytes:
        sentence = f"the weights of {repository.name} have {sum(parts.values())} bytes; at most {max_bytes} are allowed"
        raise Unfetchable("TOO_LARGE", sentence)
    return {"hugging_face": repository.name, "commit": repository.commit}


def read(name: str, answer: bytes) -> Repository:
    """Reads the hub's answer.

    Raises:
        Unfetchable: It is not one.
    """
    try:
        told = json.loads(answer)
        commit, siblings = told["sha"], told["siblings"]
        files = {str(one["rfilename"]): int(one.get("size") or 0) for one in siblings}
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise ValueError(commit)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Unfetchable("HF_REPO_UNREADABLE", f"what the hub says of {name} cannot be read") from exc
    return Repository(name, commit, told.get("private") is False and told.get("gated") is False, files)


def bearer(token: str | None) -> dict[str, str]:
    """The header that shows a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}
