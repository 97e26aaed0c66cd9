"""Ctrl-C and SIGTERM: finish the step, save, say how to go on."""

import signal
from types import FrameType

from ..errors import EXIT_SIGINT, EXIT_SIGTERM, RohydrError


class Interrupted(RohydrError):
    """Training stopped on a signal, with a checkpoint written."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = _exit_code(signal_number)


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came before the step was finished."""

    def __init__(self, signal_number: int):
        super().__init__()
        self.exit_code = _exit_code(signal_number)


def _exit_code(signal_number: int) -> int:
    return EXIT_SIGTERM if signal_number == signal.SIGTERM else EXIT_SIGINT


class StopRequest:
    """While active, SIGINT and SIGTERM are noted in `signal_number`; a second one acts at once.

    Signals reach the main thread only; elsewhere this notes nothing.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread
            self._previous.clear()
        return self

    def __exit__(self, *exception) -> None:
        self.end()

    def end(self) -> None:
        """Signals act as they did before; what was noted stays."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise StoppedAtOnce(number)
        self.signal_number = number
