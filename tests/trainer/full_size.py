"""A base of Stable Diffusion 1.5's size with random weights: what it learns means nothing, and learning it takes the
time and the memory of the real one. Used by a test and by `scripts/bench full_size`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tests.trainer.tiny import make_tokenizer

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


def make_full_base(folder: Path, device: str = "cpu") -> Path:
    """Writes one in half precision. device: where it is drawn; a GPU takes a second for it. Its pictures are of 256
    pixels: see `of_pixels`.
    """
    torch.manual_seed(1)
    untyped: Any = (UNet2DConditionModel, AutoencoderKL, DDPMScheduler)  # as diffusers leaves them
    denoiser, autoencoder, scheduler = untyped
    with torch.device(device):
        parts: dict[str, Any] = {
            "unet": denoiser(sample_size=32, **UNET),
            "vae": autoencoder(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(folder / "scheduler")
    make_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return of_pixels(folder, 256)


def of_pixels(base: Path, pixels: int) -> Path:
    """The base, its pictures now of that size: nothing but one number says how large they are."""
    config = base / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": pixels // 8}))
    return base
