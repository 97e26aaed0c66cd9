"""What Python reports of a stretch of code that must execute, import and open nothing."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FORBIDDEN = ("exec", "compile", "import", "pickle.", "marshal.", "ctypes.", "os.", "subprocess.", "socket.", "shutil.")
"""How the names of events begin that reading data has no need of."""


class _Hook:
    """Python cannot take a hook away again: there is one, added at the first use, and told when to listen."""

    def __init__(self) -> None:
        self.added, self.listens, self.opens, self.thread = False, False, "", 0
        self.events: list[str] = []

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.listens or threading.get_ident() != self.thread:
            return
        if event.startswith(FORBIDDEN) or (event == "open" and self._is_other(arguments[0])):
            self.events.append(f"{event} {arguments!r:.200}")

    def _is_other(self, path: object) -> bool:
        return path != self.opens and not isinstance(path, int)  # a number is a file that is open already


_HOOK = _Hook()


@contextmanager
def audited(opens: str = "") -> Iterator[list[str]]:
    """Gives a list that fills with what this thread does of it in the block; the file `opens` may be opened."""
    if not _HOOK.added:
        sys.addaudithook(_HOOK)
        _HOOK.added = True
    _HOOK.events, _HOOK.opens, _HOOK.thread, _HOOK.listens = [], opens, threading.get_ident(), True
    try:
        yield _HOOK.events
    finally:
        _HOOK.listens = False
