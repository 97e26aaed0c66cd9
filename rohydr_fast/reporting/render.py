"""Tables as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..evaluation.tables import UNDEFINED, in_percent, markdown, number
from .tables import ALL_METRICS, NO, RATE, YES, Column, Section, Table, TableRow

PAPER = "paper"


@dataclass(frozen=True)
class Part:
    """One number of a cell: mean and deviation as text, and its mark (``best``, ``tie`` or nothing)."""

    mean: str
    deviation: str | None = None
    mark: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: numbers, from how many seeds, and whether a model answered every clip the same."""

    parts: tuple[Part, ...]
    seeds: int | None = None
    constant: bool = False

    def text(self, show: Callable[[Part], str]) -> str:
        """The cell with each number as `show` writes it."""
        numbers = " / ".join(show(part) for part in self.parts)
        return numbers + ("" if self.seeds is None else f" ({self.seeds})") + (" *" if self.constant else "")


@dataclass(frozen=True)
class Line:
    """A line of a printed table."""

    stub: tuple[str, ...]
    cells: tuple[Cell, ...]
    of_paper: bool = False


EMPTY = Cell((Part(UNDEFINED),))


def headings(table: Table) -> list[str]:
    """The headings of a printed table, stub and columns."""
    result = list(table.stub_headings)
    for column in table.columns:
        result += [column.heading, PAPER] if table.paper_beside else [column.heading]
    return result


def lines(table: Table, section: Section) -> list[Line]:
    """The lines of a section, the paper's numbers among them."""
    marks = {
        (column.condition, metric): section.marks(column.condition, metric)
        for column in table.columns
        for metric in column.metrics
    }
    result = []
    for place, row in enumerate(section.rows):
        cells = []
        for column in table.columns:
            cells.append(_cell(row, column, [marks[column.condition, metric][place] for metric in column.metrics]))
            if table.paper_beside:
                cells.append(_paper_cell(row, column))
        result.append(Line(row.stub, tuple(cells)))
        if not table.paper_beside and row.paper_name:
            cells = tuple(_paper_cell(row, column) for column in table.columns)
            result.append(Line((f"paper: {row.paper_name}",), cells, of_paper=True))
    return result


def constant_note(table: Table) -> str | None:
    """What the star means, where a cell has one."""
    cells = (cell for section in table.sections for line in lines(table, section) for cell in line.cells)
    return "* constant prediction: every clip got the same number." if any(c.constant for c in cells) else None


def notes(table: Table) -> list[str]:
    """Everything that stands below a table."""
    return [note for note in (*table.notes, constant_note(table)) if note]


def to_markdown(table: Table) -> str:
    """The table with its title, sections and notes."""

    def show(part: Part) -> str:
        text = part.mean if part.deviation is None else f"{part.mean} +- {part.deviation}"
        around = {"best": "**", "tie": "_", "": ""}[part.mark]
        return f"{around}{text}{around}"

    blocks = [f"# Table {table.number}. {table.title}"]
    names = len(table.stub_headings)
    for section in table.sections:
        rows = [
            [*(text.replace("|", "\\|") for text in line.stub), *(cell.text(show) for cell in line.cells)]
            for line in lines(table, section)
        ]
        blocks += ([f"**{section.name}**"] if section.name else []) + [markdown(headings(table), rows, names).rstrip()]
    return "\n\n".join([*blocks, *notes(table)]) + "\n"


def to_csv(table: Table) -> str:
    """One line for each row and condition: mean and standard deviation of every metric by MMSA's names.

    Accuracies and F1 are in percent, like the paper's numbers.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    statistics = [f"{metric}_{what}" for metric in ALL_METRICS for what in ("mean", "std")]
    shown = list(dict.fromkeys(metric for column in table.columns for metric in column.metrics))
    papers = [f"paper_{metric}" for metric in shown]
    writer.writerow(["section", *table.stub_headings, "condition", RATE, "n", *statistics, *papers])
    for section in table.sections:
        for row in section.rows:
            for condition in dict.fromkeys(column.condition for column in table.columns):
                seeds = max(row.value(condition, metric)[2] for metric in ALL_METRICS)
                values = [
                    _csv_number(metric, value) for metric in ALL_METRICS for value in row.value(condition, metric)[:2]
                ]
                known = (row.paper or {}).get(condition, {})
                beside = [_csv_number(metric, known.get(metric)) for metric in shown]
                rate = _csv_number(RATE, row.value(condition, RATE)[0])
                writer.writerow([section.name, *row.stub, condition, rate, seeds, *values, *beside])
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """A table environment; it needs the packages booktabs and amssymb."""

    def show(part: Part) -> str:
        text = part.mean if part.deviation is None else f"{part.mean} $\\pm$ {part.deviation}"
        command = {"best": r"\textbf{", "tie": r"\emph{", "": ""}[part.mark]
        return f"{command}{text}}}" if command else text.replace(UNDEFINED, "--")

    columns = headings(table)
    names = len(table.stub_headings)
    body = [" & ".join(map(latex_text, columns)) + r" \\"]
    for section in table.sections:
        body.append(r"\midrule")
        if section.name:
            body.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\emph{{{latex_text(section.name)}}}}} \\")
        for line in lines(table, section):
            cells = [*map(latex_text, line.stub), *(cell.text(show) for cell in line.cells)]
            body.append(" & ".join(cells) + r" \\")
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,amssymb}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\label{{tab:{table.number}}}",
            r"\footnotesize",
            rf"\begin{{tabular}}{{{'l' * names + 'r' * (len(columns) - names)}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {latex_text(note)}" for note in notes(table)),
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: str) -> str:
    """Text in which nothing is a command."""
    special = {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", YES: r"$\checkmark$", NO: r"$\times$",
    }  # fmt: skip
    return "".join(special.get(letter, letter) for letter in text).replace("+-", r"$\pm$")


def _cell(row: TableRow, column: Column, marks: Sequence[str]) -> Cell:
    statistics = [row.value(column.condition, metric) for metric in column.metrics]
    if all(mean is None for mean, _, _ in statistics):
        return EMPTY
    parts = [
        Part(UNDEFINED)
        if mean is None
        else Part(number(metric, mean), None if deviation is None else number(metric, deviation), mark)
        for metric, (mean, deviation, _), mark in zip(column.metrics, statistics, marks, strict=True)
    ]
    constant = bool(row.value(column.condition, "constant_prediction")[0])
    return Cell(tuple(parts), max(n for _, _, n in statistics), constant)


def _paper_cell(row: TableRow, column: Column) -> Cell:
    known = (row.paper or {}).get(column.condition)
    if known is None:
        return EMPTY
    return Cell(tuple(Part(number(metric, known[metric])) for metric in column.metrics))


def _csv_number(metric: str, value: float | None) -> str:
    if value is None:
        return UNDEFINED
    return f"{100 * value:.4f}" if in_percent(metric) else f"{value:.6f}"
