"""Which runs a table or figure of the paper needs: a pure function of what was asked."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import METHODS, STRATEGIES, TrainConfig
from ..data.missing_spec import MissingSpec
from ..errors import UsageError
from ..evaluation.protocols import RATES
from ..evaluation.runs import Evaluation

TABLES = (1, 2, 3, 4, 5)
FIGURES = (3, 4)

HDDM_AND_UR = ("hddm,ur", "hddm", "ur", "")
"""Table 3: what is taken out."""
D_AND_MR = ("d,mr", "d", "mr", "")
"""Table 4."""
FIGURE_RATE = "0.7"
"""Nominal, of Figures 3 and 4."""
LAMBDAS = {
    "lambda_g": (0.1, 0.5, 1.0, 2.0, 5.0),
    "lambda_al": (0.1, 0.3, 0.5, 0.7, 0.9),
    "lambda_c": (0.1, 0.3, 0.5, 0.7, 0.9),
}
"""Figure 4: each is varied alone. The paper's figure has no readable values; these span its axes."""


@dataclass(frozen=True)
class Job:
    """One run, and what is asked of it on the test split afterwards."""

    name: str  # of its directory
    config: TrainConfig
    evaluations: tuple[Evaluation, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What a sweep is for.

    Args:
        table, figure: one of them.
        methods: of recovery, for Tables 1 and 2 and Figure 3.
        rates: for `per_rate`; the paper's by default.
        per_rate: a model for each rate instead of one for all patterns (Table 1).
        base: every other setting of the runs; with `folds`, every fold is run.
    """

    table: int | None = None
    figure: int | None = None
    seeds: tuple[int, ...] = (1, 2, 3)
    methods: tuple[str, ...] = METHODS
    rates: tuple[float, ...] = RATES
    per_rate: bool = False
    base: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if (self.table is None) == (self.figure is None):
            raise UsageError("sweep: exactly one of --table and --figure must be given. Write for example --table 1.")
        for name, value, choices in (("table", self.table, TABLES), ("figure", self.figure, FIGURES)):
            if value is not None and value not in choices:
                raise UsageError(
                    f"--{name}: must be one of {', '.join(map(str, choices))}, got {value}. The paper's other tables "
                    "and figures hold no results."
                )
        for name, values in (("seeds", self.seeds), ("methods", self.methods), ("rates", self.rates)):
            if not values or len(set(values)) != len(values):
                raise UsageError(f"--{name}: must name each once, got {list(values)}. Name at least one.")
        for method in self.methods:
            if method not in METHODS:
                raise UsageError(f"--methods: must be among {', '.join(METHODS)}, got {method!r}. Choose one of them.")
        if self.per_rate and self.table != 1:
            raise UsageError("--per-rate: belongs to --table 1. Leave it out.")
        for rate in self.rates:
            MissingSpec("exact", rate=rate)  # refuses what is no rate


def plan(asked: Asked) -> list[Job]:
    """The runs, seed by seed, so that a sweep that is stopped early has whole columns of few seeds."""
    folds = range(1, asked.base.folds + 1) if asked.base.folds else (1,)
    return [
        Job(
            f"{name}-seed{seed}" + (f"-fold{fold}" if asked.base.folds else ""),
            replace(config, seed=seed, fold=fold),
            tuple(Evaluation(protocol=protocol, samples=config.samples) for protocol in protocols),
        )
        for seed in asked.seeds
        for fold in folds
        for name, config, protocols in _settings(asked)
    ]


def _settings(asked: Asked) -> Iterator[tuple[str, TrainConfig, tuple[str, ...]]]:
    """(name, settings, protocols) of each row, without its seed."""
    mixed = replace(asked.base, missing_rate="mixed", available=None, protocol="exact")
    if asked.table == 1 and asked.per_rate:
        for method in asked.methods:
            for rate in asked.rates:
                config = replace(asked.base, method=method, missing_rate=f"{rate:g}", available=None, protocol="exact")
                yield f"{method}-rate{rate:g}", config, ()
    elif asked.table in (1, 2):
        for method in asked.methods:
            # The same runs serve both tables: asked for the other one, a finished sweep evaluates and trains nothing.
            yield method, replace(mixed, method=method), ("rates",) if asked.table == 1 else ("fixed",)
    elif asked.table in (3, 4):
        for without in HDDM_AND_UR if asked.table == 3 else D_AND_MR:
            yield _ablation(without), replace(mixed, without=without), ("rates",)
    elif asked.table == 5:
        for strategy in STRATEGIES:
            yield f"rohydr-{strategy}", replace(mixed, strategy=strategy), ("rates",)
    else:
        figure = replace(asked.base, missing_rate=FIGURE_RATE, available=None, protocol="exact", patience=0)
        yield from _figure(asked, figure)


def _figure(asked: Asked, base: TrainConfig) -> Iterator[tuple[str, TrainConfig, tuple[str, ...]]]:
    if asked.figure == 3:
        for method in asked.methods:
            yield method, replace(base, method=method), ()
        for strategy in STRATEGIES[1:]:  # the first is rohydr's own
            yield f"rohydr-{strategy}", replace(base, strategy=strategy), ()
        return
    seen: set[TrainConfig] = set()  # the default of one lambda is that of the others' curves too
    for name, values in LAMBDAS.items():
        for value in values:
            config = replace(base, **{name: value})
            if config not in seen:
                seen.add(config)
                yield f"rohydr-{name}={value:g}", config, ()


def _ablation(without: str) -> str:
    return "rohydr" + (f"-without-{without.replace(',', '-')}" if without else "")
