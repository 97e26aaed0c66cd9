"""Python in documents, which must run as it is shown."""

import re
import subprocess
import sys
from pathlib import Path


def python_of(path: Path) -> str:
    """All blocks of Python of a document, one after the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))


def run_python(code: str, folder: Path) -> str:
    """What it prints, in a process of its own that starts in `folder`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
