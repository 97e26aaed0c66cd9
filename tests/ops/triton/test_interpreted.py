"""Runs the files of `interpreted/` with TRITON_INTERPRET=1, a process for each: Triton reads it when it is imported.

To run one by hand: ``TRITON_INTERPRET=1 pytest tests/ops/triton/interpreted``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rohydr_fast.ops.triton import status

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))

pytestmark = [
    pytest.mark.skipif(status.installed()[0] is None, reason=status.installed()[1]),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: they run themselves"),
]


@pytest.mark.parametrize("file", FILES)
def test_with_the_interpreter(file, repo_root):
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    variables.pop("ROHYDR_FAST_BACKEND", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)]
    done = subprocess.run(command, cwd=repo_root, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed in", done.stdout, re.MULTILINE)  # and none that was skipped
    assert passed and int(passed[1]) > 0, done.stdout[-2000:]
