"""One run by several processes, as torchrun starts them: each computes a part of every batch.

Losses are means over ragged counts (tokens of what is missing and has ground truth): the mean of the processes' means
is not the mean of the batch. Each process therefore weighs its means by its share of what the whole batch counts, and
gradients are summed: the same losses and gradients as one process has, up to rounding. (DistributedDataParallel
averages, and expects every process to use the same parameters in every step; a process that misses nothing does not.)

Alone, none of this costs anything or changes a bit.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .errors import UsageError

if TYPE_CHECKING:
    import torch


class Team:
    """One process: the whole team. Collective calls must be made by all processes in the same order."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def part(self, rows: np.ndarray) -> tuple[np.ndarray, bool]:
        """This process's rows of a batch, and whether they count: a part without rows has one that does not."""
        return rows, True

    def sum(self, values: "torch.Tensor") -> "torch.Tensor":
        """The sum over processes; `values` may be overwritten."""
        return values

    def any(self, fact: bool) -> bool:
        """Whether it is true of any process."""
        return fact

    def shares(self, counts: Sequence[float]) -> list[float]:
        """This process's share of each count; 1 alone, 0 where nobody counts anything."""
        return [1.0] * len(counts)

    def sum_gradients(self, parameters: Iterable["torch.nn.Parameter"]) -> None:
        """Sum all gradients over processes. A parameter that nobody has a gradient for keeps none."""

    def barrier(self) -> None:
        """Wait for all processes."""

    def tell(self, value: object) -> object:
        """The first process's `value`, a plain Python object."""
        return value

    def gather(self, value: object) -> list | None:
        """Everybody's `value` in the order of processes on the first one, None on the others."""
        return [value]


class Processes(Team):
    """Several processes, joined by torch.distributed."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    def part(self, rows: np.ndarray) -> tuple[np.ndarray, bool]:
        own = np.array_split(rows, self.size)[self.rank]
        return (own, True) if len(own) else (rows[:1], False)

    def sum(self, values: "torch.Tensor") -> "torch.Tensor":
        import torch.distributed

        torch.distributed.all_reduce(values)
        return values

    def any(self, fact: bool) -> bool:
        import torch

        return bool(self.sum(torch.tensor([float(fact)])) > 0)

    def shares(self, counts: Sequence[float]) -> list[float]:
        import torch

        total = self.sum(torch.tensor(counts, dtype=torch.float64))
        return [float(own / whole) if whole else 0.0 for own, whole in zip(counts, total.tolist(), strict=True)]

    def sum_gradients(self, parameters: Iterable["torch.nn.Parameter"]) -> None:
        import torch

        parameters = list(parameters)
        has = [0.0 if p.grad is None else 1.0 for p in parameters]
        parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
        flat = self.sum(torch.cat([*parts, parts[0].new_tensor(has)]))
        found = flat[-len(parameters) :].tolist()
        start = 0
        for p, anybody in zip(parameters, found, strict=True):
            p.grad = flat[start : start + p.numel()].view_as(p).clone() if anybody else None
            start += p.numel()

    def barrier(self) -> None:
        import torch.distributed

        torch.distributed.barrier()

    def tell(self, value: object) -> object:
        import torch.distributed

        told = [value]
        torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def gather(self, value: object) -> list | None:
        import torch.distributed

        found = [None] * self.size if self.leads else None
        torch.distributed.gather_object(value, found, dst=0)
        return found


_team = Team()
_teams = itertools.count()  # that this process has joined


def part(mean: "torch.Tensor", share: float) -> "torch.Tensor":
    """This process's part of a mean over the batch, from the mean over its own and its share of what is counted."""
    return mean if share == 1 else share * mean


def team() -> Team:
    """The processes that this one works with."""
    return _team


def restarted() -> bool:
    """Whether torchrun has started these processes again after one of them failed."""
    return _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def local_device(device: str) -> str:
    """The device of this process: with several on a machine, each has the GPU of its number."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and _team.size > 1 else device


@contextmanager
def joined() -> Iterator[Team]:
    """Join the team that torchrun's environment names (RANK, WORLD_SIZE, MASTER_ADDR, ..); without it, stay alone.

    Raises:
        UsageError: the environment is not complete.
    """
    global _team
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield _team
        return
    import torch.distributed
    import torch.distributed.nn  # takes the group of the time of its import as a default, and would keep it for ever

    try:
        store, rank, size = next(torch.distributed.rendezvous("env://"))
        # The store stays over a restart and a second team: names of its own keep it from addresses of what has gone.
        store = torch.distributed.PrefixStore(f"rohydr_fast/{_restarts()}/{next(_teams)}", store)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=store, rank=rank, world_size=size
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"torchrun: WORLD_SIZE is {size}, and the other processes cannot be joined ({error}). Start it by torchrun."
        ) from None
    _team = Processes(rank, size)
    try:
        yield _team
    finally:
        _team = Team()
        torch.distributed.destroy_process_group()
