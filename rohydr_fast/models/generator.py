"""The generator's diffusion model, HDDM: one for each modality (Sec. 2.2.1, Eq. 1 to 3)."""

from torch import Tensor, nn

from ..diffusion.process import DenoisingRequest, DiffusionProcess
from ..diffusion.sampler import SampleRequest
from ..diffusion.schedule import Schedule
from ..modalities import MODALITIES
from ..ops import philox
from ..ops.reverse_loop import NoiseKey
from .denoiser import Denoiser
from .normalise import ChannelNorm
from .sequences import Sequence, token_mask, zero_padding


class HDDM(nn.Module):
    """The high-dimensional diffusion model of one modality: Eq. 3 for training, Eq. 2 for recovery."""

    def __init__(
        self,
        modality: str,
        denoiser: Denoiser,
        schedule: Schedule,
        *,
        steps: int,
        prediction: str,
        loss: str,
        sampler: str = "ancestral",
        eta: float = 0.0,
    ):
        super().__init__()
        self.sampler, self.eta = sampler, eta  # settings of recovery alone, as `steps`: they can change at any time
        self.modality_index = MODALITIES.index(modality)
        self.denoiser = denoiser
        self.norm = ChannelNorm(denoiser.channels)
        self.schedule, self.steps, self.prediction = schedule, steps, prediction
        self.process = DiffusionProcess(schedule, prediction, loss)

    def noise_key(self, seed: int, sample_ids: Tensor) -> NoiseKey:
        """The Philox key of these samples' noise for this modality."""
        return NoiseKey(seed, sample_ids, self.modality_index)

    def eq3_request(self, x_m: Sequence, encoded: Tensor, key_mask: Tensor, noise: NoiseKey) -> DenoisingRequest:
        """L_HDDM of this modality, Eq. 3 at one random step for each sample, for `denoising_losses`.

        Args:
            x_m: the ground truth, (B, T, C); detached here.
            encoded, key_mask: the condition, (B, S, W) and (B, S).
            noise: key of t, of x_t and of x_{t-1}.
        """
        x_0 = self.norm(x_m.x.detach())
        u = philox.uniform(noise.seed, noise.sample_ids, modality=noise.modality, stream=philox.Stream.TIME, count=1)
        t = (u[:, 0].to(x_0.device) * self.schedule.num_steps).long() + 1
        return DenoisingRequest(self.process, self.denoiser, x_0, t, encoded, noise, x_m.mask(), key_mask)

    def request(
        self,
        lengths: Tensor,
        encoded: Tensor,
        key_mask: Tensor,
        noise: NoiseKey,
        *,
        tokens: int | None = None,
        grad_steps: int | None = None,
    ) -> SampleRequest:
        """The reverse chain from Gaussian noise that recovers this modality (Eq. 2, or a solver), for `sample_many`.

        Args:
            lengths: (B,) tokens to recover for each sample.
            encoded, key_mask: the condition, (B, S, W) and (B, S).
            tokens: T, by default that of the longest.
            grad_steps: see `ops.reverse_loop`.
        """
        return SampleRequest(
            self.denoiser,
            encoded,
            key_mask=key_mask,
            token_mask=token_mask(lengths, tokens),
            schedule=self.schedule,
            steps=self.steps,
            prediction=self.prediction,
            noise=noise,
            grad_steps=grad_steps,
            sampler=self.sampler,
            eta=self.eta,
        )

    def recovered(self, x_0: Tensor, lengths: Tensor) -> Sequence:
        """x~_m^(0) in the units of the representation, from the chain's result (B, T, C)."""
        return Sequence(zero_padding(self.norm.inverse(x_0), token_mask(lengths, x_0.shape[1])), lengths)
