"""The paper's own numbers, and when they may stand beside ours."""

import functools
import json
import re
from importlib import resources

from ..modalities import MODALITIES

ORIGINALS = {
    "rohydr": "RoHyDR",
    "mmin": "MMIN",
    "gcnet": "GCNet",
    "imder": "IMDer",
    "dicmor": "DiCMoR",
    "mtmsa": "MTMSA",
    "smcmsa": "SMCMSA",
}
"""Method -> the name of the model in the paper's tables whose idea it is."""

STANDARD_TEST_CLIPS = {"MOSI": 686, "MOSEI": 4659}
"""Clips of the standard test folds; the paper gives the totals, 2,199 and 22,856."""

METRICS = {"ACC2": "Non0_acc_2", "F1": "Non0_F1_score", "ACC7": "Mult_acc_7"}
"""The paper's names and ours. It says neither Has0 nor Non0, nor which F1: these are what its line of work reports."""


@functools.cache
def numbers() -> dict:
    """Tables 1 to 5 as printed, in percent, contradictions included (docs/deviations.md lists them)."""
    return json.loads((resources.files(__package__) / "paper.json").read_text("utf-8"))


def data_set(source: str, test_clips: int, modalities: tuple[str, ...] | None) -> tuple[str | None, str]:
    """Which of the paper's data sets a run was made on, and a sentence that says why or why not.

    Args:
        source: the name or path of the data.
        test_clips: clips of the test split.
        modalities: those that the model has; None when unknown.

    Returns:
        (``"MOSI"``, ``"MOSEI"`` or None, reason).
    """
    stem = re.split(r"[\\/]", source)[-1].lower()
    found = re.search(r"(?<![a-z])(mosei|mosi)(?![a-z])", stem)
    if not found:
        return None, f"the data are {stem}, and the paper's are CMU-MOSI and CMU-MOSEI"
    name = found.group().upper()
    if test_clips != STANDARD_TEST_CLIPS[name]:
        return None, f"the test split has {test_clips} clips, {name}'s standard one {STANDARD_TEST_CLIPS[name]}"
    if modalities is None:
        return None, f"which modalities these {name} data have is not known, and the paper has all three"
    if set(modalities) != set(MODALITIES):
        return None, f"these {name} data have {', '.join(modalities)} only, and the paper has all three modalities"
    return name, f"{name}, standard test split, all three modalities"


def row(table: int, data: str | None, name: str) -> dict[str, dict[str, float]] | None:
    """A row of the paper's table `table`, as condition -> our metric -> value in [0, 1].

    Conditions are rates (``"0.3"``) and ``"mean"`` in Table 1, sets (``"{a,t}"``) in Table 2, ``"mean"`` elsewhere.
    A mean is given only where all eight rates are.

    Args:
        data: as `data_set` returns it.
        name: method in Tables 1 and 2, the parts taken out (``"hddm,ur"``) in Tables 3 and 4, strategy in Table 5.

    Returns:
        None where the paper has no such row.
    """
    document = numbers()[f"table{table}"]
    values = document["rows"].get(data, {}).get(ORIGINALS.get(name) if table < 3 else name)
    if values is None:
        return None
    metrics = [METRICS[metric] for metric in document["metrics"]]
    if table > 2:
        return {"mean": _fractions(metrics, values)}
    cells = zip(document["columns"], values, strict=True)
    result = {column: _fractions(metrics, cell) for column, cell in cells if cell is not None}
    if table == 1 and len(result) == len(document["columns"]):
        columns = zip(*values, strict=True)
        result["mean"] = _fractions(metrics, [sum(column) / len(column) for column in columns])
    return result


def _fractions(metrics: list[str], percents: list[float]) -> dict[str, float]:
    return {metric: percent / 100 for metric, percent in zip(metrics, percents, strict=True)}
