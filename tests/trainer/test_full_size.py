"""The real architecture of Stable Diffusion 1.5, with random weights, on real photographs."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.trainer.tiny import Bench, make_tokenizer
from trainer.pipe import CheckpointSource, PictureFile, Stepped

# As its own config.json files have it.
UNET: dict[str, Any] = {
    "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}  # fmt: skip
VAE: dict[str, Any] = {
    "act_fn": "silu", "block_out_channels": (128, 256, 512, 512), "in_channels": 3, "latent_channels": 4,
    "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 77,
    "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408,
    "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1,
}  # fmt: skip
MEMORY = 12 * 2**30  # bytes


@pytest.fixture
def full_base(tmp_path: Path) -> Path:
    """Of 256 pixels: nothing but the sample size says how large the pictures are."""
    folder = tmp_path / "sd15"
    torch.manual_seed(1)
    untyped: Any = (UNet2DConditionModel, AutoencoderKL, DDPMScheduler)  # as diffusers leaves them
    unet, vae, scheduler = untyped
    parts: dict[str, Any] = {
        "unet": unet(sample_size=32, **UNET),
        "vae": vae(**VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        "scheduler": scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    }
    for name, part in parts.items():
        (part.half() if name != "scheduler" else part).save_pretrained(folder / name)
    make_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)  # half a minute alone on two cores; 4 GB are written, read and computed with
def test_real_photographs_train_the_real_architecture(bench: Bench, full_base: Path, tmp_path: Path) -> None:
    pictures = []
    for name in ("chelsea", "coffee", "rocket"):
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(getattr(skimage.data, name)()).save(path)
        pictures.append(PictureFile(name, str(path), "", f"zwx, a photograph of {name}"))

    saved = bench.tune(pictures, steps=2, rank=16, checkpoint=CheckpointSource("folder", str(full_base), "sd15"))

    losses = [line.loss for told in bench.heard(Stepped) for line in told.steps]
    assert [0.1 < loss < 10 for loss in losses] == [True, True]
    tensors = load_file(saved.path)
    assert len(tensors) == 3 * 16 * 10  # 16 transformer blocks, 10 layers in each, three tensors a layer
    assert any(tensor.count_nonzero() for name, tensor in tensors.items() if "lora_up" in name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY
