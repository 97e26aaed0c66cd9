"""Tables 1 to 5 in the paper's layout: which runs a cell is made of, and which cell of a column is best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..config import STRATEGIES
from ..evaluation.tables import Statistics, aggregate
from ..modalities import MODALITIES
from . import paper
from .collect import Row
from .groups import MEAN, ONE_A_RATE, ONE_A_SET, ONE_MODEL, RATE_NAMES, Series
from .settings import DEFAULT_METHOD, identity, name_of

ACC2, F1, ACC7 = "Non0_acc_2", "Non0_F1_score", "Mult_acc_7"
RATE = "realised_missing_rate"
ALL_METRICS = ("Has0_acc_2", "Has0_F1_score", ACC2, F1, "Mult_acc_5", ACC7, "MAE", "Corr")
"""MMSA's metrics: the columns of the CSV files."""

LOWER_IS_BETTER = ("MAE",)

YES, NO = "\u2713", "\u00d7"


@dataclass(frozen=True)
class Column:
    """A condition, and the metrics that its cells show."""

    heading: str
    condition: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class TableRow:
    """A row: per condition, the statistics over seeds of every metric."""

    stub: tuple[str, ...]
    cells: dict[str, dict[str, Statistics]]
    paper: dict[str, dict[str, float]] | None  # condition -> metric -> value; None: it cannot or may not be compared
    paper_name: str | None  # of the paper's model; None when the paper has no such row

    def value(self, condition: str, metric: str) -> Statistics:
        """Mean, deviation, number of seeds; (None, None, 0) where there was no run."""
        return self.cells.get(condition, {}).get(metric, (None, None, 0))


@dataclass(frozen=True)
class Section:
    """Rows that may be compared with each other."""

    name: str
    rows: tuple[TableRow, ...]

    def marks(self, condition: str, metric: str) -> list[str]:
        """For each row ``best``, ``tie`` (within one standard error of the best mean) or nothing.

        The standard error is that of the best row. With one row there is nothing to mark.
        """
        statistics = [row.value(condition, metric) for row in self.rows]
        sign = -1 if metric in LOWER_IS_BETTER else 1
        means = [None if mean is None else sign * mean for mean, _, _ in statistics]
        if sum(mean is not None for mean in means) < 2:
            return [""] * len(means)
        best = max(mean for mean in means if mean is not None)
        leaders = [entry for entry, mean in zip(statistics, means, strict=True) if mean == best]
        error = max(deviation / math.sqrt(n) if deviation is not None else 0.0 for _, deviation, n in leaders)
        return ["" if mean is None or mean < best - error else "best" if mean == best else "tie" for mean in means]


@dataclass(frozen=True)
class Table:
    """One of the five tables."""

    number: int
    title: str
    stub_headings: tuple[str, ...]
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    paper_beside: bool  # the paper's numbers in columns beside ours, else in a row below


def build(series: Sequence[Series], data: str | None, reason: str) -> list[Table]:
    """Tables 1 to 5.

    Args:
        data: the paper's data set that the runs may be compared on, or None; `reason` says why.
    """
    notes = (_paper_note(data, reason), BOLD)
    rates = [s for s in series if s.kind == "rates"]
    sets = [s for s in series if s.kind == "sets"]
    return [
        _methods(1, rates, _rate_columns(rates), (ONE_MODEL, ONE_A_RATE), data, (*_rate_notes(rates), *notes)),
        _methods(2, sets, _set_columns(sets), (ONE_MODEL, ONE_A_SET), data, notes),
        _ablation(3, rates, ("hddm", "ur"), ("HDDM", "UR"), data, notes),
        _ablation(4, rates, ("d", "mr"), ("D", "MR"), data, notes),
        _ablation(5, rates, (), ("training strategy",), data, notes),
    ]


TITLES = {
    1: "Results under random modality missing (ACC2 / F1)",
    2: "Results under fixed sets of available modalities (ACC2 / F1)",
    3: "Unimodal recovery: HDDM and UR, mean over missing rates 0.0 to 0.7",
    4: "Multimodal fusion recovery: D and MR, mean over missing rates 0.0 to 0.7",
    5: "Optimization strategies, mean over missing rates 0.0 to 0.7",
}

BOLD = (
    "ACC2 and F1 are Non0 accuracy and weighted F1, in percent; mean +- standard deviation over seeds (number of "
    "seeds). Bold: the best mean of a column; italic: within one standard error of it. Neither is a test: see the "
    "comparisons."
)


def _paper_note(data: str | None, reason: str) -> str:
    if data is None:
        return f"The paper's numbers are not comparable, and '-' stands for them: {reason}."
    return (
        f"The paper's numbers stand beside ours: {reason}. The paper does not say whether its ACC2 is Has0 or "
        "Non0, nor how its F1 is averaged; its features and its way of drawing patterns differ as well."
    )


def _rate_notes(rates: Sequence[Series]) -> tuple[str, ...]:
    found = [row.rate for s in rates for (row,) in s.cells.get("0.7", {}).values() if row.rate is not None]
    if not found or max(found) > 0.699:
        return ()
    sentence = "Rates are nominal: one modality is always kept, so 0.7 cannot be reached"
    return (f"{sentence}, and {max(found):.4f} was realised.",)


