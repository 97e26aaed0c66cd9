"""What the methods share that recover by reverse chains."""

from torch import Tensor

from ...diffusion.sampler import SampleRequest, sample_many
from .base import Condition, Sequences
from .conditioned import ConditionedRecovery

Requests = dict[tuple[str, int], SampleRequest]
"""The chains of a recovery, by modality and draw."""

Drawn = dict[tuple[str, int], Tensor]
"""x_0 (R, T, C) of each."""


class ChainRecovery(ConditionedRecovery):
    """A method whose recovery is one chain of reverse steps from Gaussian noise for each modality, or several."""

    draws = True

    def requests(
        self, conditions: dict[str, Condition], sample_ids: Tensor, *, seed: int, grad_steps: int | None = None
    ) -> Requests:
        """The chains to run; arguments as those of `recover`."""
        raise NotImplementedError

    def finished(self, conditions: dict[str, Condition], drawn: Drawn) -> Sequences:
        """The representations (R, T, C), of what the chains gave."""
        raise NotImplementedError

    def recover(
        self,
        conditions: dict[str, Condition],
        sample_ids: Tensor,
        *,
        seed: int,
        grad_steps: int | None = None,
        max_memory: int | None = None,
    ) -> Sequences:
        """The representations (R, T, C) by the reverse chains; all of them are one call."""
        requests = self.requests(conditions, sample_ids, seed=seed, grad_steps=grad_steps)
        drawn = sample_many(list(requests.values()), max_memory=max_memory)
        return self.finished(conditions, dict(zip(requests, drawn, strict=True)))
