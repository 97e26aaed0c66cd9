"""RoHyDR's own recovery: the condition encoder E and an HDDM for each modality (Sec. 2.2.1)."""

from torch import Tensor, nn

from ...config import ModelConfig
from ...diffusion.process import denoising_losses
from ...diffusion.sampler import undefined_steps
from ...diffusion.schedule import Schedule
from ...ops.philox import derive_seed
from ..generator import HDDM
from ..sequences import Sequence
from .base import Condition, Sequences, Supervision, Target
from .chained import ChainRecovery, Drawn, Requests
from .conditioned import ids_of, make_denoiser


class DiffusionRecovery(ChainRecovery):
    """rohydr: conditional diffusion with a cross-attention denoiser, Eq. 3 for training and Eq. 2 for recovery."""

    divides = True
    term = "L_HDDM"

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.averaged = config.draws
        schedule = Schedule(config.train_steps, config.beta_start, config.beta_end)
        self.hddm = nn.ModuleDict(
            {
                m: HDDM(
                    m,
                    make_denoiser(config),
                    schedule,
                    steps=config.chain_steps,
                    prediction=config.prediction,
                    loss=config.diffusion_loss,
                    sampler=config.sampler,
                    eta=config.eta,
                )
                for m in config.modalities
            }
        )

    def observe(self, sequences: Sequences, sample_ids: Tensor) -> None:
        """Let the diffusion's channel statistics take in the ground truth of a batch."""
        for m, hddm in self.hddm.items():
            hddm.norm.update(sequences[m].x.detach(), sequences[m].mask())

    def finished(self, conditions: dict[str, Condition], drawn: Drawn) -> Sequences:
        """x~_m^(0) of the reverse chain from Gaussian noise (Eq. 2), or the mean of several."""
        total: dict[str, Tensor] = {}
        for (m, _), x_0 in drawn.items():
            total[m] = total[m] + x_0 if m in total else x_0
        return {m: self._recovered(m, x_0 / self.averaged, conditions[m]) for m, x_0 in total.items()}

    def _recovered(self, m: str, x_0: Tensor, condition: Condition) -> Sequence:
        """x~_m^(0) in the units of the representation, from the chain's result (R, T, C)."""
        return self.hddm[m].recovered(x_0, condition.lengths)

    def loss(self, given: Supervision) -> Tensor:
        """L_HDDM: Eq. 3 over the modalities that are missing and have ground truth."""
        return super().loss(given) + self._eq3([(target, target.truth) for target in given.targets()], given)

    def _eq3(self, truths: list[tuple[Target, Sequence]], given: Supervision) -> Tensor:
        """The sum of Eq. 3 over targets, each with what its HDDM should recover; all of them are one call."""
        requests = []
        for target, truth in truths:
            hddm, condition = self.hddm[target.modality], target.condition
            noise = hddm.noise_key(given.seed, ids_of(condition, given.sample_ids))
            requests.append(hddm.eq3_request(truth, *condition.encoded, noise))
        total = given.label.new_zeros(())
        for (target, _), value in zip(truths, denoising_losses(requests), strict=True):
            total = total + target.mean(value)
        return total

    def resample(self, sampler: str | None, steps: int | None, eta: float | None) -> dict[str, str | int | float]:
        """See `Recovery.resample`. Another sampler than ddim leaves no eta behind."""
        now = next(iter(self.hddm.values()))
        sampler = now.sampler if sampler is None else sampler
        steps = now.steps if steps is None else steps
        if eta is None:
            eta = now.eta if sampler == "ddim" else 0.0
        now.schedule.table(steps, now.prediction, sampler, eta)  # refuses what cannot be
        for hddm in self.hddm.values():
            hddm.sampler, hddm.steps, hddm.eta = sampler, steps, eta
        return {"sampler": sampler, "steps": steps, "eta": eta}

    def undefined_steps(self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int) -> dict[str, tuple]:
        """The chains that leave the finite numbers."""
        requests = self.requests(conditions, sample_ids, seed=seed, grad_steps=0)
        found: dict[str, tuple] = {}
        for (m, _), step in zip(requests, undefined_steps(list(requests.values())), strict=True):
            if step is not None:  # the chains of a mean run side by side: the last step to turn bad is told
                found[m] = (max(step, found.get(m, (0,))[0]), self.hddm[m].steps)
        return found

    def requests(
        self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, grad_steps: int | None = None
    ) -> Requests:
        """See `ChainRecovery.requests`; the first draw is the only one of a model that averages none."""
        requests = {}
        for m, condition in conditions.items():
            ids = ids_of(condition, sample_ids)
            for draw in range(self.averaged):
                noise = self.hddm[m].noise_key(derive_seed(seed, draw) if draw else seed, ids)
                requests[m, draw] = self.hddm[m].request(
                    condition.lengths, *condition.encoded, noise, tokens=condition.tokens, grad_steps=grad_steps
                )
        return requests
