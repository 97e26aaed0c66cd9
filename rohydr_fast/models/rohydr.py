"""RoHyDR: the assembled model, from raw features with missing modalities to sentiment (Sec. 2, Fig. 2)."""

import os
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..modalities import MODALITIES
from .extractor import Extractor
from .fusion import Fusion
from .heads import Classifier, Discriminator
from .reconstructor import MultimodalReconstructor, UnimodalReconstructor
from .recovery import Condition, Recovered, Recovery, Sequences, make_recovery
from .sequences import Sequence

if TYPE_CHECKING:
    from ..inference import Inference

PARTS = {
    "theta_fe": ("extractors",),
    "theta_mu_sigma": ("recovery",),
    "theta_ur": ("ur",),
    "theta_f": ("fusion",),
    "theta_mr": ("mr",),
    "theta_d": ("discriminator",),
    "theta_c": ("classifier",),
}
"""Algorithm 1's parameters and the modules that hold them."""


class RoHyDR(nn.Module):
    """The model of the paper; the switches in `config.without` take out HDDM, UR, D or MR (Tables 3 and 4).

    `config.method` puts another method of recovery in HDDM's place, see `models.recovery`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.calibration: dict[str, float] = {}  # of a trained model, see `evaluation.calibrate`
        self.origin: dict[str, Any] = {}  # of a trained model: data, protocol and metrics, see `pretrained`
        modalities, channels = config.modalities, config.channels
        self.extractors = nn.ModuleDict({m: Extractor(config.dims[m], channels, config.dropout) for m in modalities})
        self.fusion = Fusion(modalities, channels, config.fusion_heads, config.fusion_layers, config.dropout)
        self.classifier = Classifier(self.fusion.features, config.outputs, config.dropout)
        self.recovery: Recovery = make_recovery(config)
        self.ur, self.mr, self.discriminator = None, None, None
        if "ur" not in config.without:
            self.ur = nn.ModuleDict(
                {m: UnimodalReconstructor(channels, config.ur_hidden, config.ur_blocks) for m in modalities}
            )
        if "mr" not in config.without:
            self.mr = MultimodalReconstructor(self.fusion.features, config.dropout)
        if "d" not in config.without:
            self.discriminator = Discriminator(self.fusion.features, config.d_hidden)

    @property
    def hddm(self) -> nn.ModuleDict | None:
        """The diffusion model of each modality; None under another method, or without it."""
        return getattr(self.recovery, "hddm", None)

    def parameters_of(self, *parts: str) -> list[nn.Parameter]:
        """The parameters of Algorithm 1 by name, see `PARTS`; those of absent modules are none."""
        modules = [getattr(self, name) for part in parts for name in PARTS[part]]
        return [p for module in modules if module is not None for p in module.parameters()]

    def columns(self, indicator: Tensor) -> dict[str, Tensor]:
        """Split a (B, 3) indicator into a (B,) column for each modality of the model."""
        return {m: indicator[:, MODALITIES.index(m)] for m in self.config.modalities}

    def extract(self, x: dict[str, Tensor], lengths: dict[str, Tensor], wanted: Tensor) -> Sequences:
        """x_m = FE(features) where `wanted` (B, 3) is True; elsewhere length 0, and the content is not read."""
        sequences = {}
        for m, column in self.columns(wanted).items():
            kept = torch.where(column, lengths[m], 0)
            tokens = max(int(kept.max()), 1)  # T comes from what is read, not from how far the batch is padded
            sequences[m] = self.extractors[m](x[m][:, :tokens], kept)
        return sequences

    def conditions(
        self, sequences: Sequences, missing: Tensor, conversation: Tensor | None = None
    ) -> dict[str, Condition]:
        """For each modality that some samples miss, those samples' condition; `missing` is (B, 3).

        `conversation` (B, 2) says where in which conversation each clip stands, for a method that reads neighbours.
        """
        columns = self.columns(missing)
        surveyed = self.recovery.survey(sequences, columns, conversation)
        conditions = {}
        for m, column in columns.items():
            rows = column.nonzero()[:, 0]
            if len(rows) == 0:
                continue
            others = {n: Sequence(*(part[rows] for part in s)) for n, s in sequences.items() if n != m}
            available = {n: ~columns[n][rows] for n in others}
            conditions[m] = self.condition(m, rows, others, available, surveyed)
        return conditions

    def condition(
        self,
        m: str,
        rows: Tensor,
        others: Sequences,
        available: dict[str, Tensor],
        surveyed: Any,
        tokens: int | None = None,
    ) -> Condition:
        """What the samples `rows` (R,) have to recover `m` from; see `Condition` and `Recovery.survey`."""
        lengths = self.recovery_lengths(m, others, available)
        encoded = self.recovery.encode(rows, others, available, surveyed)
        return Condition(rows, lengths, others, available, encoded, tokens)

    def partners(self, m: str) -> tuple[str, ...]:
        """The modalities whose tokens are aligned with those of `m`; the first that is available gives its lengths."""
        group = next((group for group in self.config.aligned_groups if m in group), ())
        return tuple(n for n in group if n != m)

    def recovery_lengths(self, m: str, others: Sequences, available: dict[str, Tensor]) -> Tensor:
        """(R,) tokens of a missing modality: an aligned available partner's, else the data set's typical length."""
        lengths = torch.full_like(next(iter(others.values())).lengths, self.config.recovery_lengths[m])
        for n in reversed([n for n in self.partners(m) if n in others]):
            lengths = torch.where(available[n], others[n].lengths, lengths)
        return lengths

    def recovered(
        self,
        conditions: dict[str, Condition],
        sample_ids: Tensor,
        *,
        seed: int,
        grad_steps: int | None = None,
        max_memory: int | None = None,
    ) -> dict[str, Recovered]:
        """X_rec: what the method of recovery makes of the available modalities, then UR (Eq. 2 and 4).

        Args:
            sample_ids: (B,) int64, with `seed` the key of the noise.
            grad_steps: gradients run through the last so many reverse steps; None is all of them, 0 none.
            max_memory: bytes that the chains may keep for the way back.
        """
        generated = self.recovery.recover(
            conditions, sample_ids, seed=seed, grad_steps=grad_steps, max_memory=max_memory
        )
        return self.reconstructed(conditions, generated)

    def reconstructed(self, conditions: dict[str, Condition], generated: Sequences) -> dict[str, Recovered]:
        """X_rec: UR of what a method of recovery gave, or that itself without UR (Eq. 4)."""
        return {
            m: Recovered(conditions[m].rows, x if self.ur is None else self.ur[m](x), x) for m, x in generated.items()
        }

    def complete(self, sequences: Sequences, recovered: dict[str, Recovered]) -> Sequences:
        """X_Mrec = X_avail + X_rec: the recovered rows replace whatever stood in a missing modality's rows."""
        completed = dict(sequences)
        for m, (rows, x, _) in recovered.items():
            tokens = max(sequences[m].x.shape[1], x.x.shape[1])
            completed[m] = Sequence(
                pad_tokens(sequences[m].x, tokens).index_copy(0, rows, pad_tokens(x.x, tokens)),
                sequences[m].lengths.index_copy(0, rows, x.lengths),
            )
        return completed

    def refine(self, fused: Tensor) -> Tensor:
        """f~_Mrec = MR(f_Mrec), or f_Mrec itself without MR."""
        return fused if self.mr is None else self.mr(fused)

    def forward(
        self,
        x: dict[str, Tensor],
        lengths: dict[str, Tensor],
        missing: Tensor,
        sample_ids: Tensor,
        *,
        seed: int = 0,
        conversation: Tensor | None = None,
    ) -> Tensor:
        """The sentiment (B,) at test time, from the available modalities and Gaussian noise alone.

        Args:
            x: m -> (B, T, D) raw features, real tokens first.
            lengths: m -> (B,) real tokens.
            missing: (B, 3) bool. What it marks is not read: changing it changes no bit of the result.
            sample_ids: (B,) int64, with `seed` the key of the noise.
            conversation: (B, 2) int64, see `conditions`.
        """
        sequences = self.extract(x, lengths, ~missing)
        conditions = self.conditions(sequences, missing, conversation)
        return self.sentiment(sequences, self.recovered(conditions, sample_ids, seed=seed))

    def sentiment(self, sequences: Sequences, recovered: dict[str, Recovered]) -> Tensor:
        """The sentiment (B,) of what is available and what was recovered of the rest."""
        return self.sentiment_of(self.complete(sequences, recovered))

    def sentiment_of(self, completed: Sequences) -> Tensor:
        """The sentiment (B,) of a complete set of representations."""
        fused = self.fusion(completed)
        return self.classifier.sentiment(self.classifier(self.refine(fused)))

    def recover(self, batch, available=None, *, samples: int = 1, seed: int = 0) -> "Inference":
        """Recover what is missing and predict, for people who use a trained model; see `inference.infer`."""
        from ..inference import infer

        return infer(self, batch, available, samples=samples, seed=seed)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *, revision: str | None = None, device="cpu") -> "RoHyDR":
        """A trained model, from a run, a saved directory or the Hugging Face hub; see `pretrained.load`."""
        from ..pretrained import load

        return load(source, revision=revision, device=device)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Save the model with its card for use elsewhere; see `pretrained.save`."""
        from ..pretrained import save

        save(self, directory)


def pad_tokens(x: Tensor, tokens: int) -> Tensor:
    """(B, T, C) padded with zeros to (B, tokens, C)."""
    return F.pad(x, (0, 0, 0, tokens - x.shape[1]))


def concatenate(first: Sequences, second: Sequences) -> Sequences:
    """Two batches as one of twice the size, so that F runs once for X_Mgt and X_Mrec."""
    joined = {}
    for m in first:
        tokens = max(first[m].x.shape[1], second[m].x.shape[1])
        x = torch.cat([pad_tokens(first[m].x, tokens), pad_tokens(second[m].x, tokens)])
        joined[m] = Sequence(x, torch.cat([first[m].lengths, second[m].lengths]))
    return joined
