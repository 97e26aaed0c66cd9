"""Runs that differ in their seed only, and the rows of tables that they make."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ..config import TrainConfig
from ..data.missing_spec import WITH_RATE
from ..evaluation.protocols import RATES
from .collect import LeftOut, Row, Run
from .settings import LAMBDAS, identity, labels, sort_key

MEAN = "mean"
"""The condition that stands for the mean over all of `RATES`."""

ONE_MODEL = "one model"
ONE_A_RATE = "one model a rate"
ONE_A_SET = "one model a set"

NOT_OF_A_MODEL = ("missing", "drawn", "recoveries")
"""What a row has beside the settings of its models."""

RATE_NAMES = tuple(str(rate) for rate in RATES)


@dataclass(frozen=True)
class Group:
    """Runs with equal settings on equal data, one for each seed, in the order of the seeds."""

    values: dict  # settings, with "missing"
    runs: tuple[Run, ...]
    label: str


@dataclass(frozen=True)
class Series:
    """One row of Table 1 or 2: under each condition, what each seed reached."""

    kind: str  # "rates" or "sets"
    section: str  # ONE_MODEL, ONE_A_RATE or ONE_A_SET
    values: dict  # settings, with "missing" (one model), "drawn" (the rule) and "recoveries" (of a prediction)
    label: str
    cells: dict[str, dict[int, tuple[Row, ...]]]  # condition -> seed -> its row; the rows of all rates under MEAN

    def seeds(self) -> tuple[int, ...]:
        """All seeds that any condition has."""
        return tuple(sorted({seed for by_seed in self.cells.values() for seed in by_seed}))


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[LeftOut]]:
    """Groups in the order of tables, and the runs whose seed another run of the group has already."""
    members: dict[str, dict[int, Run]] = defaultdict(dict)
    left_out = []
    for run in runs:
        by_seed = members[identity(_values(run))]
        if run.seed in by_seed:
            reason = f"seed {run.seed} of the same settings and data is already there, in {by_seed[run.seed].path}."
            left_out.append(LeftOut(run.path, reason))
        else:
            by_seed[run.seed] = run
    ordered = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in members.values()]
    ordered.sort(key=lambda group: sort_key(_values(group[0])))
    names = labels([_values(group[0]) for group in ordered])
    groups = [Group(_values(group[0]), tuple(group), name) for group, name in zip(ordered, names, strict=True)]
    return groups, left_out


def series_of(groups: Sequence[Group]) -> list[Series]:
    """All rows of Tables 1 and 2 that `groups` make, in the order of tables.

    A model evaluated under every rate or set ("one model") and models trained for one rate or set each are different
    rows, whatever else they share.
    """
    collected: dict[str, tuple[str, str, dict, dict]] = {}

    def add(kind: str, section: str, values: dict, condition: str, seed: int, row: Row) -> None:
        key = identity({"kind": kind, "section": section, **values})
        cells = collected.setdefault(key, (kind, section, values, {}))[3]
        cells.setdefault(condition, {}).setdefault(seed, (row,))

    for group in groups:
        if only_in_figure_4(group.values, groups):
            continue
        for run in group.runs:
            for evaluation in run.evaluations:
                for row in evaluation.rows:
                    for kind, rule, condition in _condition(row.name):
                        values = {**group.values, "drawn": rule, "recoveries": evaluation.samples}
                        add(kind, ONE_MODEL, values, condition, run.seed, row)
            for kind, rule, condition in _condition(run.settings.missing):
                values = {**run.settings.values, "drawn": rule, "recoveries": run.settings.values["samples"]}
                add(kind, ONE_A_RATE if kind == "rates" else ONE_A_SET, values, condition, run.seed, run.own)
    return _finished(list(collected.values()))


def only_in_figure_4(values: Mapping, groups: Sequence[Group]) -> bool:
    """Whether these settings are a point of Figure 4: a weight off its default, with the default in the report too."""
    defaults = {field.name: field.default for field in fields(TrainConfig) if field.name in LAMBDAS}
    if all(values.get(name) == default for name, default in defaults.items()):
        return False
    usual = identity({**values, **defaults}, NOT_OF_A_MODEL)
    return any(identity(group.values, NOT_OF_A_MODEL) == usual for group in groups)


def _values(run: Run) -> dict:
    return {**run.settings.values, "missing": run.settings.missing}


def _condition(name: str) -> list[tuple[str, str, str]]:
    """(kind, rule, condition) of a pattern's name; none for patterns that Tables 1 and 2 have no column for."""
    if name.startswith("{"):
        return [("sets", "fixed", name)]
    rule, _, rate = name.partition(" ")
    return [("rates", rule, rate)] if rule in WITH_RATE else []


def _finished(collected: list[tuple[str, str, dict, dict]]) -> list[Series]:
    collected.sort(key=lambda entry: (entry[1] != ONE_MODEL, sort_key(entry[2])))
    alike = defaultdict(list)
    for entry in collected:
        alike[entry[:2]].append(entry[2])
    names = {place: iter(labels(values)) for place, values in alike.items()}
    result = []
    for kind, section, values, cells in collected:
        if kind == "rates":
            complete = set.intersection(*(set(cells.get(name, ())) for name in RATE_NAMES))
            cells[MEAN] = {seed: tuple(cells[name][seed][0] for name in RATE_NAMES) for seed in sorted(complete)}
        result.append(Series(kind, section, values, next(names[kind, section]), cells))
    return result
