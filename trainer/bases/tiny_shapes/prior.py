"""Draws the prior pictures that tiny-shapes brings: what a tune should not make it forget. `python -m
trainer.bases.tiny_shapes.prior` draws them again, always the same. Called by `train`; knows nothing of models.
"""

from pathlib import Path
from random import Random

from PIL import Image

from trainer.bases import tiny_shapes
from trainer.bases.tiny_shapes import world

COUNT = (
    256  # of 576 ways to pair shape, colour and background; a step sees a few: more slow only the first tune's encoding
)
SEED = 77  # no seed that anything is measured with


def draw(folder: Path) -> None:
    """001.png with its caption in 001.txt, and so on; each caption names shape, colour and background."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(SEED)  # noqa: S311  # pictures, not secrets
    scenes = [world.random_scene(rng) for _ in range(COUNT)]
    for number, scene in enumerate(scenes, start=1):
        Image.fromarray(world.draw(scene, rng)).save(folder / f"{number:03}.png", optimize=True)
        (folder / f"{number:03}.txt").write_text(world.caption(scene, rng, complete=True) + "\n", "utf-8")


if __name__ == "__main__":
    draw(tiny_shapes.path() / "prior")
