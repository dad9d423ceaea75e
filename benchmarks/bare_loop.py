"""The peer of the training benchmark: a loop with the same model, LoRA, optimizer, objective and cached latents as the
engine's, and nothing else. No seeds by step, no captions dropped, no reports, no cancelling, no pipe.

`python -m benchmarks.bare_loop --batch 1 --steps 300 --threads 1 [--device cuda] [--base FOLDER] PICTURE...` prints
JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from trainer.engine import buckets, hardware, pictures
from trainer.engine.defaults import filled
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.engine.objective import diffusion
from trainer.pipe import CheckpointSource

BASE = Path(__file__).parent.parent / "trainer" / "bases" / "tiny_shapes" / "model"
WARM_UP = 20  # steps left out at the beginning, as the benchmark leaves out the service's
CAPTION = "zwx"


def main() -> None:
    """Measures once."""
    wanted = arguments()
    device = hardware.device_of(wanted.device)
    as_served = filled(StableDiffusion15.engine, {}, device.type)
    hardware.prepare(wanted.threads)
    hardware.set_deterministic(bool(as_served["deterministic"]))
    pictures.prepare()
    source = CheckpointSource("folder", str(wanted.base), "base")
    base = StableDiffusion15.load(source, device, str(as_served["precision"]))
    seconds = loop(base, latents(base, source, wanted.pictures), wanted.batch, wanted.steps)
    speed = (wanted.steps - WARM_UP) / seconds
    print(json.dumps({"steps_per_second": speed, "batch": wanted.batch, "steps": wanted.steps}))


def arguments() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=BASE, help="a diffusers folder")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("pictures", type=Path, nargs="+")
    return parser.parse_args()


def latents(base: StableDiffusion15, source: CheckpointSource, files: list[Path]) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of the pictures of each size, (n, C, h, w), cut as the engine cuts them."""
    shape = base.describe(source)
    by = buckets.rules(shape.native_size, shape.divisibility, resize=True)
    sizes = defaultdict(list)
    for file in files:
        picture, _ = pictures.decode(file)
        crop = buckets.crop(picture.height, picture.width, by)
        assert crop is not None, file
        encoded = base.encode_picture(_pixels(pictures.cut(picture, crop)))
        mean, logvar = (encoded[name].to(base.device) for name in ("mean", "logvar"))
        sizes[crop.bucket].append((mean, (0.5 * logvar).exp()))
    return [(torch.stack([m for m, _ in size]), torch.stack([d for _, d in size])) for size in sizes.values()]


def loop(
    base: StableDiffusion15, sizes: list[tuple[Tensor, Tensor]], batch: int, steps: int, warm_up: int = WARM_UP
) -> float:
    """Trains; answers the seconds that the steps after the warm-up took, and leaves the base as it was."""
    unet: Any = base.denoiser
    device = base.device
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=list(base.targets)))
    cast_training_params(unet, torch.float32)
    weights = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, fused=True)
    noise = diffusion(base.alphas_cumprod, base.predicts_v, 5.0, device)
    states = base.encode_text(CAPTION)["states"].to(device).repeat(batch, 1, 1)
    weighing = torch.tensor([float(len(mean)) for mean, _ in sizes])
    half = torch.autocast(device.type, torch.bfloat16, enabled=base.precision == "bf16")
    began = 0.0
    for step in range(steps):
        if step == warm_up:
            began = _now(device)
        mean, deviation = sizes[int(torch.multinomial(weighing, 1))]
        chosen = torch.randint(len(mean), (batch,), device=device)
        x_0 = mean[chosen] + deviation[chosen] * torch.randn(batch, *mean.shape[1:], device=device)
        ε, t = torch.randn_like(x_0), torch.randint(noise.steps, (batch,), device=device)
        x_t = noise.α[t].view(-1, 1, 1, 1) * x_0 + noise.σ[t].view(-1, 1, 1, 1) * ε
        with half:
            prediction = unet(x_t.to(unet.dtype, memory_format=torch.channels_last), t, states, return_dict=False)[0]
        loss = (noise.w[t] * (prediction.float() - ε).square().mean(dim=(1, 2, 3))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    took = _now(device) - began
    unet.unload_lora()
    unet.requires_grad_(False)
    return took


def _now(device: torch.device) -> float:
    """The clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _pixels(picture: Image.Image) -> Tensor:
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, picture.height, picture.width, 3)
    return raw.permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
