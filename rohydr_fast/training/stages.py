"""Algorithm 1: what one batch does to the parameters, stage by stage.

Optimizer O holds everything but D, optimizer O_d holds D. All stages of a batch see the same missing pattern. The
one-stage and two-stage strategies (Table 5) are the same losses, summed: they differ in the schedule only.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import losses
from ..config import TrainConfig
from ..distributed import part, team
from ..errors import RohydrError
from ..modalities import NAMES
from ..models.recovery import Condition, Recovered, Sequences, Supervision
from ..models.recovery.base import shared_tokens
from ..models.rohydr import RoHyDR, concatenate
from ..models.sequences import Sequence
from ..ops.philox import derive_seed
from .watching import span

GENERATOR, ADVERSARIAL, CLASSIFIER = "generator", "adversarial", "classifier"

REMEDY = "Start a new run with a lower --lr, or with --chain-grad last-5."


class Stage(NamedTuple):
    """One optimisation step and the objectives it adds up."""

    name: str
    objectives: tuple[str, ...]


SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "three-stage": (Stage("S1", (GENERATOR,)), Stage("S2", (ADVERSARIAL,)), Stage("S3", (CLASSIFIER,))),
    "two-stage": (Stage("S1", (GENERATOR,)), Stage("S2", (ADVERSARIAL, CLASSIFIER))),
    "one-stage": (Stage("S1", (GENERATOR, ADVERSARIAL, CLASSIFIER)),),
}


class NumericsError(RohydrError):
    """A loss or a gradient is not finite; no parameter was touched."""


@dataclass(frozen=True)
class StageBatch:
    """What the stages of one batch read."""

    x: dict[str, Tensor]
    lengths: dict[str, Tensor]
    label: Tensor  # (B,)
    sample_id: Tensor  # (B,)
    present: Tensor  # (B, 3): the file has this modality of this clip
    missing: Tensor  # (B, 3): beta, True where a modality is missing or absent
    conversation: Tensor | None = None  # (B, 2), see `data.dataset.Split.conversation`
    counts: bool = True  # False: a stand-in for the empty part of a batch, see `distributed`


class Pass(NamedTuple):
    """One forward of the model with the ground truth at hand (Fig. 2, training)."""

    sequences: Sequences  # x_m of everything the file has
    conditions: dict[str, Condition]
    recovered: dict[str, Recovered]
    f_gt: Tensor | None = None  # (B, F)
    f_rec: Tensor | None = None  # (B, F) after MR
    complete: Tensor | None = None  # (B,) bool: ground truth of all modalities exists, so f_gt means something
    share: float = 1.0  # of the batch's clips that this process has
    share_complete: float = 1.0  # of its complete clips


def make_optimizers(model: RoHyDR, config: TrainConfig) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """O and O_d of Algorithm 1: disjoint, together complete. Without D there is no O_d."""
    options = dict(lr=config.lr, weight_decay=config.weight_decay)
    rest = ("theta_fe", "theta_mu_sigma", "theta_ur", "theta_f", "theta_mr", "theta_c")
    discriminator = model.parameters_of("theta_d")
    return (
        torch.optim.Adam(model.parameters_of(*rest), **options),
        torch.optim.Adam(discriminator, **options) if discriminator else None,
    )


class StageRunner:
    """Runs the stages of a batch on a model with its two optimizers."""

    def __init__(self, model: RoHyDR, config: TrainConfig, optimizer, optimizer_d):
        self.model, self.config = model, config
        self.optimizer, self.optimizer_d = optimizer, optimizer_d
        self.stages = SCHEDULES[config.strategy]

    def run(self, stage: Stage, batch: StageBatch, *, epoch: int, batch_index: int) -> dict[str, float]:
        """One stage: forward, losses, the step of O_d where L_D is among them, the step of O.

        Dropout and noise are functions of (seed, epoch, stage) with the batch or the sample, so a resumed run
        draws what an unbroken one would have drawn.

        Several processes may have a part of the batch each, see `distributed`; all get the same values.

        Returns:
            The value of each loss term and of each gradient norm before clipping.

        Raises:
            NumericsError: a term or a gradient norm is not finite.
        """
        index = self.stages.index(stage)
        seed = derive_seed(self.config.seed, epoch, index + 1)
        place = f"epoch {epoch}, batch {batch_index}, {stage.name}"
        low = torch.autocast(batch.label.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with seeded(derive_seed(seed, batch_index, team().rank)), low:
            self.model.train()
            with span(f"{stage.name} forward"):
                done = self._forward(stage, batch, seed)
            try:
                with span(f"{stage.name} losses and gradients"):
                    return self._optimise(stage, done, batch, seed, place)
            except NumericsError as error:
                raise NumericsError(f"{error}{self._undefined_chains(done, batch, seed)}") from None

    def _optimise(self, stage: Stage, done: Pass, batch: StageBatch, seed: int, place: str) -> dict[str, float]:
        known: dict[str, float] = {}  # of the whole batch
        terms: dict[str, float] = {}  # this process's part
        objectives: list[Tensor] = []
        if GENERATOR in stage.objectives and team().any(bool(done.conditions)):
            objectives.append(self._generator(stage, done, batch, seed, terms))
        if ADVERSARIAL in stage.objectives:
            if self.optimizer_d is not None:
                known |= self._discriminator_step(done, terms, place)
                terms = {}
            if self.model.mr is not None or self.optimizer_d is not None:
                objectives.append(self._reconstructor(done, terms))
        if CLASSIFIER in stage.objectives:
            objectives.append(self._classifier(done, batch, terms))
        total = torch.stack(objectives).sum() if objectives else None
        if team().any(total is not None and total.requires_grad):
            terms[stage.name] = float(total.detach())
            return known | self._step(self.optimizer, total, terms, f"{stage.name}_grad_norm", place)
        return known | self._of_batch(terms)

    def _undefined_chains(self, done: Pass, batch: StageBatch, seed: int) -> str:
        """A sentence for each reverse chain that is not finite: where that began."""
        found = self.model.recovery.undefined_steps(done.conditions, batch.sample_id, seed=seed)
        return "".join(
            f" The reverse chain of {NAMES[m]} is not finite from step {step} of {steps} down."
            for m, (step, steps) in found.items()
        )

    def _forward(self, stage: Stage, batch: StageBatch, seed: int) -> Pass:
        model = self.model
        sequences = model.extract(batch.x, batch.lengths, batch.present)
        if GENERATOR in stage.objectives:
            model.recovery.observe(sequences if batch.counts else _emptied(sequences), batch.sample_id)
        conditions = model.conditions(sequences, batch.missing, batch.conversation)
        recovered = model.recovered(
            conditions,
            batch.sample_id,
            seed=seed,
            grad_steps=self.config.grad_steps(),
            max_memory=self.config.max_memory * 2**20,
        )
        if stage.objectives == (GENERATOR,):
            return Pass(sequences, conditions, recovered)
        fused = model.fusion(concatenate(sequences, model.complete(sequences, recovered)))
        f_gt, f_rec = fused.chunk(2)
        complete = torch.stack(list(model.columns(batch.present).values())).all(0)
        counts = [len(complete), int(complete.sum())] if batch.counts else [0, 0]
        return Pass(sequences, conditions, recovered, f_gt, model.refine(f_rec), complete, *team().shares(counts))

    def _generator(self, stage: Stage, done: Pass, batch: StageBatch, seed: int, terms: dict[str, float]) -> Tensor:
        """Eq. 3 (or what another method learns from) and Eq. 4 over what is missing and has truth, then Eq. 10."""
        recovery = self.model.recovery
        given = Supervision(
            done.sequences,
            self.model.columns(batch.present),
            done.conditions,
            done.recovered,
            batch.label,
            batch.sample_id,
            seed,
        )
        if team().size > 1:
            given = given._replace(shares=self._shares(given, batch.counts))
        own = recovery.loss(given)
        ur = batch.label.new_zeros(())
        for target in given.targets():
            ur = ur + target.mean_recovered(losses.eq4_ur(*shared_tokens(target.recovered.x, target.truth)))
        terms[recovery.term], terms["L_UR"] = float(own.detach()), float(ur.detach())
        if len(stage.objectives) == 3:  # one stage, printed as lambda_g (L_HDDM + L_UR)
            return self.config.lambda_g * (own + ur)
        return losses.eq10_stage1(own, ur, self.config.lambda_g)

    def _shares(self, given: Supervision, counts: bool) -> dict[str, tuple[float, float]]:
        """For each modality, this process's shares of the tokens that Eq. 3 and Eq. 4 are means over."""
        modalities = self.model.config.modalities
        found = dict.fromkeys(modalities, (0, 0))
        for target in given.targets() if counts else ():
            both = shared_tokens(target.recovered.x, target.truth)[2]
            found[target.modality] = (int(target.truth.mask().sum()), int(both.sum()))
        shares = team().shares([count for m in modalities for count in found[m]])
        return {m: (shares[2 * i], shares[2 * i + 1]) for i, m in enumerate(modalities)}

    def _discriminator_step(self, done: Pass, terms: dict[str, float], place: str) -> dict[str, float]:
        """Eq. 6 on detached features: D alone moves, by O_d."""
        logit_gt = self.model.discriminator(done.f_gt.detach())
        logit_rec = self.model.discriminator(done.f_rec.detach())
        loss = part(losses.eq6_discriminator(logit_gt, logit_rec, done.complete), done.share_complete)
        terms["L_D"] = float(loss.detach())
        return self._step(self.optimizer_d, loss, terms, "D_grad_norm", place)

    def _reconstructor(self, done: Pass, terms: dict[str, float]) -> Tensor:
        """Eq. 5, 7 and 8 with the D that has just moved, which gets no gradient here."""
        rec = part(losses.eq5_rec(done.f_rec, done.f_gt, done.complete), done.share_complete)
        terms["L_rec"] = float(rec.detach())
        adversarial = rec.new_zeros(())
        if self.model.discriminator is not None:
            with frozen(self.model.discriminator):
                logit_rec = self.model.discriminator(done.f_rec)
                adversarial = part(losses.eq7_adversarial(logit_rec, done.complete), done.share_complete)
            terms["L_adv"] = float(adversarial.detach())
        return losses.eq8_mr(adversarial, rec, self.config.lambda_al)

    def _classifier(self, done: Pass, batch: StageBatch, terms: dict[str, float]) -> Tensor:
        """Eq. 9 and 12; where a clip has no complete ground truth L_C2 leaves it out."""
        everyone = torch.ones_like(done.complete)
        c1 = part(losses.eq9_classifier(self.model.classifier(done.f_rec), batch.label, everyone), done.share)
        gt = losses.eq9_classifier(self.model.classifier(done.f_gt), batch.label, done.complete)
        c2 = part(gt, done.share_complete)
        terms["L_C1"], terms["L_C2"] = float(c1.detach()), float(c2.detach())
        return losses.eq12_stage3(c1, c2, self.config.lambda_c)

    def _step(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, terms: dict[str, float], norm_name: str, place: str
    ) -> dict[str, float]:
        """Backward, clip, step; returns the terms of the batch, and the gradient norm before clipping."""
        terms = self._of_batch(terms)
        for name, value in terms.items():
            if not math.isfinite(value):
                raise NumericsError(f"training: {name} is {value} in {place}. {REMEDY}")
        optimizer.zero_grad(set_to_none=True)
        if loss.requires_grad:  # of several processes one may have nothing that moves a parameter
            # The way back has the dtypes of the way there; under autocast products of float32 would be rounded anew.
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        team().sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.clip or math.inf))
        if not math.isfinite(norm):
            raise NumericsError(f"training: the gradient norm is {norm} in {place}. {REMEDY}")
        optimizer.step()
        return terms | {norm_name: norm}

    def _of_batch(self, terms: dict[str, float]) -> dict[str, float]:
        """The sums of this process's parts and the others'; the names are the same on all."""
        if team().size == 1:
            return terms
        return dict(
            zip(terms, team().sum(torch.tensor(list(terms.values()), dtype=torch.float64)).tolist(), strict=True)
        )


def _emptied(sequences: Sequences) -> Sequences:
    """The same representations with no real token."""
    return {m: Sequence(s.x, torch.zeros_like(s.lengths)) for m, s in sequences.items()}


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """Gradients pass through `module` but do not reach its parameters."""
    parameters = list(module.parameters())
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Dropout drawn from `seed`; the caller's generators are as before afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        yield
