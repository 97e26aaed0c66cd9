"""What every contender of a benchmark declares: how it is made, how exact it must be, and why it may not be there."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import rohydr_fast


@dataclass(frozen=True)
class Provider:
    """How a contender is made, and why it may not be there.

    `exact` ones must be as exact as float32 is; the others are opponents, of whom only the right result is asked.
    """

    build: Callable
    packages: tuple[str, ...] = ()
    exact: bool = False
    unusable: Callable[[], str | None] = lambda: None

    def reason(self) -> str | None:
        """Why it cannot run here, as a sentence with the remedy; None when it can."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"not installed: {', '.join(missing)}. Run: pip install {' '.join(missing)}, or -e '.[bench]'."
        return self.unusable()


def no_compiler() -> str | None:
    """Why torch.compile cannot run here."""
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"torch.compile needs a C++ compiler, and {compiler} is not there."


def no_fused_loop() -> str | None:
    """Why the native core cannot run here."""
    usable, reason = next(row[1:] for row in rohydr_fast.explain("reverse_loop") if row[0] == "cpp")
    return None if usable else reason
