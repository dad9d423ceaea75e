"""Makes the two pictures of docs/tiny-shapes.md: `python -m trainer.bases.tiny_shapes.album --run DIR`.

Samples with their captions from the shipped model, and the loss curves from the logs of a training run. Knows nothing
of training itself.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from PIL.Image import Image as Picture

from trainer.bases import tiny_shapes
from trainer.bases.tiny_shapes import runs, world

INK, GREY, PAPER = (30, 30, 30), (190, 190, 190), (255, 255, 255)
SHOWN = 128  # pixels, side of a sample on the page: twice its own size
CAPTION = 42  # pixels below a sample for its caption
PANEL = (640, 300)  # pixels, one loss curve with its margins
MARGIN = 44  # pixels about the curve


def main() -> None:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("tiny-shapes-run"), help="the training run's folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--seed", type=int, default=11)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    wanted.out.mkdir(parents=True, exist_ok=True)
    samples(wanted.seed).save(wanted.out / "tiny-shapes-samples.png", optimize=True)
    curves(wanted.run).save(wanted.out / "tiny-shapes-loss.png", optimize=True)


def samples(seed: int, columns: int = 8, rows: int = 4) -> Picture:
    """Random captions, the first picture that each of them gives, nothing chosen."""
    rng = Random(seed)  # noqa: S311  # pictures, not secrets
    scenes = [world.random_scene(rng) for _ in range(columns * rows)]
    captions = [world.caption(scene, rng, complete=True) for scene in scenes]
    page = Image.new("RGB", (columns * (SHOWN + 8) + 8, rows * (SHOWN + CAPTION + 8)), PAPER)
    pen = ImageDraw.Draw(page)
    for place, (words, picture) in enumerate(zip(captions, generated(captions, seed), strict=True)):
        x, y = 8 + place % columns * (SHOWN + 8), 8 + place // columns * (SHOWN + CAPTION + 8)
        page.paste(picture.resize((SHOWN, SHOWN), Image.Resampling.NEAREST), (x, y))
        pen.multiline_text((x, y + SHOWN + 2), textwrap.fill(words, 24), fill=INK, font_size=10, spacing=1)
    return page


def generated(captions: Sequence[str], seed: int) -> list[Picture]:
    """One picture for each caption: 25 DDIM steps, guidance 7.5."""
    stock: Any = StableDiffusionPipeline
    pipeline = stock.from_pretrained(tiny_shapes.path(), dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]
    noises = [torch.Generator().manual_seed(seed * 1000 + k) for k in range(len(captions))]
    shown = pipeline(list(captions), num_inference_steps=25, guidance_scale=7.5, generator=noises)
    pictures: list[Picture] = shown.images
    return pictures


def curves(run: Path) -> Picture:
    """The VAE's loss and the U-Net's side by side; a run that took a finished model further has the U-Net's alone."""
    titles = {"vae": "VAE", "unet": "U-Net and text encoder"}
    logs = {title: log for name, title in titles.items() if (log := run / f"{name}-loss.jsonl").exists()}
    page = Image.new("RGB", (len(logs) * PANEL[0], PANEL[1]), PAPER)
    for place, (title, log) in enumerate(logs.items()):
        panel = curve(list(runs.read_losses(log)), f"{title}: loss by step, mean of 10 (pale) and of 200")
        page.paste(panel, (place * PANEL[0], 0))
    return page


def curve(points: Sequence[tuple[int, float]], title: str) -> Picture:
    """One panel: steps to the right, loss upwards from nothing to what it was after a twentieth of the run."""
    panel = Image.new("RGB", PANEL, PAPER)
    pen = ImageDraw.Draw(panel)
    first, last = points[0][0], points[-1][0]
    top = max(loss for _, loss in points[len(points) // 20 :])
    width, height = PANEL[0] - 2 * MARGIN, PANEL[1] - 2 * MARGIN

    def at(step: float, loss: float) -> tuple[float, float]:
        along = (step - first) / max(1, last - first)
        return MARGIN + width * along, PANEL[1] - MARGIN - height * min(loss / top, 1.0)

    pen.text((MARGIN, 12), title, fill=INK, font_size=13)
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        step = first + part * (last - first)
        pen.line([at(first, part * top), at(last, part * top)], fill=(230, 230, 230))
        pen.text((4, at(first, part * top)[1] - 6), f"{part * top:.3f}", fill=INK, font_size=11)
        pen.text((at(step, 0)[0] - 12, PANEL[1] - MARGIN + 6), f"{step:.0f}", fill=INK, font_size=11)
    pen.line([at(*point) for point in points], fill=GREY)
    pen.line([at(*point) for point in smoothed(points)], fill=(36, 84, 214), width=2)
    return panel


def smoothed(points: Sequence[tuple[int, float]], width: int = 20) -> list[tuple[float, float]]:
    """Means of `width` neighbouring points."""
    groups = [points[k : k + width] for k in range(0, len(points) - width + 1, width)]
    return [(sum(s for s, _ in group) / width, sum(loss for _, loss in group) / width) for group in groups]


if __name__ == "__main__":
    main()
