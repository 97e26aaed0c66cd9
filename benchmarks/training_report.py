"""Tables and the figure of benchmarks/training.py, made from its JSON document."""

from pathlib import Path

from parts import PARTS
from presentation import bars, drawing, head, passed, reasons

COLOURS = {  # Okabe and Ito's, as in sampling's figure
    "naive": "#999999",
    "reference": "#56B4E9",
    "checkpointed": "#009E73",
    "compile": "#E69F00",
    "cpp": "#0072B2",
    "cpp-recomputed": "#D55E00",
}
LABELS = {
    "naive": "PyTorch, as written first",
    "reference": "PyTorch, hoisted",
    "checkpointed": "PyTorch, checkpointed",
    "compile": "torch.compile",
    "cpp": "rohydr_fast cpp",
    "cpp-recomputed": "rohydr_fast cpp, recomputed",
}
TITLES = {
    "block": "Eq. 3, two modalities",
    "chain": "reverse chains of two modalities",
    "iteration": "training batch, three stages",
    "epoch": "training epoch",
}


def line(row: dict) -> str:
    """One row for the terminal."""
    where = f"{row['workload']:<9} {row['preset']:<6} B={row['batch']:<3} threads={row['threads']} "
    where += f"{row['provider']:<14}"
    if row["gate"] != "pass":
        return f"{where} {row['gate']}: {row['reason']}"
    times, ratio, memory = row["seconds"], row["ratio_to_cpp"], row["peak_memory_mib"]
    parts = [
        f"{times['median']:8.4g} s ({times['p20']:.4g} .. {times['p80']:.4g})",
        "memory unknown" if memory is None else f"{memory:6.0f} MiB",
        f"{row['gflops']:6.1f} GFLOP/s",
        f"{_share(row)} of the peak",
        f"error {row['rel_error']:.1e}",
    ]
    if ratio:
        parts.append(f"{ratio['median']:.2f} x cpp")
    return f"{where} {', '.join(parts)}"


def _share(row: dict) -> str:
    return "?" if row["share_of_fma_peak"] is None else f"{row['share_of_fma_peak']:.0%}"


def markdown(document: dict) -> str:
    """Verdict, a table for each workload, the parts of epochs, and the skipped and failed rows where there are any."""
    rows, parts = document["rows"], [head(document, "Training")]
    for workload in dict.fromkeys(row["workload"] for row in rows):
        own = [row for row in rows if row["workload"] == workload]
        parts.append(_table(workload, own))
        parts += [_table_of_parts([row for row in own if row.get("parts")])] if any(r.get("parts") for r in own) else []
        parts += reasons(own)
    return "\n\n".join(parts)


def _table(workload: str, rows: list[dict]) -> str:
    lines = [
        f"**{workload}**: {TITLES[workload]}, forward and back" + _clips(rows),
        "",
        "| preset | batch | threads | provider | seconds (20 % .. 80 %) | x cpp | MiB | GFLOP/s | share of FMA peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        key = f"| {row['preset']} | {row['batch']} | {row['threads']}{'*' if row.get('contended') else ''} |"
        lines.append(f"{key} {row['provider']} | {' | '.join(_numbers(row))} |")
    note = "Seconds of a call, median over rounds; x cpp: the median of ratios in a round; "
    note += "MiB: the peak of resident memory above that before the call."
    if workload in ("iteration", "epoch"):
        note += " GFLOP/s count the diffusion alone."
    if any(row.get("contended") for row in rows):
        note += " *: the machine was contended during this cell."
    lines += ["", note]
    return "\n".join(lines)


def _clips(rows: list[dict]) -> str:
    lengths = {row["lengths"] for row in rows}
    return "; clips as long as MOSI's" if lengths == {"mosi"} else ""


def _numbers(row: dict) -> list[str]:
    if row["gate"] != "pass":
        return [row["gate"], "-", "-", "-", "-"]
    times, ratio, memory = row["seconds"], row["ratio_to_cpp"], row["peak_memory_mib"]
    return [
        f"{times['median']:.3g} ({times['p20']:.3g} .. {times['p80']:.3g})",
        f"{ratio['median']:.2f}" if ratio else "-",
        "?" if memory is None else f"{memory:.0f}",
        f"{row['gflops']:.1f}",
        _share(row),
    ]


def _table_of_parts(rows: list[dict]) -> str:
    lines = ["| preset | batch | threads | provider | " + " | ".join(PARTS) + " |", "|---" * (4 + len(PARTS)) + "|"]
    for row in rows:
        shares = [f"{row['parts'][name]:.1%}" for name in PARTS]
        key = [str(row[name]) for name in ("preset", "batch", "threads", "provider")]
        lines.append(f"| {' | '.join(key + shares)} |")
    return "\n".join([*lines, "", "Share of the epoch; forward and back together, but for the chains."])


def figure(document: dict, path: str | Path) -> None:
    """Seconds for each number of threads, and peak memory: a row of panels for each workload, bars grouped by preset.

    Raises:
        ValueError: no row has a time.
    """
    rows = passed(document)
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    threads = sorted({row["threads"] for row in rows})
    batches = sorted({row["batch"] for row in rows})
    groups = [(row["preset"], row["batch"]) for row in rows]
    groups = [_group(key, batches) for key in dict.fromkeys(groups)]
    width = max(7.5, 2.0 + 1.4 * len(groups) * (len(threads) + 1) * len(batches))
    size = (width, 1.2 + 2.3 * len(workloads))
    with drawing(document, path, "Training", len(workloads), len(threads) + 1, size) as (drawn, panels):
        for across, workload in zip(panels, workloads, strict=True):
            own = [row for row in rows if row["workload"] == workload]
            for panel, count in zip(across, threads, strict=False):
                shown = [row for row in own if row["threads"] == count]
                bars(panel, _values(shown, batches, lambda row: row["seconds"]["median"]), groups, COLOURS, LABELS)
                panel.set_title(f"{workload}: seconds, {count} thread{'s' if count > 1 else ''}", loc="left")
            known = [row for row in own if row["threads"] == threads[0] and row["peak_memory_mib"] is not None]
            bars(across[-1], _values(known, batches, lambda row: row["peak_memory_mib"]), groups, COLOURS, LABELS)
            across[-1].set_title(f"{workload}: peak memory, MiB", loc="left")
        handles = {}
        for panel in panels.flat:
            handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
        names = [label for label in LABELS.values() if label in handles]
        places = [handles[name] for name in names]
        drawn.legend(places, names, loc="outside lower center", ncols=3, frameon=False)


def _group(key: tuple[str, int], batches: list[int]) -> str:
    return key[0] if len(batches) == 1 else f"{key[0]}\nB={key[1]}"


def _values(rows: list[dict], batches: list[int], value) -> dict[str, dict[str, float]]:
    names = [name for name in LABELS if any(row["provider"] == name for row in rows)]
    return {
        name: {_group((r["preset"], r["batch"]), batches): value(r) for r in rows if r["provider"] == name}
        for name in names
    }
