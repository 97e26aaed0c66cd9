"""These files are for a process with TRITON_INTERPRET=1, which `test_interpreted.py` one folder up starts for each."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
