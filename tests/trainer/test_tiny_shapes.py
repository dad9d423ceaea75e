"""The base that ships: its world, its files, and that it draws what it is asked."""

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from trainer.bases import digest, tiny_shapes
from trainer.bases.tiny_shapes import autoencoder, diffusion, prior, runs, train, vocabulary, world

Pipeline = Any  # a StableDiffusionPipeline: diffusers leaves it untyped

LARGEST = 20 * 2**20  # bytes, of the whole folder


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    stock: Any = StableDiffusionPipeline
    loaded = stock.from_pretrained(tiny_shapes.path(), dtype=torch.float32)
    loaded.scheduler = DDIMScheduler.from_config(loaded.scheduler.config)  # type: ignore[no-untyped-call]
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_one_seed_draws_one_picture_and_says_one_caption() -> None:
    def shown(seed: int) -> tuple[bytes, str]:
        rng = Random(seed)
        scene = world.random_scene(rng)
        return world.draw(scene, rng).tobytes(), world.caption(scene, rng)

    first, again, other = shown(3), shown(3), shown(4)

    assert first == again
    assert first != other


def test_a_complete_caption_names_the_shape_the_colour_and_the_background() -> None:
    rng = Random(0)

    for _ in range(300):
        scene = world.random_scene(rng)
        words = world.caption(scene, rng, complete=True).replace(",", " ").split()
        assert scene.shape in words
        assert words.count(scene.colour) == 1
        assert words.count(scene.background) == 1


def test_a_picture_has_the_colours_that_its_scene_names() -> None:
    rng = Random(0)

    for _ in range(100):
        scene = world.random_scene(rng)
        picture = world.draw(scene, rng)
        assert picture.shape == (64, 64, 3)
        assert nearest_colour(np.median(picture.reshape(-1, 3), axis=0)) == scene.background
        assert scene.colour in {nearest_colour(pixel) for pixel in picture.reshape(-1, 3)}


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = vocabulary.build()

    for word in vocabulary.world_words():
        assert len(tokenizer.tokenize(word)) == 1, word


@pytest.mark.parametrize("trigger", ["zxqvunesmith", "sks", "日本", "🦊", "naïve", "ß" * 3, "Ωмега"])
def test_the_shipped_tokenizer_spells_any_trigger_word_and_reads_it_back(trigger: str) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_shapes.path() / "tokenizer")

    ids = tokenizer(f"a {trigger} star").input_ids

    assert tokenizer.model_max_length == 77
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a {trigger.lower()} star"


def test_the_folder_is_below_twenty_megabytes_and_holds_no_pickle() -> None:
    files = [file for file in tiny_shapes.path().rglob("*") if file.is_file()]

    assert sum(file.stat().st_size for file in files) <= LARGEST
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt", ".png"}


def test_the_prior_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    prior.draw(tmp_path)
    shipped = tiny_shapes.path() / "prior"

    assert {file.name for file in shipped.iterdir()} == {file.name for file in tmp_path.iterdir()}
    for file in tmp_path.glob("*.txt"):
        assert (shipped / file.name).read_text() == file.read_text()
    for file in tmp_path.glob("*.png"):  # by pixels: another zlib packs them otherwise
        assert np.array_equal(np.asarray(Image.open(shipped / file.name)), np.asarray(Image.open(file)))


def test_no_file_of_the_folder_tells_where_it_was_made() -> None:
    texts = {file.name: file.read_text() for file in tiny_shapes.path().rglob("*.json")}

    assert [name for name, text in texts.items() if "_name_or_path" in text] == []


def test_a_finished_model_is_trained_further_from_just_its_weights(pipeline: Pipeline) -> None:
    finished = train.load(tiny_shapes.path())

    begun = finished.denoiser
    assert begun.steps == sum(cycle.steps for cycle in diffusion.CYCLES)
    assert torch.equal(begun.weights["unet.conv_in.weight"], pipeline.unet.conv_in.weight)
    assert torch.equal(finished.vae.quant_conv.weight, pipeline.vae.quant_conv.weight)


