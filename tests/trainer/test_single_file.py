"""A checkpoint in one .safetensors file, as A1111 and its kin have it, read without a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.tiny import ENGINE, Bench
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.failures import CheckpointUnreadable
from trainer.pipe import CheckpointSource, PictureFile

ALIGNMENT = 64  # bytes, of what torch itself allocates on a CPU
LAYERS = 1  # residual layers in a block of the tiny U-Net

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
AROUND = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
AROUND |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@pytest.fixture
def single_file(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointSource:
    """The tiny base as one file, beside a folder of configs and tokenizer without weights."""
    path = tmp_path / "tiny.safetensors"
    save_file(in_one(tiny_base), path)
    configs = tmp_path / "configs" / ENGINE.replace("/", "_")
    shutil.copytree(tiny_base, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setenv("TUNESMITH_CONFIGS", str(configs.parent))
    return CheckpointSource("single_file", str(path), "tiny")


def test_a_single_file_trains_as_the_folder_of_the_same_weights(
    bench: Bench, shapes: list[PictureFile], single_file: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_folder = bench.tune(shapes)
    bench.shop.residence.leave()

    from_file = bench.tune(shapes, checkpoint=single_file)

    assert bench.shop.residence.loads == 2
    assert from_file.sha256 == from_folder.sha256


def test_weights_are_moved_to_where_every_kernel_adds_up_in_the_same_order(
    tiny_base: Path, single_file: CheckpointSource
) -> None:
    for source in (CheckpointSource("folder", str(tiny_base), "tiny"), single_file):
        base = StableDiffusion15.load(source, torch.device("cpu"), "fp32")

        weights = [weight for part in (base.denoiser, base.vae, base.text) for weight in part.parameters()]
        assert {weight.data_ptr() % ALIGNMENT for weight in weights} == {0}


def test_trainer_without_a_tokenizer_leaves_it_to_another_and_says_what_is_missing(
    bench: Bench, shapes: list[PictureFile], single_file: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNESMITH_CONFIGS")

    with pytest.raises(CheckpointUnreadable, match="set TUNESMITH_CONFIGS"):
        bench.tune(shapes, checkpoint=single_file)


def test_a_file_of_another_model_is_said_to_be_unreadable(
    bench: Bench, shapes: list[PictureFile], single_file: CheckpointSource
) -> None:
    save_file({"some.weight": torch.zeros(3)}, single_file.path)

    with pytest.raises(CheckpointUnreadable):
        bench.tune(shapes, checkpoint=single_file)


def in_one(base: Path) -> dict[str, Tensor]:
    """The weights of a diffusers folder by the names of the first Stable Diffusion."""
    unet, vae = (load_file(base / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    text = load_file(base / "text_encoder" / "model.safetensors")
    prefix = "" if any(name.startswith("text_model.") for name in text) else "text_model."
    return {
        **{f"model.diffusion_model.{unet_name(name)}": tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{vae_name(name)}": as_vae(name, tensor) for name, tensor in vae.items()},
        **{f"cond_stage_model.transformer.{prefix}{name}": tensor for name, tensor in text.items()},
    }


def unet_name(name: str) -> str:
    module, end = name.rsplit(".", 1)
    if module in AROUND:
        return f"{AROUND[module]}.{end}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        kind, number, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * number if kind == 'resnets' else 1}.{inner(kind, rest)}.{end}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", module)
    assert found, name
    side, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (LAYERS + 1)}.0.op.{end}"
    if kind == "upsamplers":  # after the attention, where there is one
        return f"output_blocks.{block * (LAYERS + 1) + LAYERS}.{1 if block == 0 else 2}.conv.{end}"
    at = f"input_blocks.{1 + block * (LAYERS + 1) + number}" if side == "down" else ""
    at = at or f"output_blocks.{block * (LAYERS + 1) + number}"
    return f"{at}.{0 if kind == 'resnets' else 1}.{inner(kind, rest)}.{end}"


def inner(kind: str, rest: str) -> str:
    return RESNET[rest] if kind == "resnets" else rest


def vae_name(name: str) -> str:
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for theirs, ours in VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{theirs}.", f"mid.attn_1.{ours}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{2 - int(m[1])}.block.", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{2 - int(m[1])}.upsample", name)
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def as_vae(name: str, tensor: Tensor) -> Tensor:
    """Its attention was made of convolutions."""
    return tensor[:, :, None, None].clone() if "attentions.0.to_" in name and tensor.ndim == 2 else tensor
