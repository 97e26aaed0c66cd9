"""Progress of training on stderr: two bars on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO


class Progress:
    """Context manager that shows epoch, batch, losses per stage, samples per second and the time left.

    On a terminal (as rich decides, from the stream, TERM, NO_COLOR and FORCE_COLOR) it draws two bars; elsewhere it
    writes one line at most every `interval` seconds and one at the end of each epoch. Nothing goes to stdout.

    Args:
        total_epochs: epochs of the whole run; a resumed run starts in the middle.
        batches_per_epoch: batches of one epoch.
        stream: where to write; default the sys.stderr of the moment.
        interval: seconds between plain lines.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        total_epochs: int,
        batches_per_epoch: int,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total_epochs = total_epochs
        self.batches_per_epoch = batches_per_epoch
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval
        self._clock = clock
        self._epoch, self._batch, self._losses = 0, 0, {}
        self._batches, self._samples = 0, 0  # since the start of this process
        self._started = self._shown = clock()
        self._view = None

    def __enter__(self) -> "Progress":
        from rich.console import Console

        console = Console(file=self._stream)
        self._view = _Bars(console, self) if console.is_interactive else _Lines(self._stream)
        self._started = self._shown = self._clock()
        self._view.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._view.stop()

    def epoch(self, epoch: int) -> None:
        """Epoch number `epoch`, counted from 1, begins."""
        self._epoch, self._batch, self._losses = epoch, 0, {}
        self._view.epoch(self)

    def batch(self, batch: int, losses: Mapping[str, float], samples: int) -> None:
        """A batch of `samples` clips is done.

        Args:
            batch: batches of this epoch that are done, so 1 after the first.
            losses: what to show, for example ``{"S1": .., "S2": .., "S3": ..}``.
        """
        self._batch, self._losses = batch, dict(losses)
        self._batches += 1
        self._samples += samples
        now = self._clock()
        due = batch >= self.batches_per_epoch or now - self._shown >= self._interval
        if due:
            self._shown = now
        self._view.batch(self, due)

    def message(self, text: str) -> None:
        """Write one line of text, above the bars if there are any."""
        self._view.message(text)

    def losses(self) -> str:
        """``S1 0.123  S2 0.456  S3 0.789``."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self._losses.items())

    def speed(self) -> str:
        """``215 samples/s  0:03:12 left``, or nothing before the first batch."""
        elapsed = self._clock() - self._started
        if not self._batches or elapsed <= 0:
            return ""
        remaining = (self.total_epochs - self._epoch + 1) * self.batches_per_epoch - self._batch
        left = _duration(max(0, remaining) * elapsed / self._batches)
        return f"{self._samples / elapsed:.4g} samples/s  {left} left"

    def position(self) -> str:
        """``epoch 2/10  batch 12/41``."""
        return f"epoch {self._epoch}/{self.total_epochs}  batch {self._batch}/{self.batches_per_epoch}"


class _Lines:
    """Plain lines for files and pipes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def epoch(self, progress: Progress) -> None:
        pass

    def batch(self, progress: Progress, due: bool) -> None:
        if due:
            parts = (progress.position(), progress.losses(), progress.speed())
            self.message("  ".join(part for part in parts if part))

    def message(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class _Bars:
    """Two rich bars: speed beside the epochs, losses beside the batches."""

    def __init__(self, console, progress: Progress):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._console = console
        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        digits = len(str(max(progress.total_epochs, progress.batches_per_epoch)))
        self._taken = len("epoch ") + 12 + 1 + 2 * digits + 1 + 1  # longer text would squeeze the bars away
        self._epochs = self._rich.add_task("epoch", total=progress.total_epochs, text="")
        self._batches = self._rich.add_task("batch", total=progress.batches_per_epoch, text="")

    def start(self) -> None:
        self._rich.start()

    def stop(self) -> None:
        self._rich.stop()

    def epoch(self, progress: Progress) -> None:
        self._update(progress)

    def batch(self, progress: Progress, due: bool) -> None:
        self._update(progress)

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _update(self, progress: Progress) -> None:
        done = progress._batch >= progress.batches_per_epoch
        room = max(0, self._console.width - self._taken)
        self._rich.update(self._epochs, completed=progress._epoch - (not done), text=progress.speed()[:room])
        self._rich.update(self._batches, completed=progress._batch, text=progress.losses()[:room])


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