def test_a_thorough_caption_names_size_and_place_too() -> None:
    rng = Random(0)

    for _ in range(300):
        scene = world.random_scene(rng)
        words = world.caption(scene, rng, thorough=True)
        assert any(size in words for size in world.SIZE_WORDS[scene.size])
        assert any(place in words for place in world.place_words(scene.place))


def test_the_cycles_follow_one_another_without_a_gap() -> None:
    first, second, *_ = diffusion.CYCLES

    assert diffusion.cycle_at(0) == (first, 0)
    assert diffusion.cycle_at(first.steps - 1) == (first, first.steps - 1)
    assert diffusion.cycle_at(first.steps) == (second, 0)
    with pytest.raises(ValueError, match="ends 1 steps earlier"):
        diffusion.cycle_at(sum(cycle.steps for cycle in diffusion.CYCLES))


def test_the_digest_is_of_names_and_contents_in_order(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"one")

    found = digest.sha256(tmp_path)

    length = [number.to_bytes(8, "big") for number in (1, 3, 6, 3)]
    told = length[0] + length[1] + b"a" + b"one" + length[2] + length[3] + b"unet/b" + b"two"
    assert found == hashlib.sha256(told).hexdigest()


def test_a_changed_folder_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    before = digest.sha256(tmp_path)

    (tmp_path / "a").write_bytes(b"other")

    assert digest.sha256(tmp_path) != before
    with pytest.raises(FileNotFoundError):
        digest.sha256(tmp_path / "nothing")


def test_stock_diffusers_loads_the_folder_as_an_sd15(pipeline: Pipeline) -> None:
    parts = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("unet", "vae", "text_encoder")
    }

    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size == 96
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert 4e6 < parts["unet"] < 5e6
    assert parts["vae"] < 1e6
    assert parts["text_encoder"] < 1e6


def test_the_vae_gives_a_picture_back_and_its_latents_are_of_unit_size(pipeline: Pipeline) -> None:
    rng = Random(5)
    drawn = np.stack([world.draw(world.random_scene(rng), rng) for _ in range(32)])
    pixels = autoencoder.as_floats(torch.from_numpy(drawn).permute(0, 3, 1, 2))

    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        back = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample

    assert latents.shape == (32, 4, 16, 16)
    assert 0.8 < float(latents.std()) < 1.2
    assert float((back - pixels).abs().mean()) < 0.06  # of a range of 2


def test_a_caption_gives_a_picture_on_the_background_it_names(pipeline: Pipeline) -> None:
    noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    captions = ["a small red star on a blue background", "a small black circle on a yellow background"]

    shown = pipeline(captions, num_inference_steps=8, guidance_scale=7.5, generator=noise, output_type="np").images

    seen = [nearest_colour(np.median(picture.reshape(-1, 3) * 255, axis=0)) for picture in shown]
    assert seen == ["blue", "yellow"]


def test_normalising_changes_the_latents_and_not_the_picture() -> None:
    torch.manual_seed(0)
    vae = autoencoder.build().eval()
    rng = Random(1)
    pixels = autoencoder.as_floats(torch.from_numpy(world.draw(world.random_scene(rng), rng)).permute(2, 0, 1)[None])
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample

    autoencoder.normalise(vae, seed=0, count=64)

    with torch.no_grad():
        after = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-3)


def test_the_rate_rises_holds_and_falls_to_nothing() -> None:
    rates = [runs.rate(step, 1000, peak=1.0, warm_up=100, hold=0.5) for step in range(1000)]

    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == rates[499] == 1.0
    assert rates[500:] == sorted(rates[500:], reverse=True)
    assert rates[-1] < 1e-4


def nearest_colour(rgb: np.ndarray) -> str:
    """The named colour closest to (3,) of 0 to 255."""
    away = {name: float(np.abs(np.asarray(known) - rgb).sum()) for name, known in world.COLOURS.items()}
    return min(away, key=lambda name: away[name])
