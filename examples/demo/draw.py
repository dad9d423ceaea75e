"""Draws prompts by stock diffusers, first with the base model alone, then with a LoRA, each pair from the same noise.

Run by the demo in a process of its own, and by hand:

    python -I examples/demo/draw.py --base trainer/bases/tiny_shapes/model --lora LORA.safetensors --out DIR \\
        "a large moonlet on a blue background"

Writes DIR/before-1.png, DIR/after-1.png and so on. It knows nothing of Tunesmith: this is all that a LoRA wants.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline


def main() -> None:
    """Draws, loads the LoRA, draws again."""
    wanted = arguments()
    load: Any = StableDiffusionPipeline.from_pretrained  # diffusers has no types
    pipeline = load(wanted.base, dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    wanted.out.mkdir(parents=True, exist_ok=True)

    draw(pipeline, wanted.prompts, wanted.out, "before")
    pipeline.load_lora_weights(wanted.lora.parent, weight_name=wanted.lora.name)
    draw(pipeline, wanted.prompts, wanted.out, "after")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Draws prompts without a LoRA and with it.")
    parser.add_argument("--base", type=Path, required=True, help="folder of a diffusers pipeline")
    parser.add_argument("--lora", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("prompts", nargs="+")
    return parser.parse_args()


def draw(pipeline: Any, prompts: Sequence[str], out: Path, name: str) -> None:  # noqa: ANN401
    """One picture a prompt; 25 steps, guidance 7.5, the pipeline's own. The noise depends on the prompt's place."""
    noises = [torch.Generator().manual_seed(place) for place in range(1, len(prompts) + 1)]
    drawn = pipeline(list(prompts), num_inference_steps=25, guidance_scale=7.5, generator=noises)
    for place, picture in enumerate(drawn.images, start=1):
        picture.save(out / f"{name}-{place}.png")


if __name__ == "__main__":
    main()
