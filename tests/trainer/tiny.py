"""Tiny models and pictures, made by code in a second; and a bench to tune them on in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.engine import hardware
from trainer.engine.orders import Orders
from trainer.engine.tune import Tune, Workshop
from trainer.pipe import (
    CheckpointSource,
    Hyperparameter,
    PictureFile,
    Saved,
    SnapshotUploaded,
    Start,
    Stop,
    Stopped,
    ToSupervisor,
)

ENGINE = "image/stable-diffusion-v1-5"
# `TUNESMITH_DEVICE=cuda scripts/test tests/trainer` computes the same tests on a GPU.
DEVICE = hardware.device_of(os.environ.get("TUNESMITH_DEVICE", "cpu"))
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the engine's process has it, for the same bytes


@dataclass
class Bench:
    """Runs tunes and keeps what they told."""

    shop: Workshop
    base: Path
    folder: Path
    told: list[ToSupervisor] = field(default_factory=list)
    answer: Callable[[ToSupervisor], Stop | SnapshotUploaded | None] = lambda told: None
    """What the supervisor says to a message."""

    def start(self, pictures: list[PictureFile], **changes: Any) -> Start:
        """A Start of eight quick steps; `changes` to its fields, or to its hyperparameters."""
        # The last two as a CPU has them from the start: most tests compare bytes.
        hyperparameters: dict[str, Hyperparameter] = {
            "rank": 4, "learning_rate": 1e-3, "deterministic": True, "precision": "fp32",
        }  # fmt: skip
        folder = self.folder / str(len(list(self.folder.iterdir())))
        folder.mkdir(parents=True)
        start = Start(
            tune_id="tune_1", epoch=1, engine=ENGINE, steps=8, trigger_word="zwx", pictures=pictures,
            checkpoint=CheckpointSource("folder", str(self.base), "tiny"), folder=str(folder), seed=7,
            hyperparameters=hyperparameters,
        )  # fmt: skip
        own = {name: value for name, value in changes.items() if name in Start.__dataclass_fields__}
        others = {name: value for name, value in changes.items() if name not in own}
        return replace(start, **{"hyperparameters": hyperparameters | others, **own})

    def tune(self, pictures: list[PictureFile], **changes: Any) -> Saved:
        """Runs it to its end."""
        ended = self.run(self.start(pictures, **changes))
        assert isinstance(ended, Saved)
        return ended

    def run(self, start: Start) -> Saved | Stopped:
        """Runs it for as long as `answer` lets it."""
        self.told.clear()
        orders = Orders()

        def tell(message: ToSupervisor) -> None:
            self.told.append(message)
            if (answer := self.answer(message)) is not None:
                orders.note(answer)

        return Tune(start, self.shop, tell, orders).run()

    def heard(self, kind: type[Any]) -> list[Any]:
        """What the last tune told of that kind."""
        return [message for message in self.told if isinstance(message, kind)]


def draw(path: Path, size: tuple[int, int], colour: str, caption: str = "") -> PictureFile:
    """A disc on a gradient. size: (width, height)."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    ImageDraw.Draw(picture).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill=colour)
    picture.save(path)
    return PictureFile(f"asset_{path.stem}", str(path), "", caption)


def make_base(folder: Path, prediction: str = "epsilon") -> Path:
    """Writes one with random weights."""
    torch.manual_seed(3)
    make_tokenizer(folder / "tokenizer")
    unet: Any = UNet2DConditionModel(  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
        sample_size=16, block_out_channels=(16, 32, 32), layers_per_block=1, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae: Any = AutoencoderKL(  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
        block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514, hidden_size=24, intermediate_size=48, projection_dim=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=77, bos_token_id=512, eos_token_id=513, pad_token_id=513,
        )
    )  # fmt: skip
    scheduler: Any = PNDMScheduler(  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [None, None],
        "feature_extractor": [None, None], "image_encoder": [None, None],
    }  # fmt: skip
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_tokenizer(folder: Path) -> None:
    """CLIP's, with the bytes for its whole vocabulary: one token a letter."""
    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
