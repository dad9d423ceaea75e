"""Trains U-Net and text encoder together on captioned latents. Called by `train`; never draws or encodes a picture.

The loss is v prediction (Salimans and Ho 2022). Tried first: epsilon, as SD 1.5 has it. Where the words matter most, in
nearly pure noise, they change epsilon by less than a thousandth, and after 1,750 steps no caption was heard yet; v is
the picture itself there. A tenth of the captions is dropped, so that classifier-free guidance works. What ships is a
moving average of the weights.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import DDPMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from trainer.bases.tiny_shapes import runs, vocabulary, world

UNet = Any  # a UNet2DConditionModel: diffusers leaves its models untyped
Scheduler = Any

log = logging.getLogger(__name__)

BATCH = 16
RATE = 1e-3
WARM_UP = 200  # steps
HOLD = 0.3  # share of a cycle at the full rate
DROPPED = 0.10  # share of captions replaced by the empty one
STRAY = 0.05  # share of captions with a word before them that means nothing: so a trigger word starts out harmless
AVERAGE = 0.999  # decay of the moving average, a step


@dataclass(frozen=True)
class Cycle:
    """A stretch of the run: the learning rate goes up at its beginning and down to zero at its end.

    It begins with the averaged weights of the one before and a fresh optimizer: a finished model is all that it needs.
    """

    steps: int
    middle: float
    """Where its timesteps crowd: the logit of the share of 1,000. Further up is noisier."""
    thorough: float
    """The least share of captions that name all of a scene, size and place too."""


# Colours are learned in the first. What shape a picture will have is settled in stronger noise than one would think,
# between steps 450 and 900 of 1,000: a plain shape fills dozens of latents and is seen through noise that hides each of
# them. After the first cycle shapes were still blobs; the second looks where they are made. After it the loss in pure
# noise, where only the words tell, was still 0.13 under captions that say everything; the pictures' own jitter is 0.03,
# and shapes unsaid but all else known would be 0.10. Words that leave size and place open blur what they ask for over
# dozens of pictures: the third says mostly all, and looks further into the noise.
CYCLES = (
    Cycle(steps=10_500, middle=-0.3, thorough=0.0),
    Cycle(steps=10_000, middle=0.8, thorough=0.0),
    Cycle(steps=9_000, middle=1.3, thorough=0.65),
)


@dataclass(frozen=True)
class Pool:
    """Latents made beforehand. Captions are worded anew at every use, so the scenes are kept and not the words."""

    mean: Tensor
    """(N, 4, 16, 16), of the VAE's posterior."""
    deviation: Tensor
    """(N, 4, 16, 16)."""
    scenes: list[world.Scene]
    """What each of them shows."""


@dataclass(frozen=True)
class Begun:
    """A model that is to be trained further."""

    weights: dict[str, Tensor]
    """Of a Denoiser."""
    steps: int
    """That it has seen: all of its cycles' and none of the next one's."""


class Denoiser(nn.Module):
    """The two parts that train together."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.unet = build_unet().to(memory_format=torch.channels_last)
        self.text = build_text_encoder(tokens)

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """(B, 4, 16, 16), (B,), (B, 77) to the v predicted, (B, 4, 16, 16)."""
        v: Tensor = self.unet(noisy, t, self.text(ids).last_hidden_state).sample
        return v


def build_unet() -> UNet:
    """4.4 million parameters, in the shape of SD 1.5's: attention at 16x16, at 8x8 and in the middle."""
    unet: UNet = UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=world.SIDE // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=(2, 4, 4),  # diffusers means the number of heads: 24, 24 and 32 channels each
        norm_num_groups=4,  # 12 channels a group, about SD's 10: narrower groups lose the colour of a plain latent
    )
    close_branches(unet)
    return unet


def close_branches(unet: UNet) -> None:
    """Starts the last layer of every residual branch at zero, as Rombach et al.'s code does and diffusers does not."""
    for part in unet.modules():
        if isinstance(part, ResnetBlock2D):
            nn.init.zeros_(part.conv2.weight)
            nn.init.zeros_(part.conv2.get_parameter("bias"))
        if isinstance(part, Transformer2DModel):
            last: Any = part.proj_out  # a Linear or a convolution
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)


