"""Which part of the model the time of a training run goes to, forward and back, by wrapping the calls of the package.

One part runs at a time: a wrapped call is its part until it returns. On the way back a hook at the node that made a
part's result says when the part begins. Autograd runs nodes in the reverse order of their making, so it ends where that
of an earlier part begins.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves

from rohydr_fast import losses
from rohydr_fast.models.fusion import Fusion
from rohydr_fast.models.heads import Classifier, Discriminator
from rohydr_fast.models.reconstructor import MultimodalReconstructor, UnimodalReconstructor
from rohydr_fast.models.recovery import chained as recovery
from rohydr_fast.models.recovery import diffusion as eq3
from rohydr_fast.models.rohydr import RoHyDR
from rohydr_fast.training import trainer as trainer_module

REST = "data and host"
"""Whatever is not wrapped: reading and collating clips, bookkeeping, and Python between the calls."""
LOSSES = "MR, D, C, losses"
PARTS = (
    "extract",
    "condition",
    "chain forward",
    "chain backward",
    "Eq. 3",
    "UR",
    "fusion",
    LOSSES,
    "optimizer",
    REST,
)
"""In the order of tables. All but the chain are the sum of both directions."""

CALLS = (
    (RoHyDR, "extract", "extract"),
    (RoHyDR, "conditions", "condition"),
    (recovery, "sample_many", "chain"),
    (eq3, "denoising_losses", "Eq. 3"),
    (UnimodalReconstructor, "forward", "UR"),
    (Fusion, "forward", "fusion"),
    *[(module, "forward", LOSSES) for module in (MultimodalReconstructor, Discriminator, Classifier)],
    *[(losses, name, LOSSES) for name in dir(losses) if name.startswith("eq")],
)


class Clock:
    """Seconds of each part."""

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._part, self._since = now, REST, now()
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.running = True

    def switch(self, part: str) -> str:
        """From now on it is `part`; returns what it was."""
        before, now = self._part, self._now()
        if self.running:
            self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The ``with`` block is this part."""
        before = self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Nothing in the ``with`` block counts."""
        self.switch(self._part)
        self.running = False
        try:
            yield
        finally:
            self.switch(self._part)
            self.running = True

    def wrap(self, function: Callable, part: str) -> Callable:
        """`function`, whose time is the part's, and so is that of the way back through its results."""
        forward, back = (f"{part} forward", f"{part} backward") if f"{part} forward" in PARTS else (part, part)

        def goes_back(gradients) -> None:
            self.switch(back)

        def call(*args, **options):
            with self.part(forward):
                result = function(*args, **options)
            nodes = {leaf.grad_fn for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
            for node in nodes - {None}:
                node.register_prehook(goes_back)
            return result

        return call


@contextmanager
def timed_parts(optimizers: list[torch.optim.Optimizer]) -> Iterator[Clock]:
    """A clock of what the package does in the ``with`` block; validation and checkpoints do not count."""
    clock = Clock()

    def during(part: str, function: Callable) -> Callable:
        def call(*args, **options):
            with clock.part(part):
                return function(*args, **options)

        return call

    def uncounted(function: Callable) -> Callable:
        def call(*args, **options):
            with clock.stopped():
                return function(*args, **options)

        return call

    with ExitStack() as stack:

        def replace(owner, name: str, wrap: Callable) -> None:
            stack.enter_context(patch.object(owner, name, wrap(getattr(owner, name))))

        for owner, name, part in CALLS:
            replace(owner, name, lambda function, part=part: clock.wrap(function, part))
        replace(torch.Tensor, "backward", lambda function: during(LOSSES, function))  # it begins at a loss
        replace(torch.nn.utils, "clip_grad_norm_", lambda function: during("optimizer", function))
        for optimizer in optimizers:
            replace(optimizer, "step", lambda function: during("optimizer", function))
        for name in ("evaluate_split", "save_checkpoint"):
            replace(trainer_module, name, uncounted)
        yield clock
        clock.switch(REST)
