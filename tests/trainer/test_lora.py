"""The LoRA and its file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.tiny import DEVICE, Bench
from trainer.engine import hardware, kohya
from trainer.engine.defaults import Value, filled
from trainer.engine.families.sd15 import StableDiffusion15
from trainer.engine.lora import Adapter
from trainer.engine.recipe import VERSION, Recipe
from trainer.engine.tune import worn
from trainer.pipe import PictureFile, Resolved

STOCK = """
import json, sys
import torch
from diffusers import StableDiffusionPipeline

base, lora, weights = sys.argv[1], sys.argv[2], [float(weight) for weight in sys.argv[3:]]
pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True)
pipeline.set_progress_bar_config(disable=True)

def picture():
    made = pipeline("zwx", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="latent")
    return made.images

pictures = [picture()]
pipeline.load_lora_weights(lora, adapter_name="tuned")
for weight in weights:
    pipeline.set_adapters("tuned", weight)
    pictures.append(picture())
assert not any(name.split(".")[0] in ("trainer", "gateway", "store", "tunesmith") for name in sys.modules)
print(json.dumps([(made - pictures[0]).abs().max().item() for made in pictures]))
"""


def recipe(**given: Value) -> Recipe:
    engine = StableDiffusion15.engine
    here = hardware.environment(torch.device("cpu"), 1)
    return Recipe(
        VERSION, engine, "tiny", "", 7, 10, "zwx", 64, True, filled(engine, {"rank": 4, **given}, "cpu"), (), here
    )


def asked() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x_t, t and text of one prediction."""
    states = torch.randn(1, 77, 24, device=DEVICE)
    return torch.randn(1, 4, 16, 16, device=DEVICE), torch.tensor([5], device=DEVICE), {"states": states}


@pytest.fixture
def adapter(loaded: StableDiffusion15) -> Iterator[Adapter]:
    with worn(loaded, recipe(alpha=2.0)) as adapter:
        yield adapter


def test_a_new_lora_changes_nothing_and_then_learns(loaded: StableDiffusion15) -> None:
    x_t, t, text = asked()
    before = loaded.predict(x_t, t, text, [])

    with worn(loaded, recipe()) as adapter:
        new = loaded.predict(x_t, t, text, [])
        new.square().mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        adapter.update(1e-2)
        changed = loaded.predict(x_t, t, text, [])

    assert torch.equal(new, before)
    assert not torch.equal(changed, before)
    assert torch.equal(loaded.predict(x_t, t, text, []), before)


def test_parameters_and_gradients_are_views_of_the_flat_tensors(adapter: Adapter, loaded: StableDiffusion15) -> None:
    x_t, t, text = asked()
    predicted = loaded.predict(x_t, t, text, [])
    predicted.square().mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    gradient = adapter.flat.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    at = 0
    for parameter in adapter.parameters.values():
        its, end = adapter.flat.data[at : at + parameter.numel()], at + parameter.numel()
        assert parameter.grad is not None
        assert parameter.data_ptr() == its.data_ptr()
        assert parameter.grad.data_ptr() == gradient[at:end].data_ptr()
        at = end
    assert at == adapter.flat.numel()


