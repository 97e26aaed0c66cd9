"""Clips whose missing modality is a known function of the others, and a few steps of training on them."""

import torch

from rohydr_fast.config import ModelConfig
from rohydr_fast.models.recovery import Condition, Recovered, Recovery, Supervision, make_recovery
from rohydr_fast.models.sequences import Sequence
from tests.small_model import small_config

CLIPS, TOKENS = 64, 4


def clips(config: ModelConfig, seed: int = 0) -> dict[str, Sequence]:
    """x_v = -x_a at every token, constant over a clip; x_t says nothing about them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((CLIPS,), TOKENS)
    draw = {m: torch.randn(CLIPS, 1, config.channels, generator=generator) for m in "at"}
    draw["v"] = -draw["a"]
    return {m: Sequence(x.expand(-1, TOKENS, -1).contiguous(), lengths) for m, x in draw.items()}


def build(method: str, **changes) -> Recovery:
    torch.manual_seed(0)
    return make_recovery(small_config(method=method, train_clips=CLIPS, **changes))


def supervise(
    recovery: Recovery, sequences: dict[str, Sequence], seed: int = 0, first: int = 0, last: int = CLIPS
) -> Supervision:
    """A pass of clips `first` to `last` in which every clip misses v."""
    sequences = {m: Sequence(*(part[first:last] for part in sequence)) for m, sequence in sequences.items()}
    ids, clips = torch.arange(first, last), last - first
    rows = torch.arange(clips)
    missing = {m: torch.full((clips,), m == "v") for m in sequences}
    surveyed = recovery.survey(sequences, missing, None)
    others = {m: sequences[m] for m in "at"}
    available = {m: torch.ones(clips, dtype=torch.bool) for m in "at"}
    encoded = recovery.encode(rows, others, available, surveyed)
    conditions = {"v": Condition(rows, sequences["v"].lengths, others, available, encoded)}
    made = recovery.recover(conditions, ids, seed=seed)
    recovered = {m: Recovered(conditions[m].rows, x, x) for m, x in made.items()}
    present = {m: torch.ones(clips, dtype=torch.bool) for m in sequences}
    return Supervision(sequences, present, conditions, recovered, torch.zeros(clips), ids, seed)


def train(recovery: Recovery, steps: int = 200, lr: float = 5e-3) -> list[float]:
    """Losses of `steps` steps of Adam on `clips`."""
    optimizer = torch.optim.Adam(recovery.parameters(), lr=lr)
    sequences = clips(small_config())
    recovery.observe(sequences, torch.arange(CLIPS))
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = recovery.loss(supervise(recovery, sequences, seed=step))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def relative_error(recovery: Recovery, seed: int = 0) -> float:
    """Squared error of the recovered v over its variance, on the clips of training."""
    given = supervise(recovery, clips(small_config(), seed))
    truth = given.sequences["v"].x
    return float((given.recovered["v"].generated.x - truth).pow(2).mean() / truth.var())
