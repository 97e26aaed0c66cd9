"""A trained model as one graph for clips that all have the same modalities, and the noise that it reads."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..diffusion.sampler import SampleRequest, chain_of
from ..diffusion.solvers import SILENT
from ..errors import UsageError
from ..evaluation.predict import EVALUATION
from ..modalities import parse_available
from ..models.recovery.base import Condition, Sequences
from ..models.recovery.chained import ChainRecovery
from ..models.recovery.conditioned import Encoded
from ..models.rohydr import RoHyDR
from ..models.sequences import Sequence
from ..ops import philox
from ..ops.registry import backend
from ..ops.reverse_loop import scanned
from ..ops.reverse_loop.reference import step_noise

Inputs = dict[str, Tensor]
"""By modality."""


class Deployed(nn.Module):
    """A copy of a trained model for clips that all have `available` and nothing else; no step of it depends on data.

    The modules are the model's own, and so are the numbers, but for the order of sums.
    """

    def __init__(self, model: RoHyDR, available: str | Iterable[str]):
        super().__init__()
        self.available = chosen(model, available)
        self.missing = tuple(m for m in model.config.modalities if m not in self.available)
        self.model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        self.model.recovery.freeze()
        self.model.discriminator = None
        parts = self.model.extractors, self.model.ur, self.model.hddm
        for part, unread in zip(parts, (self.missing, self.available, self.available), strict=True):
            for m in unread if part is not None else ():
                del part[m]  # a program keeps weights that it does not read

    def forward(
        self, features: Inputs, lengths: Inputs, noise: Inputs, conversation: Tensor | None = None
    ) -> tuple[Tensor, Inputs]:
        """The sentiment (B,), and x_rec (B, T, C) of each missing modality, zeros after its lengths.

        Args:
            features: of each available modality (B, T, D) float32, real tokens first; what follows them is not read.
            lengths: (B,) int64 of each, 1 or more.
            noise: of each missing modality that a chain recovers, see `draw_noise`.
            conversation: (B, 2) int64, for the method that reads neighbours.
        """
        model = self.model
        lengths_like = lengths[self.available[0]]
        clips = lengths_like.shape[0]
        absent = Sequence(torch.zeros(clips, 1, model.config.channels), torch.zeros_like(lengths_like))
        sequences = {m: absent for m in model.config.modalities}
        sequences |= {m: model.extractors[m](features[m], lengths[m]) for m in self.available}
        missing = {m: torch.full((clips,), m in self.missing) for m in sequences}
        surveyed = model.recovery.survey(sequences, missing, conversation)
        rows, conditions = torch.arange(clips), {}
        for m in self.missing:
            others = {n: sequence for n, sequence in sequences.items() if n != m}
            available = {n: ~missing[n] for n in others}
            tokens = recovery_tokens(model, self.available, m, features)
            conditions[m] = model.condition(m, rows, others, available, surveyed, tokens)
        recovered = model.reconstructed(conditions, self._generated(conditions, noise))
        completed = sequences | {m: found.x for m, found in recovered.items()}
        return model.sentiment_of(completed), {m: found.x.x for m, found in recovered.items()}

    def _generated(self, conditions: dict[str, Condition], noise: Inputs) -> Sequences:
        recovery = self.model.recovery
        if not conditions:
            return {}
        ids = torch.full_like(next(iter(conditions.values())).rows, -1)  # no clip of the training split
        if not isinstance(recovery, ChainRecovery):
            return recovery.recover(conditions, ids, seed=0)
        requests = recovery.requests(conditions, ids, seed=0)
        drawn = {}
        for (m, k), request in requests.items():
            rows = noise[m].shape[0] // sum(n == m for n, _ in requests)
            own = noise[m][k * rows : (k + 1) * rows]
            chain = chain_of(request, lambda *arguments, start=own[0], **options: start)
            drawn[m, k] = scanned.reverse_loop(chain, own[1:] if rows > 1 else None)
        return recovery.finished(conditions, drawn)


def chosen(model: RoHyDR, available: str | Iterable[str]) -> tuple[str, ...]:
    """The set of available modalities, in the order of the model's.

    Raises:
        UsageError: an unknown modality, one that the model lacks, or none.
    """
    asked = parse_available(available if isinstance(available, str) else ",".join(available))
    lacking = [m for m in asked if m not in model.config.modalities]
    if lacking:
        has = ", ".join(model.config.modalities)
        raise UsageError(f"export: available must be among the model's {has}, got {lacking[0]}. Leave it out.")
    return asked


def partner(model: RoHyDR, available: Iterable[str], m: str) -> str | None:
    """The available modality that a recovered `m` is aligned with: it gives the lengths. None: the typical length does.

    As `RoHyDR.recovery_lengths`, for clips that all lack the same.
    """
    return next((n for n in model.partners(m) if n in available), None)


def recovery_tokens(model: RoHyDR, available: Iterable[str], m: str, features: Mapping) -> int:
    """T of a recovered `m`: as far as its partner's features are padded, or the data set's typical length."""
    n = partner(model, available, m)
    return model.config.recovery_lengths[m] if n is None else features[n].shape[1]


def draw_noise(
    model: RoHyDR, available: str | Iterable[str], features: Mapping, sample_ids: Tensor, *, seed: int = 0, k: int = 0
) -> Inputs:
    """The noise that ``model.recover(..., samples=k + 1, seed=seed)`` uses for its draw `k`, as the input of a program.

    A program takes any standard normal numbers; with these it gives what `recover` gives.

    Args:
        available: the program's set.
        features: what the program will read: T is taken from it, and nothing else.
        sample_ids: (B,) int64, of `data.collate`; bare features have their rows 0..B-1.

    Returns:
        For each missing modality that a chain recovers (R, B, T, C) float32: x_K, then z_K to z_2, or x_K alone for a
        sampler that adds no noise; so for each chain, if a recovery is the mean of several (`config.draws`).

    Raises:
        UsageError: an impossible set, seed or id.
    """
    available = chosen(model, available)
    if not isinstance(model.recovery, ChainRecovery):
        return {}
    clips, conditions = len(sample_ids), {}
    for m in model.config.modalities:
        if m not in available:
            # What a request says of its noise does not depend on what the chain is conditioned by.
            nothing = Encoded(torch.zeros(clips, 1, model.config.width), torch.ones(clips, 1, dtype=torch.bool))
            tokens = recovery_tokens(model, available, m, features)
            lengths = torch.full((clips,), tokens)
            conditions[m] = Condition(torch.arange(clips), lengths, {}, {}, nothing, tokens)
    requests = model.recovery.requests(conditions, sample_ids, seed=philox.derive_seed(seed, EVALUATION, k))
    drawn: dict[str, list[Tensor]] = {m: [] for m in conditions}
    for (m, _), request in requests.items():
        drawn[m] += _noise_of(request)
    return {m: torch.stack(rows) for m, rows in drawn.items()}


def _noise_of(request: SampleRequest) -> list[Tensor]:
    """x_K and the z_i of a chain in the order of use, (B, T, C) each."""
    like = torch.empty(*request.token_mask.shape, request.denoiser.channels)
    table = request.schedule.table(request.steps, request.prediction, request.sampler, request.eta)
    silent = bool((table.coefficients[1:, 2:4] <= SILENT).all())
    steps = [] if silent else range(request.steps, 1, -1)
    start = step_noise(like, request.noise, step=0, stream=philox.Stream.START)
    return [start, *[step_noise(like, request.noise, step=i, stream=philox.Stream.STEP) for i in steps]]


def export_program(model: RoHyDR, available: str | Iterable[str]) -> torch.export.ExportedProgram:
    """`Deployed` as a program of torch, in operations of torch alone; the numbers of clips and tokens may vary.

    Its arguments are those of `Deployed.forward`.

    Raises:
        UsageError: an impossible set, or a method of recovery that has no graph.
    """
    deployed = Deployed(model, available)
    clips = torch.export.Dim("clips", min=1)
    tokens = {m: torch.export.Dim(f"tokens_{m}", min=1) for m in deployed.available}
    example = example_inputs(model, deployed.available, 2)
    aligned = {m: partner(model, deployed.available, m) for m in deployed.missing}
    shapes = (
        {m: {0: clips, 1: tokens[m]} for m in tokens},
        {m: {0: clips} for m in tokens},
        {m: {1: clips, 2: tokens.get(aligned[m], torch.export.Dim.STATIC)} for m in example[2]},
        None if example[3] is None else {0: clips},
    )
    try:
        with torch.no_grad(), backend("reference"):
            program = torch.export.export(
                deployed, example, dynamic_shapes=shapes, strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,  # comparisons of sizes that torch cannot prove
            )  # fmt: skip
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"export: the method of recovery must be a graph that no data change, got {model.config.method}, of which "
            f"torch.export says: {reason} Use another method, or model.recover."
        ) from error
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names the files of this machine
    return program


def example_inputs(model: RoHyDR, available: tuple[str, ...], clips: int, seed: int = 0) -> tuple:
    """Features as random as the training split's, of ragged lengths, and what else `Deployed.forward` takes."""
    generator = torch.Generator().manual_seed(seed)
    features, lengths = {}, {}
    for place, m in enumerate(available):
        extractor, tokens = model.extractors[m], 3 + clips + place
        x = torch.randn(clips, tokens, model.config.dims[m], generator=generator)
        features[m] = x * extractor.feature_std.cpu() + extractor.feature_mean.cpu()
        lengths[m] = torch.randint(1, tokens + 1, (clips,), generator=generator)
    noise = draw_noise(model, available, features, torch.arange(clips), seed=seed)
    conversation = torch.stack([torch.zeros(clips, dtype=torch.int64), torch.arange(clips)], 1)
    return features, lengths, noise, conversation if model.recovery.needs_conversations else None
