"""Evaluation protocols: which missing patterns a table consists of."""

from collections.abc import Sequence
from itertools import combinations

from ..data.missing_spec import MissingSpec
from ..errors import UsageError
from ..modalities import MODALITIES

EVALUATION_PROTOCOLS = ("rates", "fixed", "natural")


def protocol_rows(protocol: str, modalities: Sequence[str] = MODALITIES) -> list[tuple[str, MissingSpec]]:
    """The rows of an evaluation, as (name, pattern), in the order of the paper's tables.

    - `rates` (Table 1): exact rates 0.0, 0.1, ..., 0.7.
    - `fixed` (Table 2): every non-empty set of the model's modalities, the smallest sets first.
    - `natural`: one row, only what the file lacks is missing.

    Args:
        modalities: the model's modalities.

    Raises:
        UsageError: an unknown protocol.
    """
    if protocol == "rates":
        specs = [MissingSpec("exact", rate=tenth / 10) for tenth in range(8)]
    elif protocol == "fixed":
        ordered = [m for m in MODALITIES if m in modalities]
        sets = [chosen for size in range(1, len(ordered) + 1) for chosen in combinations(ordered, size)]
        specs = [MissingSpec("fixed", available=chosen) for chosen in sets]
    elif protocol == "natural":
        specs = [MissingSpec("natural")]
    else:
        raise UsageError(
            f"evaluate: protocol must be one of {', '.join(EVALUATION_PROTOCOLS)}, got {protocol!r}. "
            "Write for example --protocol rates."
        )
    return [(spec.name, spec) for spec in specs]
