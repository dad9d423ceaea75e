"""What the trainer's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import DEVICE, Bench, draw, make_base
from trainer.engine import hardware, pictures
from trainer.engine.cache import Cache
from trainer.engine.decoder import Decoder
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.engine.residence import Residence
from trainer.engine.tune import Workshop
from trainer.pipe import CheckpointSource, PictureFile


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bytes depend on the number of threads, and several on shared cores are slower than one."""
    torch.set_num_threads(1)
    hardware.whole_floats()
    pictures.prepare()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder in SD 1.5's shape with random weights: 64 pixels, f = 4."""
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def loaded(tiny_base: Path) -> StableDiffusion15:
    """The same, loaded. Whoever puts a LoRA on it takes it off."""
    return StableDiffusion15.load(CheckpointSource("folder", str(tiny_base), "tiny"), DEVICE, "fp32")


@pytest.fixture
def shop() -> Iterator[Workshop]:
    """An engine without its process."""
    with Decoder() as decoder:
        yield Workshop(DEVICE, torch.get_num_threads(), Residence(DEVICE), Cache(1 << 28), decoder)


@pytest.fixture
def shapes(tmp_path: Path) -> list[PictureFile]:
    """Three pictures of three shapes in three sizes, so in more than one bucket."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    drawn = [((80, 80), "red", "a red disc, zwx"), ((100, 66), "green", ""), ((64, 96), "blue", "zwx in blue")]
    return [draw(folder / f"{colour}.png", size, colour, caption) for size, colour, caption in drawn]


@pytest.fixture
def bench(shop: Workshop, tiny_base: Path, tmp_path: Path) -> Bench:
    """A place to run tunes."""
    folder = tmp_path / "work"
    folder.mkdir()
    hardware.set_deterministic(False)
    return Bench(shop, tiny_base, folder)
