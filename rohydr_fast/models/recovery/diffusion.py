"""RoHyDR's own recovery: the condition encoder E and an HDDM for each modality (Sec. 2.2.1)."""

from typing import NamedTuple

from torch import Tensor, nn

from ...config import ModelConfig
from ...diffusion.sampler import SampleRequest, sample_many, undefined_steps
from ...diffusion.schedule import Schedule
from ..condition import ConditionEncoder
from ..denoiser import Denoiser
from ..generator import HDDM
from .base import Condition, Recovery, Sequences, Supervision


class Encoded(NamedTuple):
    """E and its key mask."""

    tokens: Tensor  # (R, S, W)
    key_mask: Tensor  # (R, S) bool


class DiffusionRecovery(Recovery):
    """rohydr: conditional diffusion with a cross-attention denoiser, Eq. 3 for training and Eq. 2 for recovery."""

    draws = True
    term = "L_HDDM"

    def __init__(self, config: ModelConfig):
        super().__init__()
        schedule = Schedule(config.train_steps, config.beta_start, config.beta_end)
        self.condition = ConditionEncoder(config.modalities, config.channels, config.width)
        self.hddm = nn.ModuleDict(
            {
                m: HDDM(
                    m,
                    Denoiser(config.channels, config.width, config.blocks, config.heads, config.mlp_ratio),
                    schedule,
                    steps=config.chain_steps,
                    prediction=config.prediction,
                    loss=config.diffusion_loss,
                )
                for m in config.modalities
            }
        )

    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Let the diffusion's channel statistics take in the ground truth of a batch."""
        for m, hddm in self.hddm.items():
            hddm.norm.update(sequences[m].x.detach(), sequences[m].mask())

    def encode(self, others: Sequences, available: dict[str, Tensor]) -> Encoded:
        """E of the available modalities: keys and values of the cross-attention."""
        return Encoded(*self.condition(others, available))

    def recover(
        self,
        conditions: dict[str, Condition],
        sample_ids: Tensor,
        *,
        seed: int,
        grad_steps: int | None = None,
        max_memory: int | None = None,
    ) -> Sequences:
        """x~_m^(0) by the reverse chain from Gaussian noise (Eq. 2); the chains of all modalities are one call."""
        requests = self._requests(conditions, sample_ids, seed, grad_steps)
        drawn = zip(conditions.items(), sample_many(requests, max_memory=max_memory), strict=True)
        return {m: self.hddm[m].recovered(x_0, condition.lengths) for (m, condition), x_0 in drawn}

    def loss(self, given: Supervision) -> Tensor:
        """L_HDDM: Eq. 3 over the modalities that are missing and have ground truth."""
        total = super().loss(given)
        for m, condition, truth, _ in given.targets():
            noise = self.hddm[m].noise_key(given.seed, ids_of(condition, given.sample_ids))
            total = total + self.hddm[m].eq3_loss(truth, *condition.encoded, noise)
        return total

    def undefined_steps(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int) -> dict[str, tuple]:
        """The chains that leave the finite numbers."""
        found = undefined_steps(self._requests(conditions, sample_ids, seed, grad_steps=0))
        return {m: (step, self.hddm[m].steps) for m, step in zip(conditions, found, strict=True) if step is not None}

    def _requests(
        self, conditions: dict[str, Condition], sample_ids: Tensor, seed: int, grad_steps: int | None
    ) -> list[SampleRequest]:
        requests = []
        for m, condition in conditions.items():
            noise = self.hddm[m].noise_key(seed, ids_of(condition, sample_ids))
            requests.append(self.hddm[m].request(condition.lengths, *condition.encoded, noise, grad_steps=grad_steps))
        return requests


def ids_of(condition: Condition, sample_ids: Tensor) -> Tensor:
    """(R,) the ids of a condition's samples; they stay on the CPU, where noise is keyed."""
    return sample_ids[condition.rows.to(sample_ids.device)]
