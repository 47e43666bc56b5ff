"""How a projector is built and trained; one TOML file of `configs/projectors` (or of yours) for each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from keyface.configs.errors import UsageError
from keyface.configs.schema import load_options

Form = Literal["rotation", "concatenation"]
Latent = Literal["z", "w", "w_plus"]
LossName = Literal["anonymity", "synchronism", "diversity", "differentiation", "latent", "contrast"]
LOSS_NAMES: tuple[LossName, ...] = get_args(LossName)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the losses; see `models.projector_losses`. The papers have no `contrast`, KFAAR no `latent`."""

    anonymity: float = 0.0
    synchronism: float = 1.0
    diversity: float = 1.0
    differentiation: float = 1.0
    latent: float = 0.0
    contrast: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorConfig:
    """One projector.

    Attributes:
        form: `rotation`, the key turns a metric of the embedding by an orthogonal matrix from HKDF and a network
            without a key follows; or `concatenation`, the papers' MLP of embedding and key bits.
        latent: what the network puts out: z (through the mapping network), w, or W+ in three groups of rows.
        key_bits: of the concatenated key; a rotation always takes 256.
        n_code: dimensions that the metric keeps of the embedding, and that are turned.
        fold: strength of the nonlinearity between a first and a second rotation, both keyed; 0: one rotation.
        hidden: widths of the hidden layers.
        spread: root mean square that coordinates along w's axes have at most, in deviations of the population, as
            psi of a truncation; for z it is that psi.
        margin: m of the cosine embedding loss.
        temperature: of the contrast loss.
        weights: of the losses.
        lr, batch, steps: Adam on the surrogate; `batch` triplets a step.
        fine_lr, fine_batch, fine_steps: with generator and recognisers in the loop.
        seed: of everything drawn.
    """

    form: Form = "rotation"
    latent: Latent = "w"
    key_bits: int = 256
    n_code: int = 64
    fold: float = 0.0
    hidden: tuple[int, ...] = (512, 512)
    spread: float = 0.75
    margin: float = 0.0
    temperature: float = 0.1
    weights: LossWeights = field(default_factory=LossWeights)
    lr: float = 1e-3
    batch: int = 128
    steps: int = 3000
    fine_lr: float = 1e-4
    fine_batch: int = 2
    fine_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("key_bits", "n_code", "batch", "steps", "fine_batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"projector: {name} is {getattr(self, name)}, want 1 or more.")
        if not 2 <= self.n_code <= 128:
            raise UsageError(f"projector: n_code is {self.n_code}, want 2 to 128.")
        if self.form == "concatenation" and self.fold:
            raise UsageError("projector: fold is for the form 'rotation' only.", "Leave it out.")

    def without(self, names: tuple[LossName, ...]) -> ProjectorConfig:
        """The same with some losses left out, for ablations."""
        return replace(self, weights=replace(self.weights, **dict.fromkeys(names, 0.0)))


def projector_names() -> tuple[str, ...]:
    """Names of the configurations that the package carries, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def load_projector_config(name_or_path: str) -> ProjectorConfig:
    """One of `projector_names`, or a TOML file. Raises UsageError."""
    if name_or_path in projector_names():
        return load_options(ProjectorConfig, _folder() / f"{name_or_path}.toml")
    if not name_or_path.endswith(".toml"):
        raise UsageError(
            f"no projector is called {name_or_path!r}.",
            f"Legal: {', '.join(projector_names())}, or a .toml file.",
        )
    return load_options(ProjectorConfig, Path(name_or_path))


def _folder() -> Path:
    return Path(str(files("keyface.configs"))) / "projectors"
