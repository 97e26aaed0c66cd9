"""What a method of recovery is: from the available modalities of a clip to the representation of a missing one."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ...distributed import part
from ...errors import UsageError
from ..sequences import Sequence, token_mask

Sequences = dict[str, Sequence]


class Condition(NamedTuple):
    """X_avail as seen by the R samples of a batch that miss one modality."""

    rows: Tensor  # (R,) samples of the batch
    lengths: Tensor  # (R,) tokens to recover
    others: Sequences  # every other modality of these samples, (R, T, C)
    available: dict[str, Tensor]  # of the others, (R,) bool: this sample has it
    encoded: Any = None  # what `Recovery.encode` made of it, a tuple of tensors (R, ...) or None
    tokens: int | None = None  # T to recover, where it is not that of the longest

    def mask(self) -> Tensor:
        """(R, T) bool, True at tokens to recover."""
        return token_mask(self.lengths, self.tokens)

    def select(self, kept: Tensor) -> "Condition":
        """The condition of the samples where `kept` (R,) is True."""
        return Condition(
            self.rows[kept],
            self.lengths[kept],
            {m: Sequence(*(part[kept] for part in sequence)) for m, sequence in self.others.items()},
            {m: column[kept] for m, column in self.available.items()},
            None if self.encoded is None else type(self.encoded)(*(part[kept] for part in self.encoded)),
        )


class Recovered(NamedTuple):
    """What was recovered of one modality, for the samples that miss it."""

    rows: Tensor  # (R,) samples of the batch
    x: Sequence  # x_rec = UR(x~_m^(0)), (R, T, C)
    generated: Sequence  # x~_m^(0), (R, T, C)


class Target(NamedTuple):
    """One missing modality whose ground truth exists."""

    modality: str
    condition: Condition  # of the samples that miss it and have ground truth
    truth: Sequence  # x_m of these samples, (R, T, C); detach it where it is a target
    recovered: Recovered  # what this pass made of the condition
    share: float = 1.0  # of the truth's tokens in the whole batch that this process has, see `distributed`
    share_recovered: float = 1.0  # of those tokens that were recovered as well

    def mean(self, value: Tensor) -> Tensor:
        """This process's part of a mean over the truth's tokens in the batch, from that over its own."""
        return part(value, self.share)

    def mean_recovered(self, value: Tensor) -> Tensor:
        """The same for a mean over the tokens that both have (`shared_tokens`)."""
        return part(value, self.share_recovered)


class Supervision(NamedTuple):
    """What a method may learn from in stage 1: a pass over a batch with the ground truth at hand."""

    sequences: Sequences  # x_m of everything the file has, (B, T, C)
    present: dict[str, Tensor]  # (B,) bool: the file has this modality of this clip
    conditions: dict[str, Condition]
    recovered: dict[str, Recovered]
    label: Tensor  # (B,)
    sample_ids: Tensor  # (B,) int64, on the CPU
    seed: int
    shares: dict[str, tuple[float, float]] = {}  # of a modality's target, where other processes have the rest

    def targets(self) -> Iterator[Target]:
        """The missing modalities that have ground truth, one after the other."""
        for m, recovered in self.recovered.items():
            condition, kept = self.conditions[m], self.present[m][recovered.rows]
            if not kept.any():
                continue
            if not kept.all():
                condition = condition.select(kept)
                made = (Sequence(*(part[kept] for part in sequence)) for sequence in recovered[1:])
                recovered = Recovered(condition.rows, *made)
            truth = Sequence(*(part[condition.rows] for part in self.sequences[m]))
            yield Target(m, condition, truth, recovered, *self.shares.get(m, ()))


class Recovery(nn.Module):
    """A method of recovery. This one recovers nothing and learns nothing: a missing modality stays away from F.

    One instance serves all modalities. What it gives goes through UR where the model has one.
    """

    draws: ClassVar[bool] = False
    """Whether a recovery is drawn: another seed gives another one."""

    term: ClassVar[str] = "L_recovery"
    """The name of its loss in metrics.jsonl."""

    needs_conversations: ClassVar[bool] = False
    """Whether it reads a clip's neighbours: then a batch must hold whole conversations."""

    divides: ClassVar[bool] = False
    """Whether several processes can share a batch: all it learns from are means over `Supervision.targets`."""

    def __init__(self, config: ModelConfig):
        super().__init__()

    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Take in the ground truth of a training batch, (B, T, C) each; no gradient. `sample_ids` (B,) int64."""

    def survey(self, sequences: Sequences, missing: dict[str, Tensor], conversation: Tensor | None) -> Any:
        """What depends on a whole batch, computed once and given to `encode`.

        Args:
            sequences: (B, T, C) each.
            missing: (B,) bool each; what it marks must not be read.
            conversation: (B, 2) int64, each clip's conversation and place in it, or None.
        """
        return None

    def encode(self, rows: Tensor, others: Sequences, available: dict[str, Tensor], surveyed: Any) -> Any:
        """A NamedTuple of tensors (R, ...) that both recovery and loss read, computed once; None where there is none.

        Args:
            rows: (R,) samples of the batch.
            others, available: see `Condition`.
            surveyed: what `survey` returned.
        """
        return None

    def recover(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, **limits) -> Sequences:
        """The representation (R, T, C) of each condition's modality, zeros after its lengths.

        Args:
            conditions: by modality; a modality that nobody misses is not among them.
            sample_ids: (B,) int64, on the CPU; with `seed` the key of all noise.
            limits: grad_steps and max_memory of a method with a chain, see `models.rohydr.RoHyDR.recover`.
        """
        return {}

    def freeze(self) -> None:
        """Make constants of what depends on the trained parameters alone and that no exported graph can compute.

        Nothing is trained or saved after it.
        """

    def loss(self, given: Supervision) -> Tensor:
        """What the method learns from in stage 1 besides L_UR, (); summed over modalities."""
        return given.label.new_zeros(())

    def resample(self, sampler: str | None, steps: int | None, eta: float | None) -> dict[str, str | int | float]:
        """Recover by another sampler, number of steps or eta from now on; None keeps what is.

        Returns:
            sampler, steps and eta that are used; empty for a method that has none.

        Raises:
            UsageError: an impossible choice, or a method without a sampler.
        """
        if sampler is not None or steps is not None or eta is not None:
            raise UsageError("--sampler, --steps, --eta: must be given for a run of --method rohydr. Leave them out.")
        return {}

    def undefined_steps(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int) -> dict[str, tuple]:
        """The modalities whose recovery leaves the finite numbers: (first step that does, steps). Runs them again."""
        return {}


def zeros_for(condition: Condition) -> Sequence:
    """Zeros (R, T, C) in place of a condition's modality."""
    like = next(iter(condition.others.values())).x
    return Sequence(like.new_zeros(*condition.mask().shape, like.shape[-1]), condition.lengths)


def shared_tokens(first: Sequence, second: Sequence) -> tuple[Tensor, Tensor, Tensor]:
    """Both (B, T, C) cut to a common T, and the mask (B, T) of the tokens that both have."""
    tokens = min(first.x.shape[1], second.x.shape[1])
    both = torch.minimum(first.lengths, second.lengths)
    return first.x[:, :tokens], second.x[:, :tokens], token_mask(both, tokens)