def build_text_encoder(tokens: int) -> CLIPTextModel:
    """Three layers of 96."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=tokens,
            hidden_size=96,
            intermediate_size=384,
            projection_dim=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=vocabulary.LONGEST,
            bos_token_id=tokens - 2,
            eos_token_id=tokens - 1,
            pad_token_id=tokens - 1,
        )
    )


def build_scheduler() -> Scheduler:
    """SD 1.5's, but for v instead of epsilon and with more noise at the end.

    Small latents of plain colour outlive SD's last step (their mean over 256 places is still as strong as the noise's),
    and pictures drawn from pure noise would then come out too grey.
    """
    scheduler: Scheduler = PNDMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,
        prediction_type="v_prediction",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    # PNDM has no such setting; DDIM made from this config has, and left alone it would cut latents off at 1.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def train(
    pool: Pool,
    tokenizer: CLIPTokenizer,
    run: Path,
    seed: int,
    preview: Callable[[Denoiser, int], None],
    begun: Begun | None = None,
) -> Denoiser:
    """The averaged model after all CYCLES; goes on from `run/unet.pt`, or else from `begun`.

    `preview` sees the average at every checkpoint.
    """
    torch.manual_seed(seed)
    model, average = Denoiser(len(tokenizer)), Denoiser(len(tokenizer))
    average.load_state_dict(begun.weights if begun else model.state_dict())
    optimizer = build_optimizer(model)
    done = begun.steps if begun else 0
    if state := runs.load(run / "unet.pt"):
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    schedule: Scheduler = DDPMScheduler.from_config(build_scheduler().config)  # type: ignore[no-untyped-call]
    losses, started = runs.LossLog(run / "unet-loss.jsonl"), time.monotonic()
    steps = sum(cycle.steps for cycle in CYCLES)
    for step in range(done, steps):
        cycle, inside = cycle_at(step)
        if inside == 0:
            model.load_state_dict(average.state_dict())
            optimizer = build_optimizer(model)
        loss = loss_of(model, pool, tokenizer, schedule, seed, step)
        for group in optimizer.param_groups:
            group["lr"] = runs.rate(inside, cycle.steps, RATE, WARM_UP, HOLD)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        move_average(average, model, step)
        losses.add(step, loss.item())
        if (step + 1) % runs.SAVE_EVERY == 0 or step + 1 == steps:
            weights = {"model": model.state_dict(), "average": average.state_dict()}
            runs.save(weights | {"optimizer": optimizer.state_dict(), "step": step + 1}, run / "unet.pt")
            pace = (step + 1 - done) / (time.monotonic() - started)
            log.info("U-Net: step %d of %d, loss %.4f, %.2f steps/s", step + 1, steps, loss.item(), pace)
            preview(average, step + 1)
    return average


def build_optimizer(model: Denoiser) -> torch.optim.AdamW:
    """Afresh at the beginning of each cycle."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def cycle_at(step: int) -> tuple[Cycle, int]:
    """The cycle that a step of the run lies in, and its number within the cycle."""
    for cycle in CYCLES:
        if step < cycle.steps:
            return cycle, step
        step -= cycle.steps
    raise ValueError(f"the run ends {step + 1} steps earlier")


def loss_of(model: Denoiser, pool: Pool, tokenizer: CLIPTokenizer, schedule: Scheduler, seed: int, step: int) -> Tensor:
    """|| v - v_theta(x_t, t, c) ||^2, mean over the batch and the latents; v = alpha_t eps - sigma_t x_0."""
    draws, rng = runs.generator(seed, step), Random(seed * 100_003 + step)  # noqa: S311
    chosen = torch.randint(len(pool.scenes), (BATCH,), generator=draws)
    cycle, _ = cycle_at(step)
    words = [worded(pool.scenes[k], rng, cycle.thorough) for k in chosen.tolist()]
    x_0 = pool.mean[chosen] + pool.deviation[chosen] * torch.randn(BATCH, 4, 16, 16, generator=draws)
    eps = torch.randn(x_0.shape, generator=draws)
    t = timesteps(draws, cycle.middle)
    x_t = schedule.add_noise(x_0, eps, t).contiguous(memory_format=torch.channels_last)
    v = schedule.get_velocity(x_0, eps, t)
    return F.mse_loss(model(x_t, t, ids_of(words, tokenizer)), v)


def timesteps(draws: torch.Generator, middle: float) -> Tensor:
    """(B,) in 0..999: a quarter of them uniform, the others logit-normal around `middle` (Esser et al. 2024)."""
    uniform = torch.rand(BATCH, generator=draws)
    crowded = torch.sigmoid(torch.randn(BATCH, generator=draws) + middle)
    return (1000 * torch.where(torch.rand(BATCH, generator=draws) < 0.25, uniform, crowded)).long()


def worded(scene: world.Scene, rng: Random, thorough: float) -> str:
    """A caption as training sees it: now and then none, now and then with a stray word before it."""
    if rng.random() < DROPPED:
        return ""
    words = world.caption(scene, rng, thorough=rng.random() < thorough)
    if rng.random() < STRAY:
        stray = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6)))
        return f"{rng.choice((stray, rng.choice(vocabulary.ENGLISH)))}, {words}"
    return words


def ids_of(words: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """(B, 77) token numbers, padded as StableDiffusionPipeline pads them."""
    ids: Tensor = tokenizer(
        words, padding="max_length", max_length=vocabulary.LONGEST, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def move_average(average: Denoiser, model: Denoiser, step: int) -> None:
    """average <- decay * average + (1 - decay) * model, with a shorter memory in the first steps."""
    decay = min(AVERAGE, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
