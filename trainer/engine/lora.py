"""A LoRA on a resident base (Hu et al. 2021): put on, trained, read out, taken off. Called by `tune` and the loop;
knows no picture and no file.

All its numbers lie in one flat fp32 tensor, of which peft's parameters are views, and so do their gradients. So
clipping, the check for NaN, the optimizer and a snapshot are each one operation, however many layers there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from trainer.engine.families.base import Family
from trainer.engine.randomness import Dice
from trainer.engine.recipe import Recipe
from trainer.failures import SnapshotRefused

NAME = "default"  # peft's name of the adapter
BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW (Loshchilov and Hutter 2019)
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of them


class Adapter:
    """One tune's LoRA, with its optimizer. The base must hold no other."""

    def __init__(self, base: Family, recipe: Recipe) -> None:
        self._denoiser = base.denoiser
        self._most = recipe.number("max_grad_norm")
        rank, alpha = recipe.whole("rank"), recipe.number("alpha")
        dropout = recipe.number("lora_dropout")
        # Its alpha may be a fraction, whatever the annotation says.
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(base.targets))  # type: ignore[arg-type]
        self._denoiser.add_adapter(config, NAME)  # type: ignore[operator]  # diffusers' mixin, untyped
        self.parameters = dict(sorted((n, p) for n, p in self._denoiser.named_parameters() if "lora_" in n))
        self.flat = self._flattened(base.device)
        self._drawn(Dice(recipe.seed))
        for module in self._denoiser.modules():
            if isinstance(module, nn.Dropout) and dropout > 0:
                module.train()  # the base's own have probability 0
        decay = recipe.number("weight_decay")
        self.optimizer = torch.optim.AdamW(
            [self.flat], lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=decay, fused=True
        )

    def zero_gradients(self) -> None:
        """Before a step's first backward pass."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()

    @torch.no_grad()
    def update(self, learning_rate: float) -> Tensor:
        """Clips the gradients and makes a step. Answers 1 where they were not finite, else 0.

        A step whose gradients are not finite is thrown away: it changes nothing. Nothing here waits for the device.
        """
        gradient = self.flat.grad
        assert gradient is not None
        norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((self._most / (norm + 1e-6)).clamp(max=1.0))
        thrown_away: Tensor = norm.isfinite().logical_not().float()
        # What torch's gradient scaler sets: where it is 1, the fused kernel changes nothing, not even its step count.
        self.optimizer.found_inf = thrown_away  # type: ignore[attr-defined]
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return thrown_away

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base answers as if it wore nothing."""
        self._denoiser.disable_adapters()  # type: ignore[operator]  # diffusers' mixin, untyped
        try:
            yield
        finally:
            self._denoiser.enable_adapters()  # type: ignore[operator]  # diffusers' mixin, untyped

    def state(self) -> dict[str, Tensor]:
        """The LoRA by peft's names, fp32, such as "mid_block...to_q.lora_A.weight"."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self._denoiser, adapter_name=NAME)
        return state

    def snapshot(self) -> dict[str, Tensor]:
        """Copies on the CPU of all that the next step depends on: "lora", (N,), and the optimizer's own."""
        kept = {"lora": self.flat.detach(), **self._optimizer_state()}
        return {name: tensor.to("cpu", copy=True) for name, tensor in kept.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes it what it was when `snapshot` was called.

        Raises:
            SnapshotRefused: the tensors are another LoRA's.
        """
        self.optimizer.state[self.flat] = {name: torch.zeros_like(self.flat) for name in MOMENTS}
        self.optimizer.state[self.flat]["step"] = torch.zeros((), device=self.flat.device)
        own = {"lora": self.flat, **self._optimizer_state()}
        if {n: (t.shape, t.dtype) for n, t in own.items()} != {n: (t.shape, t.dtype) for n, t in tensors.items()}:
            raise SnapshotRefused("the snapshot's tensors are not those of this recipe's LoRA")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def remove(self) -> None:
        """Takes it off: the base is then what it was, to the bit and to the module."""
        self._denoiser.unload_lora()  # type: ignore[operator]  # diffusers' mixin, untyped
        self._denoiser.requires_grad_(False)

    def _optimizer_state(self) -> dict[str, Tensor]:
        return {f"optimizer.{name}": tensor for name, tensor in sorted(self.optimizer.state[self.flat].items())}

    def _flattened(self, device: torch.device) -> nn.Parameter:
        sizes = [p.numel() for p in self.parameters.values()]
        flat = nn.Parameter(torch.zeros(sum(sizes), device=device))
        flat.grad = torch.zeros_like(flat)
        numbers, gradients = torch.split(flat.data, sizes), torch.split(flat.grad, sizes)
        for parameter, its, change in zip(self.parameters.values(), numbers, gradients, strict=True):
            parameter.data = its.view_as(parameter)
            parameter.grad = change.view_as(parameter)  # autograd adds to what is there
        return flat

    def _drawn(self, dice: Dice) -> None:
        # As peft does it (Kaiming uniform with a = sqrt 5; B is 0), but each layer from a generator of its own.
        for position, (name, parameter) in enumerate(self.parameters.items()):
            if "lora_A" in name:
                bound = 1 / math.sqrt(parameter.shape[1:].numel())
                drawn = torch.empty(parameter.shape)
                drawn.uniform_(-bound, bound, generator=dice.generator("lora", 0, position))
                parameter.data.copy_(drawn)
