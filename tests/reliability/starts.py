"""Training processes that come to one directory at once: one trains, the others say which, and nothing is spoilt."""

import signal
import tempfile
from pathlib import Path

from rohydr_fast.errors import EXIT_BUSY, EXIT_SIGTERM
from rohydr_fast.training.checkpoint import load_checkpoint
from tests.training.at_once import started_at_once

from .runs import small_run

IMPORTS = "from rohydr_fast import train\nfrom rohydr_fast.training import experiment, several"
EPOCHS = 100_000
"""More than the one that trains gets to before the last of the others has said its sentence."""


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` processes, which the system brings into an order of its own: nothing is drawn from `seed`."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        options = [*small_run(Path(name), EPOCHS), "--out", str(out)]
        with started_at_once(count, IMPORTS, "sys.exit(train.main(sys.argv[1:]))", *options) as processes:
            said = [process.stdout.readline() for process in processes]
            refused = [process for process, line in zip(processes, said, strict=True) if "error:" in line]
            trains = [process for process in processes if process not in refused]
            assert len(trains) == 1, said
            for process, line in zip(processes, said, strict=True):
                if process in refused:
                    assert f"process {trains[0].pid} training in it" in line, line
                    assert process.wait() == EXIT_BUSY, line
            trains[0].send_signal(signal.SIGTERM)
            errors = trains[0].communicate()[0]
            assert trains[0].returncode == EXIT_SIGTERM and f"--resume {out}" in errors, errors
        load_checkpoint(out / "checkpoints" / "last")
        left = {path.name for path in out.iterdir()}
        expected = {"config.yaml", "env.json", "metrics.jsonl", "checkpoints", "run.lock"}
        assert left == expected, f"{sorted(left)} are in the directory"
    return {"starts": count, "trained": len(trains), "refused": len(refused)}
