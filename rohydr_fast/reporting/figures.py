"""Figures 3 and 4, and robustness, recovery and calibration over missing rates, as SVG."""

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import METHOD_TITLES, STRATEGIES
from ..modalities import MODALITIES, NAMES
from .groups import MEAN, ONE_A_RATE, ONE_MODEL, Group, Series, only_in_figure_4
from .settings import DEFAULT_METHOD, LAMBDAS, identity, labels
from .tables import ACC2

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Distinguishable with any kind of colour vision (Okabe and Ito's set, its yellow darkened)."""
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE = {
    "svg.hashsalt": "rohydr_fast",  # the same input gives the same bytes
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}

NOMINAL_RATE = "exact 0.7"
"""The rate at which the paper draws Figure 3: taken when no other has more methods and strategies."""

FEW = 5
"""Curves whose bands can be told apart; those of more are fainter."""


LETTERS = 44
"""Letters of a legend's line that a panel is wide."""


@dataclass(frozen=True)
class Figure:
    """A figure, or why there is none."""

    name: str  # of its file
    title: str
    caption: str
    svg: str | None  # None: there are no data for it, as `caption` says


@dataclass(frozen=True)
class Curve:
    """A line with a band."""

    label: str
    x: np.ndarray  # (P,)
    y: np.ndarray  # (P,)
    low: np.ndarray  # (P,)
    high: np.ndarray  # (P,)


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    level: float | None = None  # a horizontal line
    markers: bool = True


def figures(groups: Sequence[Group], series: Sequence[Series]) -> list[Figure]:
    """All figures of a report; where there are several methods, curves of ablations are left to the tables."""
    rates = [s for s in series if s.kind == "rates"]
    rates = _methods(rates)
    return [training(groups), weights(groups), robustness(rates), recovery(rates), calibration(rates)]


def training(groups: Sequence[Group]) -> Figure:
    """Figure 3: validation accuracy and classifier losses over epochs, by method and by strategy."""
    title = "Figure 3. Training: accuracy on validation and classifier losses over epochs"
    usual = [g for g in groups if not only_in_figure_4(g.values, groups)]
    trained = Counter(g.values["missing"] for g in usual)
    chosen = max(trained, key=lambda missing: (trained[missing], missing == NOMINAL_RATE))
    usual = [g for g in usual if g.values["missing"] == chosen]
    names = labels([g.values for g in usual])
    usual = [replace(g, label=name) for g, name in zip(usual, names, strict=True)]
    methods = _methods([g for g in usual if g.values["strategy"] == STRATEGIES[0]])
    strategies = [g for g in usual if g.values["method"] == DEFAULT_METHOD and not g.values["without"]]
    columns = [("by method", methods)] if methods else []
    if len({g.values["strategy"] for g in strategies}) > 1:
        columns.append(("by strategy", strategies))
    if not columns:
        columns = [("by strategy", strategies or usual)]
    quantities = (
        ("valid", ACC2, "validation ACC2 (%)", 100.0),
        ("train", "L_C1", "classifier loss L_C1", 1.0),
        ("train", "L_C2", "classifier loss L_C2", 1.0),
    )
    rows = [
        [
            Panel(
                name if part == "valid" else "", "epoch", y_label, _of_epochs(members, part, key, scale), markers=False
            )
            for name, members in columns
        ]
        for part, key, y_label, scale in quantities
    ]
    caption = (
        f"Models trained with missing pattern {chosen}; line: mean over seeds, band: lowest to highest. A run that "
        "stopped early ends early."
    )
    return _figure("figure3", title, caption, rows)


def weights(groups: Sequence[Group]) -> Figure:
    """Figure 4: the test metrics against lambda_g, lambda_al and lambda_c, everything else equal."""
    title = "Figure 4. Weights of the losses"
    panels = []
    for name in LAMBDAS:
        found = _varied(groups, name)
        if found:
            panels.append((name, found))
    if not panels:
        needed = "at least two values of one of lambda_g, lambda_al, lambda_c and all else equal"
        return Figure("figure4", title, f"There are no runs of {METHOD_TITLES[DEFAULT_METHOD]} with {needed}.", None)
    rows = [
        [
            Panel("", f"\u03bb{name.removeprefix('lambda')}", y_label, (_of_weights(found, name, metric, scale),))
            for name, found in panels
        ]
        for metric, y_label, scale in ((ACC2, "test ACC2 (%)", 100.0), ("MAE", "test MAE (label units)", 1.0))
    ]
    trained = {found[0].values["missing"] for _, found in panels}
    caption = (
        f"Each model under the missing pattern that it was trained with ({', '.join(sorted(trained))}); mean over "
        "seeds, band: one standard deviation."
    )
    return _figure("figure4", title, caption, rows)


def robustness(rates: Sequence[Series]) -> Figure:
    """ACC2 and MAE over the realised missing rate."""
    rows = [
        [
            Panel(section if metric == ACC2 else "", "realised missing rate", y_label, curves)
            for section in (ONE_MODEL, ONE_A_RATE)
            if (curves := _of_rates(rates, section, _metric(metric, scale)))
        ]
        for metric, y_label, scale in ((ACC2, "test ACC2 (%)", 100.0), ("MAE", "test MAE (label units)", 1.0))
    ]
    caption = "Mean over seeds, band: one standard deviation. The rate is the realised one, not the nominal."
    absent = "There are no evaluations under two or more missing rates."
    return _figure("robustness", "Robustness to missing modalities", caption, rows, absent)


INTERVALS = {"conformal": "conformal, from validation errors", "draws": "of several recoveries"}
"""See `evaluation.uncertainty`."""


def recovery(rates: Sequence[Series]) -> Figure:
    """How close recovered representations come to the real ones, where evaluations say so."""
    quantities = (
        ("relative_mse", "error over variance", 1.0),
        ("cosine", "cosine, centred", None),
    )
    rows = []
    for key, y_label, level in quantities:
        panels = []
        for m in MODALITIES:
            curves = _of_rates(rates, ONE_MODEL, lambda row, m=m, key=key: ((row.recovery or {}).get(m) or {}).get(key))
            if curves:
                title = NAMES[m] if key == "relative_mse" else ""
                panels.append(Panel(title, "realised missing rate", y_label, curves, level))
        rows.append(panels)
    caption = "Recovered against real representations of the test clips; an error of 1 is what the mean reaches."
    absent = "No evaluation in these runs holds the quality of recovery."
    return _figure("recovery", "Recovered against real representations", caption, rows, absent)


def calibration(rates: Sequence[Series]) -> Figure:
    """Coverage and width of the intervals of predictions, where evaluations say so."""
    found = [part for s in rates for row in _rows(s) for part in _intervals(row)]
    nominal = {entry["nominal"] for entry in found if isinstance(entry.get("nominal"), int | float)}
    level = nominal.pop() if len(nominal) == 1 else None
    rows = [
        [
            Panel(title if key == "coverage" else "", "realised missing rate", y_label, curves, line)
            for kind, title in INTERVALS.items()
            if (curves := _of_rates(rates, ONE_MODEL, lambda row, part=(kind, key): _interval(row, *part)))
        ]
        for key, y_label, line in (
            ("coverage", "share of labels inside", level),
            ("mean_width", "mean width (label units)", None),
        )
    ]
    asked = "" if level is None else f" The horizontal line is the nominal coverage, {level:g}."
    caption = f"Intervals of the predictions; mean over seeds, band: one standard deviation.{asked}"
    absent = "No evaluation in these runs holds intervals of predictions."
    return _figure("calibration", "Calibration of the intervals", caption, [row for row in rows if row], absent)


def _intervals(row) -> list[dict]:
    return [part for kind in INTERVALS if isinstance(part := (row.uncertainty or {}).get(kind), dict)]


def _interval(row, kind: str, key: str) -> float | None:
    part = (row.uncertainty or {}).get(kind)
    return part.get(key) if isinstance(part, dict) else None


def _methods(rows: Sequence) -> list:
    """Groups or series of full models, where there are several methods of them; else all."""
    full = [row for row in rows if not row.values["without"] and row.values["strategy"] == STRATEGIES[0]]
    return full if len({row.values["method"] for row in full}) > 1 else list(rows)


def _of_epochs(groups: Sequence[Group], part: str, key: str, scale: float) -> tuple[Curve, ...]:
    curves = []
    for group in groups:
        by_epoch: dict[int, list[float]] = {}
        for run in group.runs:
            for row in run.epochs:
                value = row.get(part, {}).get(key)
                if isinstance(value, int | float):
                    by_epoch.setdefault(row["epoch"], []).append(scale * value)
        if by_epoch:
            values = [np.array(by_epoch[epoch]) for epoch in sorted(by_epoch)]
            y, low, high = (np.array([f(v) for v in values]) for f in (np.mean, np.min, np.max))
            curves.append(Curve(group.label, np.array(sorted(by_epoch)), y, low, high))
    return tuple(curves)


def _varied(groups: Sequence[Group], name: str) -> list[Group]:
    """The largest set of groups of the full model that differ in `name` only, by its value; two at least."""
    bases: dict[str, list[Group]] = {}
    for group in groups:
        full = group.values["method"] == DEFAULT_METHOD and not group.values["without"]
        if full and group.values["strategy"] == STRATEGIES[0]:
            bases.setdefault(identity(group.values, (name,)), []).append(group)
    largest = max(bases.values(), key=len, default=[])
    return sorted(largest, key=lambda group: group.values[name]) if len(largest) > 1 else []


def _of_weights(groups: Sequence[Group], name: str, metric: str, scale: float) -> Curve:
    values = [[run.own.metrics[metric] for run in group.runs] for group in groups]
    return _curve("", [group.values[name] for group in groups], values, scale)


def _of_rates(rates: Sequence[Series], section: str, quantity: Callable) -> tuple[Curve, ...]:
    """A curve for each series of `section` with at least two rates."""
    curves = []
    for s in rates:
        points = []
        for condition, by_seed in s.cells.items():
            rows = [of_seed[0] for of_seed in by_seed.values()] if condition != MEAN else []
            values = [value for row in rows if isinstance(value := quantity(row), int | float)]
            realised = [row.rate for row in rows if row.rate is not None]
            if values and realised:
                points.append((float(np.mean(realised)), values))
        if s.section == section and len(points) > 1:
            points.sort(key=lambda point: point[0])
            curves.append(_curve(s.label, [x for x, _ in points], [values for _, values in points], 1.0))
    return tuple(curves)


def _metric(metric: str, scale: float) -> Callable:
    def quantity(row):
        value = row.metrics[metric]
        return None if value is None else scale * value

    return quantity


def _rows(series: Series) -> Iterable:
    return (row for by_seed in series.cells.values() for rows in by_seed.values() for row in rows)


def _curve(label: str, x: Sequence[float], values: Sequence[Sequence[float | None]], scale: float) -> Curve:
    columns = [np.array([v for v in column if v is not None], float) * scale for column in values]
    mean = np.array([column.mean() if len(column) else np.nan for column in columns])
    deviation = np.array([column.std(ddof=1) if len(column) > 1 else 0.0 for column in columns])
    return Curve(label, np.array(x, float), mean, mean - deviation, mean + deviation)


def _figure(name: str, title: str, caption: str, rows: list[list[Panel]], absent: str = "") -> Figure:
    rows = [[panel for panel in row if panel.curves] for row in rows]
    rows = [row for row in rows if row]
    if not rows:
        return Figure(name, title, absent or "There are no data for it.", None)
    return Figure(name, title, caption, draw(rows))


def draw(rows: Sequence[Sequence[Panel]]) -> str:
    """SVG of a grid of panels, with one legend for all."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    looks: dict[str, int] = {}  # label -> place in the cycles of colours, styles and markers
    for curve in (curve for row in rows for panel in row for curve in panel.curves):
        looks.setdefault(curve.label, len(looks))
    columns = max(len(row) for row in rows)
    with matplotlib.rc_context(STYLE):
        named = [label for label in looks if label]
        wrapped = [textwrap.fill(label, LETTERS * columns) for label in named]
        long = any(len(label) > LETTERS for label in named)
        text_lines = sum(1 + text.count("\n") for text in wrapped) / (1 if long else columns)
        canvas = Canvas(figsize=(3.6 * columns + 0.4, 2.4 * len(rows) + 0.22 * text_lines), layout="constrained")
        axes = canvas.subplots(len(rows), columns, squeeze=False)
        for row, line in zip(rows, axes, strict=True):
            for panel, axis in zip(row, line, strict=False):
                _draw_panel(panel, axis, looks)
            for axis in line[len(row) :]:
                axis.remove()
        if named:
            handles = {text: handle for line in axes for axis in line for handle, text in _handles(axis)}
            canvas.legend([handles[t] for t in named], wrapped, loc="outside lower left", ncols=1 if long else columns)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _draw_panel(panel: Panel, axis, looks: dict[str, int]) -> None:
    for curve in panel.curves:
        place = looks[curve.label]
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place // len(COLOURS) % len(STYLES)]
        marker = MARKERS[place % len(MARKERS)] if panel.markers or len(curve.x) == 1 else None
        axis.plot(
            curve.x, curve.y, style, color=colour, marker=marker, markersize=3.5, lw=1.4, label=curve.label or "_"
        )
        alpha = 0.15 if len(panel.curves) <= FEW else 0.06
        axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=alpha, lw=0)
    if panel.level is not None:
        axis.axhline(panel.level, color="#555555", lw=0.8, ls=(0, (4, 3)))
    if panel.x_label == "epoch":
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)


def _handles(axis) -> list:
    return list(zip(*axis.get_legend_handles_labels(), strict=True))
