"""Draws one picture without a LoRA and with it, by stock diffusers alone. Run in a process of its own by the end-to-end
tests: `stock_diffusers.py BASE LORA` prints {"1": d, "0": d}, mean differences in grey levels at these weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline


def main() -> None:
    base, lora = Path(sys.argv[1]), Path(sys.argv[2])
    load: Any = StableDiffusionPipeline.from_pretrained  # diffusers has no types
    pipeline = load(base, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        images = pipeline("sks", num_inference_steps=8, generator=generator, output_type="np").images
        return np.asarray(images[0]) * 255  # (H, W, 3)

    plain = draw()
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="tune")
    found = {}
    for weight in (1, 0):
        pipeline.set_adapters(["tune"], [float(weight)])
        found[str(weight)] = float(np.abs(draw() - plain).mean())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
