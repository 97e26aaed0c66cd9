"""Progress: plain lines off a terminal, bars on one, never stdout."""

import io
import subprocess
import sys

import pytest

from rohydr_fast.training.progress import Progress


class Clock:
    """Seconds that pass when the test says so."""

    now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def run(stream, clock, *, epochs=2, batches=4, seconds=1.0, interval=2.0, first=1):
    with Progress(epochs, batches, stream=stream, interval=interval, clock=clock) as progress:
        for epoch in range(first, epochs + 1):
            progress.epoch(epoch)
            for batch in range(1, batches + 1):
                clock.now += seconds
                progress.batch(batch, {"S1": 0.5, "S2": 1.25, "S3": 2.0}, samples=32)
        progress.message("done [bold]100%[/bold]")


def test_lines_come_at_the_interval_and_at_the_end_of_each_epoch():
    stream = io.StringIO()
    run(stream, Clock(), seconds=1.0, interval=3.0)
    lines = stream.getvalue().splitlines()
    assert [line.split("  S1")[0] for line in lines[:-1]] == [
        "epoch 1/2  batch 3/4",
        "epoch 1/2  batch 4/4",
        "epoch 2/2  batch 3/4",
        "epoch 2/2  batch 4/4",
    ]
    assert lines[0].endswith("S1 0.5  S2 1.25  S3 2  32 samples/s  0:00:05 left")
    assert lines[-2].endswith("0:00:00 left")
    assert lines[-1] == "done [bold]100%[/bold]"


def test_without_a_due_line_only_the_ends_of_epochs_are_written():
    stream = io.StringIO()
    run(stream, Clock(), interval=1e9)
    assert len(stream.getvalue().splitlines()) == 2 + 1


def test_a_resumed_run_counts_only_its_own_batches_for_the_speed():
    stream = io.StringIO()
    run(stream, Clock(), epochs=10, first=9, seconds=2.0, interval=1.0)
    assert stream.getvalue().splitlines()[0] == (
        "epoch 9/10  batch 1/4  S1 0.5  S2 1.25  S3 2  16 samples/s  0:00:14 left"
    )


def test_hours_and_not_a_number_are_written():
    stream, clock = io.StringIO(), Clock()
    with Progress(1, 10_000, stream=stream, interval=0.0, clock=clock) as progress:
        progress.epoch(1)
        clock.now += 1.0
        progress.batch(1, {"S1": float("nan")}, samples=1)
    assert "S1 nan" in stream.getvalue() and "2:46:39 left" in stream.getvalue()


def test_a_clock_that_stands_still_gives_no_speed():
    stream = io.StringIO()
    run(stream, Clock(), seconds=0.0)
    assert "samples/s" not in stream.getvalue()


def test_a_terminal_gets_bars_and_messages_as_they_are():
    stream = Terminal()
    run(stream, Clock())
    text = stream.getvalue()
    assert "\x1b[" in text and "━" in text
    assert "2/2" in text and "4/4" in text and "32 samples/s" in text
    assert "done [bold]100%[/bold]" in text


def test_many_losses_on_a_narrow_terminal_leave_the_bars_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with Progress(10, 40, stream=stream) as progress:
        progress.epoch(5)
        progress.batch(20, {f"loss{i}": 1.0 / 3 for i in range(12)}, samples=1)
    *_, epochs, batches, _ = stream.getvalue().split("\n")[-3:]
    assert "━" in epochs and " 4/10" in epochs and "samples/s" in epochs
    assert "━" in batches and "20/40" in batches and "loss0" in batches and "loss11" not in batches


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    run(stream, Clock())
    assert "\x1b[" not in stream.getvalue() and "epoch 2/2  batch 4/4" in stream.getvalue()


def test_an_error_inside_leaves_the_terminal_in_order():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(1, 1, stream=stream) as progress:
        progress.epoch(1)
        raise KeyboardInterrupt
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_nothing_goes_to_stdout(capsys):
    with Progress(1, 1) as progress:
        progress.epoch(1)
        progress.batch(1, {"S1": 1.0}, samples=1)
        progress.message("hello")
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err


def test_rich_is_imported_only_when_it_is_used():
    code = "import sys, rohydr_fast.training.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
