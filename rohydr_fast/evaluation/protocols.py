"""Evaluation protocols: which missing patterns a table consists of."""

from collections.abc import Sequence
from itertools import combinations

from ..data.missing_spec import WITH_RATE, MissingSpec
from ..errors import UsageError
from ..modalities import MODALITIES

EVALUATION_PROTOCOLS = ("rates", "fixed", "natural", "exact", "fractions", "batch-table", "per-modality", "mixed")
RATES = tuple(tenth / 10 for tenth in range(8))


def protocol_rows(
    protocol: str, modalities: Sequence[str] = MODALITIES, missing_rate: str | None = None
) -> list[tuple[str, MissingSpec]]:
    """The rows of an evaluation, as (name, pattern), in the order of the paper's tables.

    - `rates` (Table 1): exact rates 0.0, 0.1, ..., 0.7.
    - `fixed` (Table 2): every non-empty set of the model's modalities, the smallest sets first.
    - `natural`: one row, only what the file lacks is missing.
    - any protocol of training: one row for `missing_rate`; exact, fractions and batch-table without one have eight
      rows, 0.0 to 0.7.

    Args:
        modalities: the model's modalities.
        missing_rate: as on the command line of training, ``0.3`` or ``a=0.3,t=0.1``.

    Raises:
        UsageError: an unknown protocol, or a rate that it cannot have.
    """
    if protocol in ("rates", "fixed", "natural", "mixed") and missing_rate is not None:
        raise UsageError(f"--missing-rate: must not be given for --protocol {protocol}, got {missing_rate!r}. Drop it.")
    if protocol == "rates" or (protocol in WITH_RATE and missing_rate is None):
        specs = [MissingSpec("exact" if protocol == "rates" else protocol, rate=rate) for rate in RATES]
    elif protocol == "fixed":
        ordered = [m for m in MODALITIES if m in modalities]
        sets = [chosen for size in range(1, len(ordered) + 1) for chosen in combinations(ordered, size)]
        specs = [MissingSpec("fixed", available=chosen) for chosen in sets]
    elif protocol in ("natural", "mixed"):
        specs = [MissingSpec(protocol)]
    elif protocol in EVALUATION_PROTOCOLS:
        if missing_rate is None:
            raise UsageError(f"--missing-rate: must be given for --protocol {protocol}. Write for example a=0.3,t=0.1.")
        specs = [MissingSpec.parse(protocol, missing_rate)]
    else:
        raise UsageError(
            f"evaluate: protocol must be one of {', '.join(EVALUATION_PROTOCOLS)}, got {protocol!r}. "
            "Write for example --protocol rates."
        )
    return [(spec.name, spec) for spec in specs]
