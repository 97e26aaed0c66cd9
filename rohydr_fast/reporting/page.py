"""One HTML page that holds everything and needs nothing else."""

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from ..evaluation.tables import UNDEFINED
from . import comparisons, cost, details, render
from .collect import Collection, LeftOut
from .comparisons import Pair
from .figures import Figure
from .groups import MEAN, Group, Series
from .statistics import METRICS
from .tables import Table

FACTS = (
    ("rohydr_fast", "rohydr_fast"),
    ("commit", "commit"),
    ("python", "Python"),
    ("torch", "torch"),
    ("numpy", "numpy"),
    ("platform", "system"),
    ("cpu", "CPU"),
    ("cores_available", "cores"),
    ("threads", "threads"),
    ("cuda_devices", "CUDA devices"),
)
"""Keys of env.json and what they are called."""


def page(
    collection: Collection,
    left_out: Sequence[LeftOut],
    groups: Sequence[Group],
    series: Sequence[Series],
    tables: Sequence[Table],
    pairs: Sequence[Pair],
    figures: Sequence[Figure],
    out: Path,
) -> str:
    """The page as text; links to runs are relative to `out`. All text from data and runs is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (resources.files(__package__) / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    card_label, card_seed, cards = details.cards(series)
    template = environment.get_template("page.html.jinja")
    return template.render(
        facts=facts(collection),
        data=_data(collection),
        rates=realised_rates(series),
        tables=[_table(table) for table in tables],
        figures=[(figure, _inline(figure)) for figure in figures],
        comparisons=_comparisons(pairs),
        explanation=comparisons.explanation(),
        refusals=comparisons.refusals(pairs),
        behaviours=details.behaviours(series),
        classes=details.CLASSES,
        costs=cost.costs(groups),
        card_label=card_label,
        card_seed=card_seed,
        cards=cards,
        groups=[(group.label, [_run(run, out) for run in group.runs]) for group in groups],
        runs=sum(len(group.runs) for group in groups),
        left_out=[(str(entry.path), entry.reason) for entry in left_out],
    )


def facts(collection: Collection) -> list[tuple[str, str]]:
    """Machine, versions and commit of the runs; several values where the runs differ."""
    result = []
    for key, name in FACTS:
        values = []
        for run in collection.runs:
            value = run.environment.get(key)
            value = ", ".join(map(str, value)) or "none" if isinstance(value, list) else value
            if key == "commit" and run.environment.get("dirty"):
                value = f"{value} with local changes"
            values.append(UNDEFINED if value is None else str(value))
        result.append((name, "; ".join(dict.fromkeys(values))))
    return result


def realised_rates(series: Sequence[Series]) -> list[tuple[str, str]]:
    """Nominal rate or set, and the lowest and highest rate that runs realised."""
    found: dict[str, list[float]] = {}
    for s in sorted(series, key=lambda s: s.kind != "rates"):
        for condition, by_seed in s.cells.items():
            if condition != MEAN:
                rates = [row.rate for rows in by_seed.values() for row in rows if row.rate is not None]
                found.setdefault(condition, []).extend(rates)
    spans = ((name, f"{min(rates):.4f}", f"{max(rates):.4f}") for name, rates in found.items() if rates)
    return [(name, low if low == high else f"{low} to {high}") for name, low, high in spans]


def _data(collection: Collection) -> tuple[str, str]:
    sources = dict.fromkeys(run.source for run in collection.runs)
    return "; ".join(sources), collection.runs[0].sha256


def _table(table: Table) -> dict:
    sections = [(section.name, render.lines(table, section)) for section in table.sections]
    stacked = ["In a cell: ACC2 above, F1 below."] if any(len(column.metrics) > 1 for column in table.columns) else []
    return {
        "number": table.number,
        "title": table.title,
        "stubs": len(table.stub_headings),
        "headings": render.headings(table),
        "sections": sections,
        "notes": [note.replace("+-", "\u00b1") for note in (*stacked, *render.notes(table))],
    }


def _comparisons(pairs: Sequence[Pair]) -> list[tuple[str, str, list[dict]]]:
    """(section, condition, lines), the means first."""
    result: dict[tuple[str, str], list[dict]] = {}
    for pair in pairs:
        if pair.comparison is None:
            continue
        found = pair.comparison
        line = {
            "first": pair.first,
            "second": pair.second,
            "seeds": len(found.seeds),
            "clips": found.clips,
            "resampled": pair.resampled(),
            "metrics": [
                (comparisons.interval(metric, found.differences[metric]), pair.verdict(metric),
                 found.differences[metric].better is not None)
                for metric in METRICS
            ],
        }  # fmt: skip
        result.setdefault((pair.section, pair.condition), []).append(line)
    return [(section, condition, lines) for (section, condition), lines in result.items()]


def _run(run, out: Path) -> dict:
    relative = os.path.relpath(run.path.resolve(), out.resolve())
    protocols = [f"{e.protocol}, {e.samples} recoveries" if e.samples > 1 else e.protocol for e in run.evaluations]
    return {
        "seed": run.seed,
        "name": relative,
        "link": quote(Path(relative).as_posix()),
        "best_epoch": run.result.get("best_epoch"),
        "epochs": len(run.epochs),
        "evaluations": "; ".join(protocols) or "as trained",
    }


def _inline(figure: Figure) -> str | None:
    """The SVG for use inside HTML: without prolog, with a name for readers, and ids that no other figure has."""
    if figure.svg is None:
        return None
    from markupsafe import Markup, escape

    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{figure.name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.title)}"', 1))
