"""The LoRA file: kohya's layout, its metadata, and the same bytes for the same LoRA. Called by `tune`; knows no model.

diffusers, ComfyUI, A1111 and InvokeAI read this layout. The metadata holds no name, id, epoch, time or host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save
from torch import Tensor

from trainer.durable import whole
from trainer.engine import captions, recipe
from trainer.engine.families.base import Family
from trainer.engine.recipe import Recipe


def layout(state: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """kohya's names and fp16. state: peft's names, below "unet." or "text_encoder."."""
    named = convert_state_dict_to_kohya({n: tensor.cpu() for n, tensor in state.items()})  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
    mended = {}
    for name, tensor in named.items():
        # It writes alpha = rank whatever alpha is, and calls SD 1.5's only text encoder by SDXL's name for its first.
        tensor = torch.tensor(alpha) if name.endswith(".alpha") else tensor
        mended[name.replace("lora_te1_", "lora_te_")] = tensor.to(torch.float16).contiguous()
    return mended


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, int]:
    """Writes the file so that it is there whole or not at all. Answers its SHA-256, hexadecimal, and its bytes."""
    content = sealed(tensors, metadata)
    with whole(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest(), len(content)


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose header is sorted: safetensors writes its keys in random order."""
    body = save(dict(tensors))
    length = int.from_bytes(body[:8], "little")
    header, numbers = json.loads(body[8 : 8 + length]), body[8 + length :]
    known = {**metadata, "modelspec.hash_sha256": f"0x{hashlib.sha256(numbers).hexdigest()}"}
    text = json.dumps({"__metadata__": known, **header}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    said = text.encode()
    said += b" " * (-len(said) % 8)  # the numbers begin at a multiple of eight
    return len(said).to_bytes(8, "little") + said + numbers


def metadata(resolved: Recipe, family: type[Family], said: Sequence[str]) -> dict[str, str]:
    """What kohya's tools, model browsers and people look for. said: the captions that were trained on."""
    r, size = resolved, resolved.native_size
    word = r.trigger_word
    kohya = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": r.whole("rank"),
        "ss_network_alpha": r.number("alpha"),
        "ss_base_model_version": family.base_version,
        "ss_v2": family.base_version == "sd_v2",
        "ss_sd_model_name": r.checkpoint,
        "ss_resolution": f"({size}, {size})",
        "ss_enable_bucket": True,
        "ss_bucket_no_upscale": True,
        "ss_steps": r.steps,
        "ss_max_train_steps": r.steps,
        "ss_seed": r.seed,
        "ss_num_train_images": len(r.pictures),
        "ss_batch_size_per_device": r.whole("batch_size"),
        "ss_gradient_accumulation_steps": r.whole("gradient_accumulation_steps"),
        "ss_gradient_checkpointing": r.flag("gradient_checkpointing"),
        "ss_learning_rate": r.number("learning_rate"),
        "ss_unet_lr": r.number("learning_rate"),
        "ss_lr_scheduler": r.word("schedule"),
        "ss_lr_warmup_steps": round(r.steps * r.number("warmup_ratio")),
        "ss_optimizer": "torch.optim.AdamW",
        "ss_max_grad_norm": r.number("max_grad_norm"),
        "ss_min_snr_gamma": r.number("min_snr_gamma"),
        "ss_noise_offset": r.number("noise_offset"),
        "ss_caption_dropout_rate": r.number("caption_dropout"),
        "ss_prior_loss_weight": r.number("prior_preservation_weight"),
        "ss_network_dropout": r.number("lora_dropout"),
        "ss_mixed_precision": {"fp32": "no", "bf16": "bf16"}[r.word("precision")],
        "ss_random_crop": False,
        "ss_flip_aug": r.flag("random_flip"),
        "ss_tag_frequency": json.dumps({word: captions.tag_frequencies(said)}, ensure_ascii=False),
    }
    modelspec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": word,
        "modelspec.trigger_phrase": word,
        "modelspec.resolution": f"{size}x{size}",
    }
    ours = {"tunesmith.recipe": recipe.canonical(resolved)}
    return {name: str(value) for name, value in (kohya | modelspec | ours).items()}
