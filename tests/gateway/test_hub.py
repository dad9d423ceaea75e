"""What of a Hugging Face repository becomes an asset, by what the hub says of it; the hub itself in
services/test_fetches.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.hub import REPOSITORY, File, Folder, Hub, Unfetchable, read
from gateway.outbound import Outbound

COMMIT = "c" * 40
FOLDER = {
    "model_index.json": 500,
    "unet/diffusion_pytorch_model.safetensors": 900,
    "text_encoder/model.safetensors": 50,
}


def answer(files: dict[str, int], **changes: Any) -> bytes:
    siblings = [{"rfilename": path, "size": size} for path, size in files.items()]
    return json.dumps({"sha": COMMIT, "private": False, "gated": False, "siblings": siblings} | changes).encode()


def chosen(told: bytes, asset_type: str = "checkpoint", max_bytes: int = 1000) -> File | Folder:
    return Hub(Outbound(), "https://hub.example/").choose(read("o/r", told), asset_type, max_bytes=max_bytes)


def test_folder_is_a_source_at_its_commit() -> None:
    assert chosen(answer(FOLDER)) == Folder({"hugging_face": "o/r", "commit": COMMIT})


def test_single_file_is_named_at_its_commit() -> None:
    told = answer({"a #1.safetensors": 5, "README.md": 5})

    assert chosen(told, "lora") == File(f"https://hub.example/o/r/resolve/{COMMIT}/a%20%231.safetensors")


def test_single_file_of_a_private_repository_will_do_and_its_folder_will_not() -> None:
    assert isinstance(chosen(answer({"a.safetensors": 5}, private=True)), File)
    with pytest.raises(Unfetchable) as caught:
        chosen(answer(FOLDER, private=True))
    assert caught.value.reason == "HF_REPO_NOT_OPEN"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (answer(FOLDER, gated="auto"), "HF_REPO_NOT_OPEN"),
        (answer(FOLDER, private=None), "HF_REPO_NOT_OPEN"),
        (answer({"model_index.json": 5, "unet/diffusion_pytorch_model.bin": 9}), "HF_REPO_UNSUITABLE"),
        (answer(FOLDER | {"vae/diffusion_pytorch_model.safetensors": 51}), "TOO_LARGE"),
        (answer({"a.safetensors": 1, "b.safetensors": 1}), "HF_REPO_UNSUITABLE"),
        (answer({"weights.ckpt": 1}), "HF_REPO_UNSUITABLE"),
        (answer(FOLDER, sha="main"), "HF_REPO_UNREADABLE"),
        (answer(FOLDER, sha=None), "HF_REPO_UNREADABLE"),
        (answer(FOLDER, siblings=[{"size": 1}]), "HF_REPO_UNREADABLE"),
        (answer(FOLDER, siblings=5), "HF_REPO_UNREADABLE"),
        (b"<html>", "HF_REPO_UNREADABLE"),
        (b"[1]", "HF_REPO_UNREADABLE"),
        (b"[" * 100_000, "HF_REPO_UNREADABLE"),
    ],
)
def test_repository_that_will_not_do_is_told(told: bytes, reason: str) -> None:
    with pytest.raises(Unfetchable) as caught:
        chosen(told)

    assert caught.value.reason == reason


def test_name_of_a_repository_is_an_owner_and_a_name_and_leads_nowhere_else() -> None:
    good = ["o/r", "stabilityai/stable-diffusion-xl-base-1.0", "a_b/c.d"]
    bad = ["r", "o/r/x", "../r", "o/..", "o/r?x=1", "o/r#", "o /r", "o/r\n", "-o/r", "", "o/" + "r" * 97]

    assert [name for name in good + bad if REPOSITORY.fullmatch(name)] == good
