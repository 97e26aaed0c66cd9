"""One call for every source of data."""

from . import mmsa
from .dataset import Dataset


def load(source: str, *, nonfinite: str = "error", seed: int = 0) -> Dataset:
    """Load synthetic data or an MMSA-format file (.pkl, .npz, .safetensors) and check it.

    Args:
        source: the word synthetic, synthetic:TRAIN/VALID/TEST for other numbers of clips, or a path.
        nonfinite: "error" refuses NaN and infinities in features, "zero" reads them as 0. (-inf in audio is always 0.)
        seed: of the synthetic data.

    Raises:
        DataError: the file does not hold what it must.
        FileAccessError: it cannot be read.
        UsageError: an unknown `nonfinite`, or impossible numbers of clips.
    """
    if is_synthetic(source):
        from .synthetic import clips_of, generate  # here: it is a command too, which must not be loaded before it runs

        return generate(seed, clips_of(source))
    return mmsa.read(source, nonfinite=nonfinite)[0]


def is_synthetic(source: str) -> bool:
    """Whether `source` asks for synthetic data; a file of that name is ``./synthetic``."""
    return source.partition(":")[0] == "synthetic"
