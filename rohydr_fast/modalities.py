"""The three modalities, in the paper's order, and their names in MMSA files."""

MODALITIES = ("a", "t", "v")
"""Audio, text, vision: the order of every (B, 3) missing indicator and of the Philox counter."""

FILE_KEYS = {"a": "audio", "t": "text", "v": "vision"}

NAMES = {"a": "audio", "t": "text", "v": "vision"}


def parse_available(text: str) -> tuple[str, ...]:
    """Read a set of available modalities such as ``"t,a"``, ``"ta"`` or ``"text,audio"``.

    Returns the letters in the order of `MODALITIES`.

    Raises:
        UsageError: an unknown or repeated modality, or none at all.
    """
    from .errors import UsageError

    letters = {name: letter for letter, name in NAMES.items()}
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and parts[0] not in letters:
        parts = list(parts[0])
    chosen = [letters.get(part, part) for part in parts]
    unknown = [part for part in chosen if part not in MODALITIES]
    if unknown or len(set(chosen)) != len(chosen):
        raise UsageError(
            f"available: must name each of a, t, v at most once, got {text!r}. Write for example --available t,a."
        )
    if not chosen:
        raise UsageError("available: all modalities are unavailable. Name at least one, for example --available t.")
    return tuple(m for m in MODALITIES if m in chosen)
