"""The name of a missing protocol with its parameters, from the command line to the checkpoint and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UsageError
from ..modalities import MODALITIES, NAMES, parse_available

PROTOCOLS = ("exact", "fractions", "batch-table", "fixed", "per-modality", "mixed", "natural")
WITH_RATE = ("exact", "fractions", "batch-table")
EXAMPLE = "Write for example --missing-rate 0.3"


@dataclass(frozen=True)
class MissingSpec:
    """Which modalities are withheld, and by which rule; `missing_table` describes the rules.

    Args:
        protocol: one of `PROTOCOLS`.
        rate: share of the present slots to remove, in [0, 1]; used by exact, fractions and batch-table, None elsewhere.
        rates: modality -> rate in [0, 1], for per-modality; a modality that is not named is never removed.
        available: the modalities that are kept, for fixed.

    Raises:
        UsageError: an unknown protocol or modality, a rate outside its range, or parameters of another protocol.
    """

    protocol: str = "exact"
    rate: float | None = 0.5
    rates: dict[str, float] | None = field(default=None, hash=False)
    available: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise UsageError(
                f"missing pattern: protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}. "
                "Write for example --protocol exact."
            )
        for name, value, owner in (("rates", self.rates, "per-modality"), ("available", self.available, "fixed")):
            if (value is None) != (self.protocol != owner):
                rule = f"be given for protocol {owner}" if value is None else f"not be given for {self.protocol}"
                raise UsageError(
                    f"missing pattern: {name} must {rule}, got {value}. "
                    f"Use {name} and the protocol {owner} together, or neither."
                )
        object.__setattr__(self, "rate", self._checked_rate() if self.protocol in WITH_RATE else None)
        if self.available is not None:
            object.__setattr__(self, "available", parse_available(",".join(self.available)))
        if self.rates is not None:
            object.__setattr__(self, "rates", _checked_rates(self.rates))

    def _checked_rate(self) -> float:
        rate = _share(self.rate)
        if self.protocol == "batch-table" and not any(math.isclose(rate, i / 10) for i in range(8)):
            raise UsageError(
                f"missing pattern: rate must be one of 0, 0.1, ..., 0.7 for batch-table, got {rate:g}. "
                "Use one of these, or the protocol fractions, which takes rates in between."
            )
        return rate

    @property
    def name(self) -> str:
        """Short name for tables and files: ``exact 0.5``, ``{a,t}``, ``per-modality a=0.3 t=0.1``, ``mixed``."""
        if self.protocol == "fixed":
            return "{" + ",".join(self.available) + "}"
        if self.protocol == "per-modality":
            return "per-modality " + " ".join(f"{m}={rate!r}" for m, rate in self.rates.items())
        return self.protocol if self.rate is None else f"{self.protocol} {self.rate!r}"

    def to_dict(self) -> dict:
        """The fields as JSON types; `from_dict` is the inverse."""
        available = None if self.available is None else list(self.available)
        rates = None if self.rates is None else dict(self.rates)
        return {"protocol": self.protocol, "rate": self.rate, "rates": rates, "available": available}

    @classmethod
    def from_dict(cls, fields: Mapping) -> "MissingSpec":
        """Build the spec that `to_dict` described.

        Raises:
            UsageError: unknown fields, or values that the constructor refuses.
        """
        unknown = sorted(set(fields) - {"protocol", "rate", "rates", "available"})
        if unknown:
            raise UsageError(
                f"missing pattern: fields must be protocol, rate, rates and available, got also {', '.join(unknown)}. "
                "Remove them."
            )
        return cls(**fields)

    @classmethod
    def parse(cls, protocol: str, missing_rate: str, available: str | None = None) -> "MissingSpec":
        """Read the words of the command line.

        `missing_rate` is a number, pairs such as ``a=0.3,t=0.1,v=0.5`` (protocol per-modality), or the word ``mixed``
        or ``natural``. `available` means protocol fixed and replaces a plain rate. The default protocol exact gives
        way to all of these; any other protocol must agree with them. Protocols without a rate ignore a plain number.

        Raises:
            UsageError: words that cannot be read, or that contradict each other.
        """
        word = str(missing_rate).strip()
        implied = "per-modality" if "=" in word else word if word in ("mixed", "natural") else None
        if available is not None:
            if implied or protocol not in ("exact", "fixed"):
                raise UsageError(
                    f"--available: must not be combined with --missing-rate {word} and --protocol {protocol}, "
                    f"got {available!r}. Drop --available, or leave the other two at their defaults."
                )
            return cls("fixed", available=parse_available(available))
        if implied and protocol not in ("exact", implied):
            raise UsageError(
                f"--missing-rate: must be a number for --protocol {protocol}, got {word!r}. "
                f"{EXAMPLE}, or use --protocol {implied}."
            )
        chosen = implied or protocol
        if chosen == "per-modality":
            return cls(chosen, rates=_parse_rates(word))
        return cls(chosen, rate=_parse_rate(word)) if chosen in WITH_RATE else cls(chosen)


def _parse_rate(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(
            f"--missing-rate: must be a number in [0, 1], 'mixed', 'natural' or pairs such as a=0.3,t=0.1,v=0.5, "
            f"got {word!r}. {EXAMPLE}."
        ) from None


def _parse_rates(word: str) -> dict[str, float]:
    """``a=0.3,v=0.5`` or one number for all modalities."""
    if "=" not in word:
        return dict.fromkeys(MODALITIES, _parse_rate(word))
    letters = {name: letter for letter, name in NAMES.items()}
    rates = {}
    for pair in word.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        letter = letters.get(name.lower(), name.lower())
        if letter in rates:
            raise UsageError(
                f"--missing-rate: must name each modality once, got {name!r} twice in {word!r}. Drop one of them."
            )
        rates[letter] = _parse_rate(value)
    return rates


def _checked_rates(rates: Mapping[str, float]) -> dict[str, float]:
    unknown = [m for m in rates if m not in MODALITIES]
    if unknown or not rates:
        raise UsageError(
            f"missing pattern: rates must name some of a, t, v, got {', '.join(map(repr, unknown)) or 'none'}. "
            f"Write for example --missing-rate a=0.3,t=0.1,v=0.5."
        )
    return {m: _share(rates[m]) for m in MODALITIES if m in rates}


def _share(value: float | None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN fails too
        raise UsageError(f"missing pattern: rate must lie in [0, 1], got {value}. {EXAMPLE}.")
    return float(value)
