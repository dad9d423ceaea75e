"""The real architecture of Stable Diffusion 1.5, with random weights, on real photographs."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import skimage.data
from PIL import Image
from safetensors.torch import load_file

from tests.trainer.full_size import make_full_base
from tests.trainer.tiny import Bench
from trainer.pipe import CheckpointSource, PictureFile, Stepped

MEMORY = 12 * 2**30  # bytes


@pytest.fixture
def full_base(tmp_path: Path) -> Path:
    return make_full_base(tmp_path / "sd15")


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