def test_attention_and_feed_forward_are_the_targets(adapter: Adapter) -> None:
    ends = {name.split(".lora_")[0].split("transformer_blocks.0.")[1] for name in adapter.parameters}

    attention = {f"attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    assert ends == attention | {"ff.net.0.proj", "ff.net.2"}


def test_the_first_weights_are_a_function_of_the_seed(loaded: StableDiffusion15) -> None:
    drawn = []
    for _ in range(2):
        torch.rand(5)
        with worn(loaded, recipe()) as adapter:
            drawn.append(adapter.flat.detach().clone())
            downs = [p for name, p in adapter.parameters.items() if "lora_A" in name]
            ups = [p for name, p in adapter.parameters.items() if "lora_B" in name]

    assert torch.equal(*drawn)
    assert all(up.count_nonzero() == 0 for up in ups)
    assert all(down.abs().max() <= down.shape[1] ** -0.5 for down in downs)
    assert len({tuple(down.flatten()[:8].tolist()) for down in downs}) == len(downs)


def test_one_update_is_that_of_plain_clipping_and_adamw(loaded: StableDiffusion15) -> None:
    with worn(loaded, recipe(max_grad_norm=0.5)) as adapter:
        assert adapter.flat.grad is not None
        adapter.flat.grad.copy_(torch.linspace(-1, 1, adapter.flat.numel()))
        plain = [p.detach().clone().requires_grad_() for p in adapter.parameters.values()]
        for ours, theirs in zip(adapter.parameters.values(), plain, strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.clone()

        adapter.update(1e-2)

        torch.nn.utils.clip_grad_norm_(plain, 0.5)
        torch.optim.AdamW(plain, lr=1e-2, weight_decay=0.01).step()
        for ours, theirs in zip(adapter.parameters.values(), plain, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_thrown_away_changes_neither_weights_nor_optimizer(loaded: StableDiffusion15, bad: float) -> None:
    with worn(loaded, recipe()) as adapter:
        assert adapter.flat.grad is not None
        adapter.flat.grad.fill_(0.1)
        assert adapter.update(1e-2).item() == 0
        weights = adapter.flat.detach().clone()
        state = {name: value.clone() for name, value in adapter.optimizer.state[adapter.flat].items()}

        adapter.flat.grad.fill_(0.1)[3] = bad
        thrown_away = adapter.update(1e-2).item()

        assert thrown_away == 1
        assert torch.equal(adapter.flat, weights)
        after = adapter.optimizer.state[adapter.flat]
        assert all(torch.equal(after[name], state[name]) for name in state)


def test_the_file_agrees_with_peft_on_every_tensor(adapter: Adapter, loaded: StableDiffusion15, tmp_path: Path) -> None:
    adapter.flat.data.copy_(torch.randn(adapter.flat.shape, generator=torch.Generator().manual_seed(1)))
    path = tmp_path / "lora.safetensors"

    sha256, size = kohya.write(path, kohya.layout({f"unet.{n}": t for n, t in adapter.state().items()}, 2.0), {})

    theirs = get_peft_model_state_dict(loaded.denoiser)
    ours = load_file(path)
    downs = {"lora_A": "lora_down", "lora_B": "lora_up"}
    expected: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        module, part, _ = name.rsplit(".", 2)
        flat = f"lora_unet_{module.replace('.', '_')}"
        expected[f"{flat}.{downs[part]}.weight"] = tensor.half().cpu()
        expected[f"{flat}.alpha"] = torch.tensor(2.0).half()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert path.stat().st_size == size
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_encoder_is_named_as_kohya_names_it() -> None:
    state = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 3)}

    assert set(kohya.layout(state, 1.0)) == {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha",
    }


def test_the_same_tensors_always_give_the_same_bytes() -> None:
    # In other processes, since safetensors' order depends on a hash with a seed of the process.
    script = """
import hashlib, torch
from trainer.engine.kohya import sealed
tensors = {f"layer_{i}": torch.full((2, 2), float(i)) for i in range(40)}
print(hashlib.sha256(sealed(tensors, {f"key_{i}": "zwx “ö” \\\\n" for i in range(20)})).hexdigest())
"""
    said = {subprocess.check_output([sys.executable, "-c", script]) for _ in range(2)}

    assert len(said) == 1


def test_the_file_says_how_it_was_made_and_names_nobody(bench: Bench, shapes: list[PictureFile]) -> None:
    saved = bench.tune(shapes)

    with safe_open(saved.path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "4.0")
    assert (metadata["ss_base_model_version"], metadata["ss_seed"], metadata["ss_steps"]) == ("sd_v1", "7", "8")
    assert json.loads(metadata["ss_tag_frequency"]) == {"zwx": {"zwx": 2, "a red disc": 1, "zwx in blue": 1}}
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.title"] == metadata["modelspec.trigger_phrase"] == "zwx"
    assert metadata["modelspec.resolution"] == "64x64"
    content = Path(saved.path).read_bytes()
    numbers = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(numbers).hexdigest()}"
    assert metadata["tunesmith.recipe"] == bench.heard(Resolved)[0].json
    everything = json.dumps(metadata)
    assert not any(word in everything for word in ("tune_1", "asset_", "/tmp", "epoch"))


def test_stock_diffusers_loads_the_file_and_the_picture_changes(bench: Bench, shapes: list[PictureFile]) -> None:
    saved = bench.tune(shapes, steps=12, learning_rate=5e-2)

    command = [sys.executable, "-W", "ignore", "-c", STOCK, str(bench.base), saved.path, "1", "0"]
    output = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL, cwd=bench.folder)

    _, at_one, at_zero = json.loads(output)
    assert at_one > 1e-3
    assert at_zero == 0
