"""Diffusion of what a deterministic regression leaves: `--anchor regress` of rohydr, not in the paper."""

from torch import Tensor, nn

from ... import losses
from ...config import ModelConfig
from ..sequences import Sequence, token_mask, zero_padding
from .base import Condition, Supervision
from .diffusion import DiffusionRecovery
from .normalised import NormalisedRecovery
from .regress import Regressor


class AnchoredRecovery(NormalisedRecovery, DiffusionRecovery):
    """rohydr whose recovery is E[x_m | available], by the network of `regress`, plus a residual drawn by its HDDM.

    The anchor learns by its squared error in normalised units. The HDDM learns (Eq. 3) and recovers (Eq. 2) the
    residual, in units of the residual's own channel statistics, which take in a batch where its loss knows it; its
    target does not move the anchor. Condition encoder, denoiser and UR are those of rohydr.
    """

    divides = False  # residuals have statistics of their own, of this process's targets

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.regressor = nn.ModuleDict({m: Regressor(config) for m in config.modalities})

    def _recovered(self, m: str, x_0: Tensor, condition: Condition) -> Sequence:
        anchor = self.regressor[m](condition.lengths, condition.encoded, condition.tokens)
        x = self.norm[m].inverse(anchor + self.hddm[m].norm.inverse(x_0))
        return Sequence(zero_padding(x, token_mask(condition.lengths, x.shape[1])), condition.lengths)

    def loss(self, given: Supervision) -> Tensor:
        """The anchor's squared error, and L_HDDM of what it leaves."""
        total, residuals = given.label.new_zeros(()), []
        for target in given.targets():
            m, condition, truth = target[:3]
            anchor = self.regressor[m](truth.lengths, condition.encoded)
            x_m = self.norm[m](truth.x[:, : anchor.shape[1]].detach())
            residual = Sequence(x_m - anchor.detach(), truth.lengths)
            self.hddm[m].norm.update(residual.x, residual.mask())
            total = total + target.mean(losses.eq4_ur(anchor, x_m, residual.mask()))
            residuals.append((target, residual))
        return total + self._eq3(residuals, given)
