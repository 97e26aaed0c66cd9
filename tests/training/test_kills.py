"""kill -9 while a checkpoint is saved: what is there can be read, and is no older than what was finished."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork, which this system has not")
def test_every_checkpoint_can_be_read_after_a_kill(repo_root):
    """In a process of its own: forking one that has threads is no test of saving."""
    command = [sys.executable, "-m", "tests.training.kills", "300", "1"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["readable"] == counts["kills"] == 300
    assert counts["broken off"] > 30, "hardly any kill came in the middle of a save"
