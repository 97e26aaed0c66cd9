"""Every setting of a model and of a training run, with its default and where it comes from.

`ModelConfig` is what a checkpoint needs to be rebuilt. `TrainConfig` is the command line: each field is one option of
`python -m rohydr_fast.train`, and its metadata is the option's help.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import DataError, UsageError
from .modalities import MODALITIES

SWITCHES = ("hddm", "ur", "d", "mr")
STRATEGIES = ("three-stage", "two-stage", "one-stage")
PRECISIONS = ("float32", "bf16")
LOSSES = ("nll", "kl", "hybrid")
SAMPLERS = ("ancestral", "ddim", "dpm++2m", "unipc")
PREDICTIONS = ("eps", "v", "x0")
ANCHORS = ("none", "regress")
METHOD_TITLES = {
    "rohydr": "RoHyDR",
    "zero": "zero-fill",
    "mean": "mean-fill",
    "dropout": "modality dropout",
    "regress": "regression",
    "mmin": "mmin-style",
    "gcnet": "gcnet-style",
    "imder": "imder-style",
    "dicmor": "dicmor-style",
    "mtmsa": "mtmsa-style",
    "smcmsa": "smcmsa-style",
}
"""What fills a missing modality, and its name in tables."""
METHODS = tuple(METHOD_TITLES)
PARTS_ABSENT = {"zero": ("ur",), "mean": ("ur",), "dropout": ("ur", "d", "mr")}
"""The parts that a method of recovery does without, besides HDDM."""
FILE_LIMITS = {
    **dict.fromkeys(("blocks", "ur_blocks", "fusion_layers"), 1000),
    **dict.fromkeys(("channels", "width", "ur_hidden", "d_hidden"), 2**16),
    **dict.fromkeys(("train_steps", "draws"), 10**6),
    "mlp_ratio": 64,
    "train_clips": 10**9,
}
"""The largest model that a file may describe: its settings are read before its tensors are seen."""
OUTPUTS = (1, 3, 5, 7)  # 1 is regression, the others are classes around 0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a RoHyDR model; the defaults are the preset `paper`."""

    modalities: tuple[str, ...] = MODALITIES
    dims: dict[str, int] = field(default_factory=dict)  # D of the raw features of each modality
    recovery_lengths: dict[str, int] = field(default_factory=dict)  # T of a recovered modality without aligned partner
    aligned_groups: tuple[tuple[str, ...], ...] = ()
    channels: int = 32  # C
    width: int = 64  # W
    blocks: int = 6  # L
    heads: int = 4  # H
    mlp_ratio: float = 4.0
    train_steps: int = 1000  # N
    chain_steps: int = 50  # K
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: str = "eps"
    diffusion_loss: str = "hybrid"
    ur_hidden: int = 64
    ur_blocks: int = 4
    fusion_heads: int = 8
    fusion_layers: int = 4
    d_hidden: int = 128
    dropout: float = 0.1
    outputs: int = 1  # 1 is regression; 3, 5, 7 are classes
    without: tuple[str, ...] = ()
    sampler: str = "ancestral"  # see `diffusion.solvers`
    eta: float = 0.0  # of ddim
    draws: int = 1  # chains that one recovery is the mean of
    anchor: str = "none"  # what diffusion adds to, see `models.recovery.anchored`
    method: str = "rohydr"  # of recovery, see `models.recovery`
    train_clips: int = 0  # of the training split, for the method that remembers them

    def __post_init__(self) -> None:
        if len(self.modalities) < 2:
            raise DataError(
                f"data: must have at least two modalities to recover one from another, got {list(self.modalities)}. "
                "Use a file with text and audio, text and vision, or all three."
            )
        for width, heads, name in (
            (self.width, self.heads, "width must be a multiple of heads"),
            (self.channels, self.fusion_heads, "channels must be a multiple of fusion_heads"),
            (self.channels, 2, "channels must be even (two LSTM directions)"),
        ):
            if heads < 1 or width % heads:
                raise UsageError(f"model: {name}, got {width} and {heads}. Change one of them.")
        _choice("prediction", self.prediction, PREDICTIONS)
        _choice("diffusion-loss", self.diffusion_loss, LOSSES)
        check_sampler(self.sampler, self.eta)
        check_betas(self.beta_start, self.beta_end)
        _choice("anchor", self.anchor, ANCHORS)
        if self.draws < 1:
            raise UsageError(f"--draws: must be 1 or more, got {self.draws}. Change it.")
        for name in ("draws", "anchor"):
            if getattr(self, name) != getattr(ModelConfig, name) and not self.diffuses():
                raise UsageError(f"--{name}: belongs to --method rohydr with its HDDM. Leave it out.")
        for switch in self.without:
            _choice("without", switch, SWITCHES)
        _choice("method", self.method, METHODS)
        if "hddm" in self.without and self.method != "rohydr":
            raise UsageError(f"--without: hddm is a part of rohydr, got --method {self.method}. Take it off the list.")
        if not 1 <= self.chain_steps <= self.train_steps:
            raise UsageError(
                f"model: chain steps must be between 1 and {self.train_steps}, got {self.chain_steps}. Change --steps."
            )

    def diffuses(self) -> bool:
        """Whether missing modalities are recovered by RoHyDR's diffusion."""
        return self.method == "rohydr" and "hddm" not in self.without

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`.

        Raises:
            DataError: a setting is missing, unknown or of the wrong type.
        """
        known = {f.name: f for f in fields(cls)}
        if not isinstance(document, dict) or set(document) != set(known):
            raise DataError("checkpoint: its model settings are not those of this version. Train it again.")
        try:
            values = dict(document)
            for name in ("modalities", "without"):
                values[name] = tuple(map(str, values[name]))
            values["aligned_groups"] = tuple(tuple(map(str, group)) for group in values["aligned_groups"])
            for name in ("dims", "recovery_lengths"):
                values[name] = {str(m): int(size) for m, size in values[name].items()}
            for name, setting in known.items():
                if setting.type in (int, float, str):
                    values[name] = setting.type(values[name])
            for name, limit in FILE_LIMITS.items():
                if not 0 <= values[name] <= limit:  # before so many are made
                    raise ValueError(f"{name} must be from 0 to {limit}, got {values[name]}")
            if max([*values["dims"].values(), *values["recovery_lengths"].values()], default=0) > 10**6:
                raise ValueError("a modality has more than a million channels or tokens")
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"checkpoint: its model settings are not valid ({error}). Train it again.") from None


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        channels=16, width=32, blocks=2, heads=2, chain_steps=5, ur_hidden=32, ur_blocks=1, fusion_heads=2,
        fusion_layers=1, d_hidden=64,
    ),
    "paper": {},
    "wide": dict(width=128, heads=8),
}  # fmt: skip
DEFAULT_EPOCHS = {"tiny": 3, "paper": 30, "wide": 30}  # 30: the paper's Sec. 3.2.2


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Names are the command line's, with underscores."""

    data: str = _option("synthetic", "an MMSA file (.pkl, .npz, .safetensors), or synthetic[:TRAIN/VALID/TEST]")
    preset: str = _option("tiny", "model size: tiny, paper or wide")
    missing_rate: str = _option("0.5", "rate 0..1, mixed (one model for all patterns), or a=0.3,t=0.1,v=0.5")
    available: str | None = _option(None, "fixed set of available modalities, for example t,a")
    protocol: str = _option("exact", "how patterns are drawn: exact, fractions, batch-table or natural")
    epochs: int | None = _option(None, "epochs at most (default: 3 for tiny, 30 else)")
    seed: int = _option(1, "seed of weights, order, patterns, noise and dropout")
    backend: str = _option("auto", "auto, reference, cpp, triton or cuda")
    device: str = _option("cpu", "torch device")
    precision: str = _option("float32", "float32, or bf16: layers under autocast, on a GPU the chains too")
    batch_size: int = _option(32, "clips in a batch")
    lr: float = _option(1e-3, "Adam's learning rate, both optimizers")
    weight_decay: float = _option(0.0, "Adam's weight decay")
    lambda_g: float = _option(1.0, "weight of L_UR in Eq. 10")
    lambda_al: float = _option(0.5, "weight of the adversarial loss in Eq. 8")
    lambda_c: float = _option(0.5, "weight of L_C1 in Eq. 12")
    warm_up: int = _option(0, "epochs of stage 1 alone, before the other stages join it")
    method: str = _option("rohydr", f"of recovery: {', '.join(METHODS)} (see docs/methods.md)")
    strategy: str = _option("three-stage", "three-stage (the paper's), two-stage or one-stage (Table 5)")
    without: str = _option("", "parts to take out: hddm, ur, d, mr, for example hddm,ur (Tables 3 and 4)")
    chain_grad: str = _option("full", "gradient through the reverse chain: full, last-K such as last-5, or none")
    max_memory: int = _option(2048, "MiB that the reverse chains of a step may keep for their gradient (backend cpp)")
    steps: int | None = _option(None, "reverse steps K (default: the preset's)")
    sampler: str = _option("ancestral", "how the chain runs: ancestral (Eq. 2), ddim, dpm++2m or unipc")
    eta: float = _option(0.0, "of --sampler ddim: 0 draws no noise after the start, 1 as much as Eq. 2")
    beta_end: float = _option(0.02, "last beta of the linear schedule: how much noise the chain starts from")
    draws: int = _option(1, "chains that a recovery is the mean of, in training and in evaluation")
    anchor: str = _option("none", "none, or regress: diffusion of what a deterministic regression leaves")
    prediction: str = _option("eps", "what the denoiser predicts: eps (as printed in Eq. 2), v or x0")
    diffusion_loss: str = _option("hybrid", "Eq. 3 as nll (as printed), kl (closed form) or hybrid")
    outputs: int = _option(1, "1 for regression, or 3, 5, 7 classes")
    dropout: float = _option(0.1, "dropout in extractors, fusion, MR and classifier")
    clip: float = _option(1.0, "largest gradient norm of a step; 0 turns clipping off")
    patience: int = _option(8, "epochs without a better validation MAE before stopping; 0 never stops early")
    ema: float = _option(0.0, "decay of averaged weights used in evaluation, for example 0.999; 0 is off")
    samples: int = _option(1, "recoveries drawn and averaged for each clip in evaluation")
    folds: int = _option(0, "cross-validation by video in so many folds, instead of the file's splits; 0 is off")
    fold: int = _option(1, "which of --folds is the test split")
    nonfinite: str = _option("error", "NaN and infinities in features: error, or zero")

    def __post_init__(self) -> None:
        _choice("preset", self.preset, PRESETS)
        _choice("method", self.method, METHODS)
        _choice("strategy", self.strategy, STRATEGIES)
        _choice("nonfinite", self.nonfinite, ("error", "zero"))
        _choice("precision", self.precision, PRECISIONS)
        for name in ("lambda_g", "lr", "weight_decay", "clip", "dropout"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"{_flag(name)}: must be 0 or more, got {getattr(self, name)}. Change it.")
        for name in ("lambda_al", "lambda_c", "ema", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{_flag(name)}: must be between 0 and 1, got {getattr(self, name)}. Change it.")
        least_of = {"batch_size": 1, "samples": 1, "epochs": 1, "max_memory": 1, "patience": 0, "seed": 0, "warm_up": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{_flag(name)}: must be {least} or more, got {value}. Change it.")
        if self.outputs not in OUTPUTS:
            raise UsageError(f"--outputs: must be one of {OUTPUTS}, got {self.outputs}. 1 is regression.")
        check_sampler(self.sampler, self.eta)
        check_folds(self.folds, self.fold)
        self._check_warm_up()
        self.grad_steps()
        self.switches()

    def _check_warm_up(self) -> None:
        if self.warm_up and self.strategy == "one-stage":
            raise UsageError("--warm-up: needs a stage 1 of its own, got --strategy one-stage. Leave one of them out.")
        if self.warm_up >= self.max_epochs():
            raise UsageError(
                f"--warm-up: must leave an epoch for the other stages, got {self.warm_up} of {self.max_epochs()}. "
                "Lower it, or raise --epochs."
            )

    def grad_steps(self) -> int | None:
        """How many of the last reverse steps carry a gradient; None means all."""
        if self.chain_grad in ("full", "none"):
            return None if self.chain_grad == "full" else 0
        kind, _, count = self.chain_grad.partition("-")
        if kind != "last" or not count.isdigit() or int(count) < 1:
            raise UsageError(
                f"--chain-grad: must be full, none or last-K, got {self.chain_grad!r}. Write for example last-5."
            )
        return int(count)

    def switches(self) -> tuple[str, ...]:
        """The parts taken out, by `without` or by the method, in the order of `SWITCHES`."""
        parts = [part.strip() for part in self.without.split(",") if part.strip()]
        for part in parts:
            _choice("without", part, SWITCHES)
        parts += PARTS_ABSENT.get(self.method, ())
        return tuple(switch for switch in SWITCHES if switch in parts)

    def max_epochs(self) -> int:
        """`epochs`, or the preset's default."""
        return self.epochs or DEFAULT_EPOCHS[self.preset]

    def model_config(self, dataset) -> ModelConfig:
        """The model for this run on `dataset` (a `data.dataset.Dataset`)."""
        settings = dict(PRESETS[self.preset])
        if self.steps is not None:
            settings["chain_steps"] = self.steps
        modalities = dataset.modalities()
        dims, lengths = dataset.dims(), dataset.typical_lengths()
        return ModelConfig(
            modalities=modalities,
            dims={m: dims[m] for m in modalities},
            recovery_lengths={m: lengths[m] for m in modalities},
            aligned_groups=dataset.aligned_groups(),
            prediction=self.prediction,
            diffusion_loss=self.diffusion_loss,
            sampler=self.sampler,
            eta=self.eta,
            beta_end=self.beta_end,
            draws=self.draws,
            anchor=self.anchor,
            dropout=self.dropout,
            outputs=self.outputs,
            without=self.switches(),
            method=self.method,
            train_clips=len(dataset.train),
            **settings,
        )


def check_sampler(sampler: str, eta: float) -> None:
    """Whether there is such a sampler, and whether it has such an eta.

    Raises:
        UsageError: it has not.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler: must be one of {', '.join(SAMPLERS)}, got {sampler!r}. Choose one of them.")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta: must be between 0 (no noise) and 1 (as much as Eq. 2), got {eta}. Change it.")
    if eta and sampler != "ddim":
        raise UsageError(f"eta: belongs to the sampler ddim, got {eta} for {sampler}. Leave it out, or use ddim.")


def check_betas(beta_start: float, beta_end: float) -> None:
    """Whether a linear schedule can run from `beta_start` to `beta_end`.

    Raises:
        UsageError: it cannot.
    """
    if not 0 < beta_start <= beta_end < 1:
        raise UsageError(
            f"schedule: betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}. "
            "DDPM uses 1e-4 and 0.02."
        )


def check_folds(folds: int, fold: int) -> None:
    """Whether there can be such a fold: one for test, one for validation, something to train on; 0 folds are none.

    Raises:
        UsageError: there cannot.
    """
    if folds == 0 and fold == 1:
        return
    if folds < 3:
        raise UsageError(f"--folds: must be 3 or more, got {folds}. 0 keeps the file's own splits.")
    if not 1 <= fold <= folds:
        raise UsageError(f"--fold: must be between 1 and --folds {folds}, got {fold}. Change it.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choice(name: str, value: str, choices) -> None:
    if value not in choices:
        raise UsageError(f"{_flag(name)}: must be one of {', '.join(choices)}, got {value!r}. Choose one of them.")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
