"""Markdown tables of metrics: one run, or mean and standard deviation over several."""

import math
from collections.abc import Mapping, Sequence

Columns = Sequence[tuple[str, str]]  # (metric name, heading)
Statistics = tuple[float | None, float | None, int]  # mean, sample standard deviation, runs

COLUMNS: Columns = (
    ("Non0_acc_2", "ACC2"),
    ("Non0_F1_score", "F1"),
    ("Mult_acc_7", "ACC7"),
    ("MAE", "MAE"),
    ("Corr", "Corr"),
)
UNDEFINED = "-"


def metrics_table(rows: Mapping[str, Mapping], columns: Columns = COLUMNS) -> str:
    """Markdown table of one run. Accuracies and F1 are in percent; an undefined value shows ``-``.

    Args:
        rows: row name -> metrics, as `metrics` returns them; other keys (a realised rate) can be columns too.
        columns: (metric, heading).
    """
    cells = [
        [_row_name(name, values), *(_cell(key, values.get(key)) for key, _ in columns)] for name, values in rows.items()
    ]
    constant = any(values.get("constant_prediction") for values in rows.values())
    return _markdown(columns, cells) + _footnote(constant)


def aggregate(runs: Sequence[Mapping[str, Mapping]]) -> dict[str, dict[str, Statistics]]:
    """Mean, sample standard deviation and number of runs of every metric of every row.

    A run in which a metric is undefined, or which lacks the row, does not count. The standard deviation needs two runs
    and is None with fewer. Flags and texts are left out, but for `constant_prediction`: its mean is the share of the
    runs that are constant.

    Args:
        runs: one mapping row name -> metrics per run (seed).
    """
    result: dict[str, dict[str, Statistics]] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        present = [run[name] for run in runs if name in run]
        keys = dict.fromkeys(key for values in present for key in values)
        result[name] = {key: _statistics(key, [values.get(key) for values in present]) for key in keys}
        result[name] = {key: value for key, value in result[name].items() if value is not None}
    return result


def aggregate_table(
    aggregated: Mapping[str, Mapping[str, Statistics]], columns: Columns = COLUMNS, minimum_runs: int = 1
) -> str:
    """Markdown table of `aggregate`'s result; each cell is ``mean +- std (n)``.

    Args:
        minimum_runs: a cell with fewer runs shows ``-``.
    """
    cells = []
    for name, values in aggregated.items():
        constant = {"constant_prediction": bool(values.get("constant_prediction", (0.0,))[0])}
        statistics = (_statistics_cell(key, values.get(key, (None, None, 0)), minimum_runs) for key, _ in columns)
        cells.append([_row_name(name, constant), *statistics])
    constant = any(values.get("constant_prediction", (0.0,))[0] for values in aggregated.values())
    return _markdown(columns, cells) + _footnote(constant)


def _statistics(key: str, values: list) -> Statistics | None:
    flag = key == "constant_prediction"
    if any(isinstance(value, str | dict) or (isinstance(value, bool) and not flag) for value in values):
        return None
    numbers = [float(value) for value in values if value is not None]
    if not numbers:
        return None, None, 0
    mean = math.fsum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, None, 1
    squares = math.fsum((number - mean) ** 2 for number in numbers)
    return mean, math.sqrt(squares / (len(numbers) - 1)), len(numbers)


def in_percent(key: str) -> bool:
    """Whether tables show the metric `key` in percent: accuracies, F1 and coverages."""
    return "acc" in key or "F1" in key or "covered" in key


def number(key: str, value: float) -> str:
    """A value of the metric `key` as tables show it."""
    return f"{100 * value:.2f}" if in_percent(key) else f"{value:.4f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Aligned Markdown table: the first `names` columns to the left, numbers to the right."""
    table = [header, *rows]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(header))]
    lines = []
    for row in table:
        cells = (
            text.ljust(w) if i < names else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("| " + " | ".join(cells) + " |")
    rules = ("-" * (w + 2) if i < names else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]]) + "\n"


def _cell(key: str, value: float | int | bool | str | None) -> str:
    if value is None:
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | str):
        return str(value).replace("|", "\\|")
    return number(key, value)


def _statistics_cell(key: str, statistics: Statistics, minimum_runs: int) -> str:
    mean, deviation, runs = statistics
    if mean is None or runs < minimum_runs:
        return UNDEFINED
    if deviation is None:
        return f"{number(key, mean)} ({runs})"
    return f"{number(key, mean)} +- {number(key, deviation)} ({runs})"


def _row_name(name: str, values: Mapping) -> str:
    return name.replace("|", "\\|") + (" *" if values.get("constant_prediction") else "")


def _footnote(constant: bool) -> str:
    return "\n\\* constant prediction: every clip got the same number.\n" if constant else ""


def _markdown(columns: Columns, cells: list[list[str]]) -> str:
    return markdown(["", *(heading for _, heading in columns)], cells)
