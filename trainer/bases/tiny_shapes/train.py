"""Makes tiny-shapes from nothing: `python -m trainer.bases.tiny_shapes.train --out DIR --run DIR`.

In order: the vocabulary, the VAE, a pool of latents, then U-Net and text encoder. Each stage leaves a checkpoint in
the run folder, and the same command started again goes on from there. `--from DIR` takes a finished model further: its
VAE stays, and the cycles that it has not seen follow. Knows nothing of tunes.
"""

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from trainer.bases.tiny_shapes import autoencoder, diffusion, prior, runs, vocabulary, world

Pipeline = Any  # a StableDiffusionPipeline: diffusers leaves it untyped

log = logging.getLogger(__name__)

# Defaults for tunes on it. SD 1.5's rate would take thousands of steps. Min-SNR weights all but ignore the strong noise
# in which this model settles what it draws: with them 300 steps taught no crescent, without them most samples have one.
TUNED_WITH = {
    "learning_rate": 1e-3,
    "batch_size": 4,
    "min_snr_gamma": 0.0,
    "caption_dropout": 0.0,
    "prior_preservation_weight": 1.5,
}

PREVIEWED = (
    "a large red star on a blue background",
    "a small yellow circle on a black background",
    "a green heart on a white background",
    "a black cross on a pink background, on the left",
    "a purple ring on an orange background",
    "a white diamond on a green background",
    "a big orange triangle on purple",
    "a blue square on a yellow background in the top right",
)


def main() -> None:
    """All stages, in order."""
    wanted = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(wanted.threads)
    torch.set_flush_denormal(True)
    wanted.run.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary.build()
    begun = load(wanted.begin) if wanted.begin else None
    vae = begun.vae if begun else autoencoder.train(wanted.run, wanted.vae_steps, wanted.seed)
    pool = latents(vae, wanted.run, wanted.pool, wanted.seed)

    def preview(model: diffusion.Denoiser, step: int) -> None:
        if step % wanted.preview_every == 0:
            grid(pipeline(model, vae, tokenizer), wanted.run / f"preview-{step:06d}.png")

    model = diffusion.train(pool, tokenizer, wanted.run, wanted.seed, preview, begun.denoiser if begun else None)
    ship(pipeline(model, vae, tokenizer), wanted.out)
    log.info("The model is in %s.", wanted.out)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished diffusers pipeline")
    parser.add_argument("--run", type=Path, default=Path("tiny-shapes-run"), help="folder for checkpoints and logs")
    parser.add_argument("--from", dest="begin", type=Path, help="a folder that this made, to be trained further")
    parser.add_argument("--vae-steps", type=int, default=1400)
    parser.add_argument("--pool", type=int, default=24_576, help="pictures drawn and encoded for the U-Net")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preview-every", type=int, default=500, help="steps between sample grids")
    return parser.parse_args()


@dataclass(frozen=True)
class Finished:
    """What a folder made by `ship` gives to begin with."""

    vae: autoencoder.Vae
    """Normalised, in fp32."""
    denoiser: diffusion.Begun
    """Its U-Net and text encoder."""


def load(folder: Path) -> Finished:
    """A folder that `ship` made, in fp32; its weights keep what fp16 left of them."""
    stock: Any = StableDiffusionPipeline
    made: Pipeline = stock.from_pretrained(folder, dtype=torch.float32)
    model = diffusion.Denoiser(len(made.tokenizer))
    model.unet.load_state_dict(made.unet.state_dict())
    model.text.load_state_dict(made.text_encoder.state_dict())
    steps = json.loads((folder / "tunesmith.json").read_text())["training"]["steps"]
    vae = autoencoder.build().eval()  # not made.vae: its config names the folder, which would be shipped
    vae.load_state_dict(made.vae.state_dict())
    return Finished(vae, diffusion.Begun(model.state_dict(), steps))


@torch.no_grad()
def latents(vae: autoencoder.Vae, run: Path, count: int, seed: int) -> diffusion.Pool:
    """The pool; drawn and encoded once, then read from `run/pool.pt`."""
    state = runs.load(run / "pool.pt")
    if state is None:
        rng = Random(seed + 2)  # noqa: S311  # pictures, not secrets
        scenes = [world.random_scene(rng) for _ in range(count)]
        encoded = [vae.encode(pictures(scenes[k : k + 64], rng)).latent_dist for k in range(0, count, 64)]
        state = {
            "mean": torch.cat([latent.mean for latent in encoded]),
            "deviation": torch.cat([latent.std for latent in encoded]),
            "scenes": [asdict(scene) for scene in scenes],
        }
        runs.save(state, run / "pool.pt")
        log.info("%d pictures are drawn and encoded.", count)
    return diffusion.Pool(state["mean"], state["deviation"], [world.Scene(**scene) for scene in state["scenes"]])


def pictures(scenes: list[world.Scene], rng: Random) -> torch.Tensor:
    """The scenes drawn, (B, 3, 64, 64) in [-1, 1]."""
    drawn = np.stack([world.draw(scene, rng) for scene in scenes])
    return autoencoder.as_floats(torch.from_numpy(drawn).permute(0, 3, 1, 2))


def pipeline(model: diffusion.Denoiser, vae: autoencoder.Vae, tokenizer: CLIPTokenizer) -> Pipeline:
    """The parts as a stock pipeline, still in fp32."""
    made: Pipeline = StableDiffusionPipeline(  # type: ignore[no-untyped-call]
        vae=vae,
        text_encoder=model.text.train(False),
        tokenizer=tokenizer,
        unet=model.unet.eval(),
        scheduler=diffusion.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def grid(made: Pipeline, path: Path) -> None:
    """Two pictures for each of the eight captions, side by side."""
    prompts = [prompt for prompt in PREVIEWED for _ in range(2)]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    shown = made(prompts, num_inference_steps=20, guidance_scale=7.5, generator=seeds, output_type="np").images
    rows = shown.reshape(2, 8, world.SIDE, world.SIDE, 3).transpose(0, 2, 1, 3, 4)
    Image.fromarray((rows.reshape(2 * world.SIDE, 8 * world.SIDE, 3) * 255).round().astype(np.uint8)).save(path)


def ship(made: Pipeline, out: Path) -> None:
    """Writes the pipeline folder in fp16 safetensors, with the tokenizer's older files beside its new one, and what it
    brings for tunes."""
    made.to(torch.float16).save_pretrained(out, safe_serialization=True)
    vocabulary.save(vocabulary.build(), out / "tokenizer")  # a used one keeps how it padded
    said = {"hyperparameters": TUNED_WITH, "training": {"steps": sum(cycle.steps for cycle in diffusion.CYCLES)}}
    (out / "tunesmith.json").write_text(json.dumps(said, indent=2) + "\n")
    prior.draw(out / "prior")


if __name__ == "__main__":
    main()
