"""Stable Diffusion 1.5, and whatever else has its shape: a CLIP text encoder, a VAE, a U-Net (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.engine.buckets import Crop
from trainer.engine.cache import Encoded
from trainer.engine.families import sources
from trainer.engine.families.base import Family, PriorPicture, Shape
from trainer.failures import CheckpointRefused, CheckpointUnreadable
from trainer.pipe import CheckpointSource

Part = TypeVar("Part", bound=nn.Module)

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class StableDiffusion15(Family):
    """Frozen, in eval mode. The VAE stays in fp32: it is used once a picture, and its errors would be trained on."""

    engine = "image/stable-diffusion-v1-5"
    targets = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    architecture = "stable-diffusion-v1"
    base_version = "sd_v1"

    def __init__(
        self,
        parts: tuple[Any, ...],
        device: torch.device,
        precision: str,
    ) -> None:
        """parts: U-Net, VAE, text encoder, tokenizer, scheduler."""
        unet, vae, text, self.tokenizer, scheduler = parts
        self.device, self.precision = device, precision
        self.denoiser = _frozen(unet).to(device, memory_format=torch.channels_last)
        self.vae = _frozen(vae).to(device)
        self.text = _frozen(text).to(device)
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.predicts_v = scheduler.config.prediction_type == "v_prediction"

    @classmethod
    def describe(cls, source: CheckpointSource) -> Shape:
        """Reads unet/config.json, vae/config.json and scheduler_config.json."""
        root = sources.folder(source, cls.engine, weights=False)
        unet, vae = sources.config(root, "unet"), sources.config(root, "vae")
        if unet.get("_class_name") != "UNet2DConditionModel" or unet.get("addition_embed_type"):
            raise CheckpointRefused(f"the checkpoint's U-Net is not one of {cls.engine}")
        predicted = sources.config(root, "scheduler", "scheduler_config.json").get("prediction_type", "epsilon")
        if predicted not in ("epsilon", "v_prediction"):
            raise CheckpointRefused(f"the checkpoint predicts {predicted!r}; epsilon or v_prediction was wanted")
        factor, depth = (2 ** (len(part["block_out_channels"]) - 1) for part in (vae, unet))
        own = sources.hyperparameters(root)
        return Shape(native_size=unet["sample_size"] * factor, divisibility=factor * depth, hyperparameters=own)

    @classmethod
    def load(cls, source: CheckpointSource, device: torch.device, precision: str) -> Self:
        """A diffusers folder, or a single .safetensors file in A1111's layout."""
        root = sources.folder(source, cls.engine, weights=True)
        try:
            if source.kind == "single_file":
                return cls(_from_single_file(Path(source.path), root, TYPES[precision]), device, precision)
            return cls(_from_folder(root, TYPES[precision]), device, precision)
        except torch.OutOfMemoryError:
            raise  # no fault of the checkpoint's
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError) as exc:
            raise CheckpointUnreadable(f"the checkpoint could not be loaded: {str(exc)[:500]}") from exc

    @classmethod
    def prior(cls, source: CheckpointSource) -> list[PriorPicture]:
        """The folder's prior/."""
        return sources.prior(sources.folder(source, cls.engine, weights=False))

    @torch.no_grad()
    def encode_picture(self, pixels: Tensor) -> Encoded:
        """The VAE's posterior. What samples it draws is scaled here, so that the loop need not."""
        posterior = self.vae.encode(pixels.to(self.device)).latent_dist
        scale = torch.tensor(self.vae.config.scaling_factor)
        mean, logvar = posterior.mean * scale, posterior.logvar + 2 * scale.log()
        return {"mean": mean[0].cpu(), "logvar": logvar[0].cpu()}

    def unread(self, caption: str) -> str:
        """Start and end take two of the 77 tokens."""
        tokens = self.tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return str(self.tokenizer.decode(tokens[self._length - 2 :])).strip()

    @torch.no_grad()
    def encode_text(self, caption: str) -> Encoded:
        """The last hidden states, (77, D), as the pipeline feeds them to the U-Net."""
        tokens = self.tokenizer(
            caption, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        states = self.text(tokens.input_ids.to(self.device)).last_hidden_state
        return {"states": states[0].cpu()}

    def predict(self, x_t: Tensor, t: Tensor, text: Encoded, crops: Sequence[Crop]) -> Tensor:
        """The U-Net; it is told nothing of crops."""
        x_t = x_t.to(TYPES[self.precision], memory_format=torch.channels_last)
        prediction: Tensor = self.denoiser(x_t, t, text["states"], return_dict=False)[0]
        return prediction

    @property
    def _length(self) -> int:
        return min(int(self.tokenizer.model_max_length), int(self.text.config.max_position_embeddings))


def _from_folder(root: Path, dtype: torch.dtype) -> tuple[Any, ...]:
    def how(part: str) -> dict[str, Any]:
        return {"variant": sources.variant(root, part), "use_safetensors": True, "local_files_only": True}

    return (
        UNet2DConditionModel.from_pretrained(root / "unet", dtype=dtype, **how("unet")),  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
        AutoencoderKL.from_pretrained(root / "vae", dtype=torch.float32, **how("vae")),  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
        CLIPTextModel.from_pretrained(root / "text_encoder", dtype=dtype, **how("text_encoder")),
        CLIPTokenizer.from_pretrained(root / "tokenizer", local_files_only=True),
        DDPMScheduler.from_pretrained(root / "scheduler", local_files_only=True),  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
    )


def _from_single_file(path: Path, configs: Path, dtype: torch.dtype) -> tuple[Any, ...]:
    # Without `config` it would ask the Hub, even where it is told not to.
    pipeline = StableDiffusionPipeline.from_single_file(
        str(path), config=str(configs), local_files_only=True, dtype=torch.float32, safety_checker=None
    )
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)  # type: ignore[no-untyped-call]  # diffusers leaves it untyped
    return pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, scheduler


def _frozen(part: Part) -> Part:
    # Loaders map weights from where they lie in the file, mostly at odd addresses, and a processor's matrix kernels may
    # add up in another order there: the same weights out of another file would then train another LoRA.
    for weight in (*part.parameters(), *part.buffers()):
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)
    return part.requires_grad_(False).eval()
