"""Tables and the figure of benchmarks/sampling.py, made from its JSON document."""

from pathlib import Path

from presentation import bars, drawing, head, passed, reasons

COLOURS = {  # Okabe and Ito's, distinguishable with every kind of colour vision; the strongest for this package
    "reference": "#999999",
    "hoisted": "#56B4E9",
    "compile": "#E69F00",
    "onnxruntime": "#009E73",
    "openvino": "#CC79A7",
    "cpp": "#0072B2",
}
LABELS = {
    "reference": "PyTorch, as written first",
    "hoisted": "PyTorch, hoisted",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "cpp": "rohydr_fast cpp",
}


def line(row: dict) -> str:
    """One row for the terminal."""
    where = f"{row['preset']:<7} B={row['batch']:<3} threads={row['threads']} {row['provider']:<12}"
    if row["gate"] != "pass":
        return f"{where} {row['gate']}: {row['reason']}"
    times, share, ratio = row["ms_per_step"], row["share_of_fma_peak"], row["ratio_to_cpp"]
    parts = [
        f"{times['median']:9.3f} ms/step ({times['p20']:.3f} .. {times['p80']:.3f})",
        f"{row['gflops']:6.1f} GFLOP/s",
    ]
    parts.append("share of peak unknown" if share is None else f"{share:4.0%} of the peak")
    parts.append(f"error {row['rel_error']:.1e}")
    if ratio:
        parts.append(f"{ratio['median']:.2f} x cpp")
    return f"{where} {', '.join(parts)}"


def markdown(document: dict) -> str:
    """Title, verdict, the table of times, and the skipped, failed and scaling rows where there are any."""
    scaling = document.get("scaling", [])
    parts = [head(document, "Sampling"), _table_of_times(document["rows"]), *reasons(document["rows"] + scaling)]
    parts += [_table_of_scaling(scaling)] if scaling else []
    return "\n\n".join(parts)


def _table_of_times(rows: list[dict]) -> str:
    providers = [name for name in LABELS if any(row["provider"] == name for row in rows)]
    lines = ["| preset | batch | threads | " + " | ".join(providers) + " | cpp, share of FMA peak |"]
    lines.append("|---|---|---|" + "---|" * (len(providers) + 1))
    for key, cell in _cells(rows).items():
        texts = [_time(cell.get(name)) for name in providers]
        share = cell.get("cpp", {}).get("share_of_fma_peak")
        mark = "*" if any(row.get("contended") for row in cell.values()) else ""
        texts.append("-" if share is None else f"{share:.0%}")
        lines.append(f"| {' | '.join(map(str, key))}{mark} | {' | '.join(texts)} |")
    lines += [
        "",
        "ms per step of the whole batch, median over rounds; in brackets the median of ratios to cpp in a round.",
    ]
    if any(row.get("contended") for row in rows):
        lines[-1] += " *: the machine was contended during this cell."
    return "\n".join(lines)


def _cells(rows: list[dict]) -> dict[tuple, dict[str, dict]]:
    cells: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        cells.setdefault((row["preset"], row["batch"], row["threads"]), {})[row["provider"]] = row
    return cells


def _time(row: dict | None) -> str:
    if row is None or row["gate"] != "pass":
        return "-" if row is None else row["gate"]
    text, ratio = f"{row['ms_per_step']['median']:.3g}", row["ratio_to_cpp"]
    return f"{text} ({ratio['median']:.1f}x)" if ratio and row["provider"] != "cpp" else text


def _table_of_scaling(rows: list[dict]) -> str:
    lines = ["| preset | threads | provider | series | ms a call (relative to the first) |", "|---|---|---|---|---|"]
    series: dict[tuple, list[str]] = {}
    for row in rows:
        if row["gate"] == "pass":
            key = (row["preset"], row["threads"], row["provider"], row["series"])
            text = f"{row['value']}: {row['ms']['median']:.3g} ({row['relative']:.2f})"
            series.setdefault(key, []).append(text)
    lines += [f"| {' | '.join(map(str, key))} | {', '.join(texts)} |" for key, texts in series.items()]
    return "\n".join(lines)


def figure(document: dict, path: str | Path) -> None:
    """Throughput in sample-steps a second: a panel for each batch and number of threads, bars grouped by preset.

    Raises:
        ValueError: no row has a time.
    """
    rows = passed(document)
    providers = [name for name in LABELS if any(row["provider"] == name for row in rows)]
    presets = list(dict.fromkeys(row["preset"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    threads = sorted({row["threads"] for row in rows})
    width = max(6.5, 1.2 + 1.75 * len(presets) * len(batches) * max(len(providers), 3) / 6)
    size = (width, 1.4 + 2.5 * len(threads))
    with drawing(document, path, "Sampling throughput", len(threads), len(batches), size, sharex=True) as (
        drawn,
        panels,
    ):
        for across, count in zip(panels, threads, strict=True):
            for panel, batch in zip(across, batches, strict=True):
                shown = [row for row in rows if (row["batch"], row["threads"]) == (batch, count)]
                speeds = {name: _speeds(shown, name) for name in providers}
                bars(panel, speeds, presets, COLOURS, LABELS)
                panel.set_title(f"batch {batch}, {count} thread{'s' if count > 1 else ''}", loc="left")
            across[0].set_ylabel("sample-steps / s, log scale")
        handles, names = panels[0][0].get_legend_handles_labels()
        drawn.legend(handles, names, loc="outside lower center", ncols=6 if width > 9 else 3, frameon=False)


def _speeds(rows: list[dict], provider: str) -> dict[str, float]:
    own = [row for row in rows if row["provider"] == provider]
    return {row["preset"]: 1e3 * row["batch"] / row["ms_per_step"]["median"] for row in own}
