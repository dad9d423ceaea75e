"""The hyperparameters: default, least and most, in one table, and what an engine has otherwise. Called by `recipe`;
knows no torch.

The gateway refuses what is out of range by the rules in protos/tunesmith/v1/tune.proto; a test holds both to agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from trainer.failures import InvalidRecipe

Value = float | int | bool | str


@dataclass(frozen=True)
class Setting:
    """One hyperparameter."""

    kind: type[float] | type[int] | type[bool] | type[str]
    default: Value | None
    """None: depends on the rest of the recipe; `filled` says how."""
    least: float | None = None
    most: float | None = None
    open_below: bool = False
    """Whether `least` itself is out of range."""
    choices: tuple[str, ...] = ()

    def read(self, name: str, value: object) -> Value:
        """The value, checked.

        Raises:
            InvalidRecipe: it is of another type, out of range, or none of the choices.
        """
        wanted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise InvalidRecipe(f"hyperparameter {name} is {value!r}; a {self.kind.__name__} was wanted")
        if self.choices and value not in self.choices:
            raise InvalidRecipe(f"hyperparameter {name} is {value!r}; one of {', '.join(self.choices)} was wanted")
        if self.kind in (int, float) and not self._holds(float(value)):
            raise InvalidRecipe(f"hyperparameter {name} is {value!r}; {self._range()} was wanted")
        return self.kind(value)

    def _holds(self, value: float) -> bool:
        assert self.least is not None
        assert self.most is not None
        above = self.least < value if self.open_below else self.least <= value
        return above and value <= self.most

    def _range(self) -> str:
        return f"{'more than' if self.open_below else 'at least'} {self.least:g} and at most {self.most:g}"


SETTINGS = MappingProxyType(
    {
        "rank": Setting(int, 16, 1, 256),
        "alpha": Setting(float, None, 0, 1024, open_below=True),  # the rank
        "learning_rate": Setting(float, 1e-4, 0, 1, open_below=True),
        "schedule": Setting(str, "cosine", choices=("cosine", "linear", "constant")),
        "warmup_ratio": Setting(float, 0.05, 0, 0.5),
        "batch_size": Setting(int, 1, 1, 64),
        "gradient_accumulation_steps": Setting(int, 1, 1, 64),
        "min_snr_gamma": Setting(float, 5.0, 0, 20),
        "noise_offset": Setting(float, 0.0, 0, 1),
        "caption_dropout": Setting(float, 0.05, 0, 1),
        "max_grad_norm": Setting(float, 1.0, 0, 1000, open_below=True),
        "weight_decay": Setting(float, 0.01, 0, 1),
        "lora_dropout": Setting(float, 0.0, 0, 0.9),
        "precision": Setting(str, None, choices=("fp32", "bf16")),  # bf16 on a GPU; on a CPU it is slower than fp32
        "gradient_checkpointing": Setting(bool, False),
        "random_flip": Setting(bool, False),
        "deterministic": Setting(bool, None),  # on a CPU it costs nothing
        "prior_preservation_weight": Setting(float, 0.0, 0, 100),
    }
)

# Not in the table: it changes no byte of the LoRA, so it stands in no recipe. Seconds.
SNAPSHOT_EVERY = "snapshot_every_seconds"
SNAPSHOT_INTERVAL = Setting(float, 60.0, 0, 86_400)

# What an engine has otherwise than the table above: engine -> name -> default.
ENGINES: MappingProxyType[str, dict[str, Value]] = MappingProxyType({"image/stable-diffusion-v1-5": {}})


def filled(
    engine: str, given: Mapping[str, Value], device: str, of_base: Mapping[str, Value] = MappingProxyType({})
) -> dict[str, Value]:
    """Every hyperparameter: as given, or the base's own default, or the engine's on this device ("cpu" or "cuda").

    Raises:
        InvalidRecipe: a key is unknown or a value is out of range.
    """
    values = {name: setting.default for name, setting in SETTINGS.items()} | ENGINES.get(engine, {})
    values |= _checked(of_base) | _checked(given)
    open_ones = {
        "alpha": float(values["rank"] or 0),
        "precision": "fp32" if device == "cpu" else "bf16",
        "deterministic": device == "cpu",
    }
    return {name: open_ones[name] if value is None else value for name, value in values.items()}


def snapshot_every(given: Mapping[str, Value]) -> float:
    """Seconds between two snapshots; 0: none but the last one of a trainer that leaves.

    Raises:
        InvalidRecipe: it is no number, or out of range.
    """
    default = SNAPSHOT_INTERVAL.default
    return float(SNAPSHOT_INTERVAL.read(SNAPSHOT_EVERY, given.get(SNAPSHOT_EVERY, default)))


def _checked(values: Mapping[str, Value]) -> dict[str, Value]:
    values = {name: value for name, value in values.items() if name != SNAPSHOT_EVERY}
    if unknown := sorted(values.keys() - SETTINGS.keys()):
        raise InvalidRecipe(f"unknown hyperparameter {', '.join(unknown)}; known are {', '.join(SETTINGS)}")
    return {name: SETTINGS[name].read(name, value) for name, value in values.items()}
