"""What a run was trained with, in a form in which equal settings are equal, and how it is called in tables."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..config import DEFAULT_EPOCHS, METHOD_TITLES, PARTS_ABSENT, PRESETS, ModelConfig, TrainConfig
from ..data.missing_spec import WITH_RATE, MissingSpec
from ..errors import DataError, RohydrError

IRRELEVANT = ("seed", "data", "device", "backend", "max_memory")
"""Settings that do not make a run another experiment; the data are told apart by their checksum."""

DEFAULT_METHOD = TrainConfig.method

ORDER = tuple(method for method in METHOD_TITLES if method != DEFAULT_METHOD)
"""Rows of a table: these, unknown methods, then rohydr with parts taken out, and rohydr."""

LAMBDAS = ("lambda_g", "lambda_al", "lambda_c")


@dataclass(frozen=True)
class Settings:
    """The settings of one run."""

    seed: int
    missing: str  # name of the pattern it was trained with: "mixed", "exact 0.3", "{a,t}"
    rate: float | None  # of exact, fractions and batch-table
    protocol: str | None  # the rule by which a rate is drawn; None without a rate
    values: dict  # everything that matters but `missing`, normalised

    @classmethod
    def read(cls, config: Mapping, path: Path) -> "Settings":
        """From a run's config.yaml. Settings that this version does not know are kept, those it lacks have defaults.

        Raises:
            DataError: a setting is impossible.
        """
        known = {field.name for field in fields(TrainConfig)}
        try:
            parsed = TrainConfig(**{key: value for key, value in config.items() if key in known})
            spec = MissingSpec.parse(parsed.protocol, parsed.missing_rate, parsed.available)
        except (TypeError, ValueError, AttributeError, RohydrError) as error:
            raise DataError(f"{path} cannot be read ({error}). Restore the file.") from None
        values = {"method": DEFAULT_METHOD}
        values |= {name: getattr(parsed, name) for name in sorted(known)}
        values |= {str(key): value for key, value in config.items() if key not in known}
        values["method"] = str(values["method"])
        values["epochs"] = parsed.epochs or DEFAULT_EPOCHS[parsed.preset]
        values["steps"] = parsed.steps or PRESETS[parsed.preset].get("chain_steps", ModelConfig.chain_steps)
        own = PARTS_ABSENT.get(parsed.method, ())  # what the method never has is no ablation
        values["without"] = ",".join(part for part in parsed.switches() if part not in own)
        for name in (*IRRELEVANT, "missing_rate", "available", "protocol"):
            values.pop(name, None)
        protocol = spec.protocol if spec.protocol in WITH_RATE else None
        return cls(parsed.seed, spec.name, spec.rate, protocol, values)

    @property
    def preset(self) -> str:
        """Size of the model."""
        return self.values["preset"]

    @property
    def epochs(self) -> int:
        """Epochs at most."""
        return self.values["epochs"]


def identity(values: Mapping, leaving_out: Sequence[str] = ()) -> str:
    """Text that is equal for equal settings."""
    return json.dumps({k: v for k, v in values.items() if k not in leaving_out}, sort_keys=True, default=str)


def name_of(values: Mapping) -> str:
    """Method, parts taken out and strategy: ``mmin-style``, ``RoHyDR without HDDM, UR``, ``RoHyDR, two-stage``."""
    name = METHOD_TITLES.get(values["method"], str(values["method"]))
    if values["without"]:
        name += " without " + ", ".join(part.upper() for part in values["without"].split(","))
    return name if values["strategy"] == "three-stage" else f"{name}, {values['strategy']}"


def labels(rows: Sequence[Mapping]) -> list[str]:
    """One label for each of `rows`: its name, and those settings in which rows of the same name differ."""
    alike = defaultdict(list)
    for values in rows:
        alike[name_of(values)].append(values)
    result = []
    for values in rows:
        group = alike[name_of(values)]
        keys = dict.fromkeys(key for other in group for key in other)
        differing = [key for key in keys if len({identity({key: other.get(key)}) for other in group}) > 1]
        result.append(", ".join([name_of(values), *(f"{_words(key)} {values.get(key)}" for key in differing)]))
    return result


def sort_key(values: Mapping) -> tuple:
    """Where a row stands: simple methods first, rohydr last, as the paper's tables do."""
    method = values["method"]
    place = len(ORDER) + 1 if method == DEFAULT_METHOD else ORDER.index(method) if method in ORDER else len(ORDER)
    changed = bool(values["without"]) or values["strategy"] != "three-stage"
    return place, not changed, -len(values["without"]), name_of(values), identity(values)


def _words(key: str) -> str:
    return {"missing": "trained with", "recoveries": "recoveries averaged:", "drawn": "evaluated with"}.get(
        key, key.replace("_", " ")
    )
