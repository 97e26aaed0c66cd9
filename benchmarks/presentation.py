"""What the reports of the benchmarks share: the verdict on the machine, the head of tables, the bars of a figure."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def verdict(document: dict) -> str:
    """What the probes say about the machine, as a sentence."""
    why = "; ".join(document["why"])
    if document["contended"] is None:
        return f"Whether the machine was contended is unknown: {why}."
    spread = f"spread of the probes {document['spread']:.0%}"
    if document["contended"]:
        return f"The machine was CONTENDED ({why}; {spread}): take ratios, not times, and those with care."
    return f"The machine was quiet ({spread})."


def head(document: dict, what: str) -> str:
    """What was measured, where, when and with what, and the verdict."""
    facts, made = document["machine"], document["versions"]
    commit = (document["commit"] or "unknown")[:9] + (" with local changes" if document["dirty"] else "")
    versions = ", ".join(f"{name} {version}" for name, version in made.items() if version and name != "rohydr_fast")
    return (
        f"{what}, {document['settings']['steps']} steps, float32. {facts['name']} ({document['fma_peak']['isa']}); "
        f"{document['date'][:10]}, commit {commit}; {versions}. {verdict(document)}"
    )


def reasons(rows: Iterable[dict]) -> list[str]:
    """Each reason once, as one list; nothing where every row passed."""
    notes = [row for row in rows if row["gate"] != "pass"]
    lines = list(dict.fromkeys(f"- {row['provider']}: {row['gate']}, {row['reason']}" for row in notes))
    return ["\n".join(lines)] if lines else []


def passed(document: dict) -> list[dict]:
    """The rows that a figure can show.

    Raises:
        ValueError: there are none.
    """
    rows = [row for row in document["rows"] if row["gate"] == "pass"]
    if not rows:
        raise ValueError("figure: the document must hold a row that passed its gate, got none. Look at the reasons.")
    return rows


@contextmanager
def drawing(document: dict, path: str | Path, title: str, rows: int, columns: int, size: tuple[float, float], **panels):
    """A figure of rows x columns panels, saved to `path` at the end; yields (figure, panels).

    The same document gives the same bytes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = {
        "svg.hashsalt": document["benchmark"],
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **panels)
        yield figure, axes
        note = ", contended" if document["contended"] else ""
        figure.suptitle(f"{title}, {document['machine']['name']} ({document['date'][:10]}{note})", x=0.01, ha="left")
        metadata = {"Date": None} if str(path).endswith(".svg") else None
        figure.savefig(path, facecolor="white", dpi=150, metadata=metadata)
        pyplot.close(figure)


def bars(
    panel,
    values: Mapping[str, Mapping[str, float]],
    groups: Sequence[str],
    colours: Mapping[str, str],
    labels: Mapping[str, str],
) -> None:
    """Bars on a logarithmic axis, one group for each of `groups`; `values` is provider -> group -> height."""
    from matplotlib.ticker import NullLocator

    width = 0.86 / len(values)
    for number, (name, own) in enumerate(values.items()):
        places = [i for i, group in enumerate(groups) if group in own]
        x = [i + (number - (len(values) - 1) / 2) * width for i in places]
        heights = [own[groups[i]] for i in places]
        drawn = panel.bar(x, heights, width * 0.94, color=colours[name], label=labels[name])
        panel.bar_label(
            drawn,
            [_short(height) for height in heights],
            padding=1.5,
            fontsize=6.5,
            rotation=90 if len(values) > 4 else 0,
            fontweight="bold" if name == "cpp" else "normal",
        )
    panel.set_yscale("log")
    heights = [height for own in values.values() for height in own.values()]
    if heights:
        panel.set_ylim(min(heights) / 2, max(heights) * 2.2)  # room for the labels
    panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xticks(range(len(groups)), groups)
    panel.yaxis.set_minor_locator(NullLocator())


def _short(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
