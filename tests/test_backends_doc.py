"""The example of docs/backends.md must work as shown; in a process of its own, which keeps what it registers."""

import re

from .documents import python_of, run_python


def test_the_example_runs_as_shown(repo_root):
    path = repo_root / "docs" / "backends.md"
    code, text = python_of(path), path.read_text()
    printed = run_python(code + "\nassert 'mine' not in str(rf.explain('cross_attention'))\n", repo_root).splitlines()
    shown = re.search(r"prints\n\n```\n(.*?)```", text, re.S).group(1).splitlines()
    assert [line.split()[0] for line in printed[: len(shown)]] == [line.split()[0] for line in shown]
    assert printed[len(shown) - 1].startswith("  mine      yes  numpy ")
    assert "got 'mine', which is not: mine computes float32, and these are torch.float64. Usable: " in printed[-1]


def test_every_file_that_it_names_exists(repo_root):
    text = (repo_root / "docs" / "backends.md").read_text()
    tests = re.findall(r"`((?:ops|kernels)/[\w/]+\.py)`", text.split("| helper in `tests` |")[1].split("\n\n")[0])
    named = [f"tests/{name}" for name in tests] + re.findall(r"`(benchmarks/\w+\.py)`", text)
    assert len(named) == 8 and all((repo_root / name).is_file() for name in named)