def statistics(rows: Mapping[int, Sequence[Row]]) -> dict[str, Statistics]:
    """Mean, deviation and number over seeds of every metric and of the realised rate.

    Several rows of a seed (the missing rates) are averaged first.
    """
    per_seed = [{"cell": _average([{**row.metrics, RATE: row.rate} for row in of_seed])} for of_seed in rows.values()]
    return aggregate(per_seed).get("cell", {})


def _average(rows: Sequence[Mapping]) -> dict:
    if len(rows) == 1:
        return dict(rows[0])
    values = {key: [row.get(key) for row in rows] for key in (*ALL_METRICS, RATE)}
    mean = {key: None if None in found else math.fsum(found) / len(found) for key, found in values.items()}
    return {**mean, "constant_prediction": all(row.get("constant_prediction") for row in rows)}


def _cells(series: Series) -> dict[str, dict[str, Statistics]]:
    return {condition: statistics(by_seed) for condition, by_seed in series.cells.items() if by_seed}


def _rate_columns(rates: Sequence[Series]) -> tuple[Column, ...]:
    others = {name for s in rates for name in s.cells} - {MEAN, *RATE_NAMES}
    names = sorted({*RATE_NAMES, *others}, key=float)
    return tuple(Column(name, name, (ACC2, F1)) for name in (*names, MEAN))


def _set_columns(sets: Sequence[Series]) -> tuple[Column, ...]:
    found = {name for s in sets for name in s.cells}
    order = [(len(name), [MODALITIES.index(m) for m in name.strip("{}").split(",")], name) for name in found]
    return tuple(Column(name, name, (ACC2, F1)) for _, _, name in sorted(order))


def _methods(
    number: int,
    series: Sequence[Series],
    columns: tuple[Column, ...],
    sections: tuple[str, ...],
    data: str | None,
    notes: tuple[str, ...],
) -> Table:
    """Table 1 or 2: a row for each method, a column for each condition."""
    result = []
    for section in sections:
        rows = [
            TableRow((s.label,), _cells(s), *_paper_row(number, data, s.values)) for s in series if s.section == section
        ]
        if rows:
            result.append(Section(section, tuple(rows)))
    if not result:
        values = {"method": DEFAULT_METHOD, "without": "", "strategy": STRATEGIES[0]}
        result = [Section("", (TableRow((name_of(values),), {}, *_paper_row(number, data, values)),))]
    if not columns:
        columns = tuple(Column(name, name, (ACC2, F1)) for name in paper.numbers()["table2"]["columns"])
    return Table(number, TITLES[number], ("model",), columns, tuple(result), notes, paper_beside=False)


def _paper_row(number: int, data: str | None, values: Mapping) -> tuple[dict | None, str | None]:
    """The paper's row and model for the full model of a method; without comparable data for its own method only."""
    name = paper.ORIGINALS.get(values["method"])
    if values["without"] or values["strategy"] != STRATEGIES[0] or not (data or values["method"] == DEFAULT_METHOD):
        name = None
    return (None, None) if name is None else (paper.row(number, data, values["method"]), name)


def _ablation(
    number: int,
    rates: Sequence[Series],
    parts: tuple[str, ...],
    headings: tuple[str, ...],
    data: str | None,
    notes: tuple[str, ...],
) -> Table:
    """Table 3 or 4 (`parts` in and out) or 5 (strategies): one section for each base of otherwise equal settings."""
    variants = _switches(parts) if parts else STRATEGIES[::-1]
    varied = "without" if parts else "strategy"
    stubs = [
        tuple(NO if part in variant.split(",") else YES for part in parts) if parts else (variant,)
        for variant in variants
    ]
    sections = []
    for section in (ONE_MODEL, ONE_A_RATE):
        for name, found in _bases(rates, section, varied, variants):
            sections.append((name, [_cells(found[variant]) if variant in found else {} for variant in variants]))
    rows = []
    for name, cells in sections or [("", [{}] * len(variants))]:
        values = zip(stubs, cells, variants, strict=True)
        numbered = tuple(TableRow(stub, cell, paper.row(number, data, v), "paper") for stub, cell, v in values)
        rows.append(Section(name, numbered))
    columns = tuple(
        Column(heading, MEAN, (metric,)) for heading, metric in (("ACC2", ACC2), ("ACC7", ACC7), ("F1", F1))
    )
    return Table(number, TITLES[number], headings, columns, tuple(rows), notes, paper_beside=True)


def _switches(parts: tuple[str, ...]) -> tuple[str, ...]:
    """What is taken out of the paper's four rows: both, the first, the second, none."""
    return ",".join(parts), parts[0], parts[1], ""


def _bases(
    rates: Sequence[Series], section: str, varied: str, variants: Sequence[str]
) -> list[tuple[str, dict[str, Series]]]:
    """(heading, variant -> series) of each set of otherwise equal settings that has two variants; else of the first."""
    fixed = {"without": "", "strategy": STRATEGIES[0], "method": DEFAULT_METHOD}
    bases: dict[str, dict[str, Series]] = {}
    for s in rates:
        usual = all(s.values[key] == value for key, value in fixed.items() if key != varied)
        if s.section == section and usual and s.values[varied] in variants and s.cells.get(MEAN):
            bases.setdefault(identity(s.values, (varied,)), {})[s.values[varied]] = s
    chosen = [found for found in bases.values() if len(found) > 1] or list(bases.values())[:1]
    headings = []
    for found in chosen:
        full = next(iter(found.values()))
        added = full.label.removeprefix(name_of(full.values)) if len(chosen) > 1 else ""
        headings.append(section + added)
    return list(zip(headings, chosen, strict=True))
