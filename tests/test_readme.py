"""What README shows must work as shown."""

import re

from .documents import python_of, run_python


def test_the_python_examples_run_one_after_the_other(repo_root):
    code = python_of(repo_root / "README.md")
    code += "\nassert sentiment.shape == (4,) and sentiment.isfinite().all()"
    code += "\nassert x_0.shape == (8, 50, 32) and x_0.isfinite().all()\n"
    run_python(code, repo_root)


def test_the_tutorial_runs_as_shown(repo_root, tmp_path):
    code = python_of(repo_root / "docs" / "tutorial.md")
    run_python(code + "\nassert found.prediction.shape == (8,) and (found.low < found.high).all()\n", tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"tutorial", "results.csv", "recovered.svg", "mine.npz", "mine", "shared"}


def test_every_linked_file_exists(repo_root):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (repo_root / "README.md").read_text())
    assert links and all((repo_root / link).exists() for link in links)


def test_every_documented_option_exists(repo_root):
    from rohydr_fast import evaluate, export, report, sweep, train
    from rohydr_fast.sample import parser as sample_parser

    text = (repo_root / "README.md").read_text()
    commands = {"train": train, "evaluate": evaluate, "sweep": sweep, "report": report, "export": export}
    parsers = {name: module.parser() for name, module in commands.items()} | {"sample": sample_parser()}
    for command, parser in parsers.items():
        usage = re.search(rf"python -m rohydr_fast\.{command} .*?(?=\npython|\n```)", text, re.S).group()
        known = {word for action in parser._actions for word in action.option_strings}
        assert set(re.findall(r"--[a-z-]+", usage)) <= known
