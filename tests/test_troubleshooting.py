"""Every message that docs/troubleshooting.md quotes is one that the package makes, and bad input prints it."""

import ast
import pickle
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from rohydr_fast.training.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parent.parent
QUOTE = re.compile(r"\*\*`(.+?)`\*\*")
TINY = ("--data", "synthetic:16/8/8", "--epochs", "1", "--patience", "0")


@cache
def quotes() -> tuple[str, ...]:
    return tuple(QUOTE.findall((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")))


def pattern(quote: str) -> re.Pattern:
    """What differs, "...", is any text; the rest stands as it is."""
    return re.compile(".*?".join(re.escape(part) for part in quote.split("...")), re.S)


@cache
def texts() -> tuple[str, ...]:
    """The texts of the package's sources but docstrings, each f-string whole, with NUL for what differs."""
    found = []
    for path in [ROOT / "setup.py", *(ROOT / "rohydr_fast").rglob("*.py")]:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        said = {node.value for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if node in said:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    for path in (ROOT / "csrc" / "cpu").glob("*.cpp"):
        for statement in path.read_text(encoding="utf-8").split(";"):
            found.append("\0".join(re.findall(r'"((?:[^"\\]|\\.)*)"', statement)))
    return tuple(found)


def test_the_page_quotes_enough():
    assert len(quotes()) >= 40


@pytest.mark.parametrize("quote", quotes())
def test_each_quoted_message_is_in_the_sources(quote):
    assert max(len(part) for part in quote.split("...")) >= 10
    assert any(pattern(quote).search(text) for text in texts())


def test_links_lead_somewhere():
    for link, anchor in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", (ROOT / "docs" / "troubleshooting.md").read_text()):
        target = ROOT / "docs" / link
        heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
        assert not anchor or anchor in [head.lower().replace(" ", "-") for head in heads], (link, anchor)


def split(**changes) -> dict:
    rng, clips = np.random.default_rng(0), 8
    values = {name: rng.normal(size=(clips, 4, 3)).astype("f4") for name in ("audio", "text", "vision")}
    values |= {"regression_labels": rng.uniform(-3, 3, clips).astype("f4"), "id": [f"clip{i}" for i in range(clips)]}
    return {key: value for key, value in (values | changes).items() if value is not None}


def with_nan() -> np.ndarray:
    values = split()["audio"]
    values[0, 0, 0] = np.nan
    return values


class Call:
    def __reduce__(self):
        return print, ("this must not run",)


ABSENT = dict.fromkeys(("audio", "vision"), np.zeros((8, 1, 1), "f4"))
FILES = {
    "empty": (b"", ": the file must hold data, got an empty file."),
    "broken off": (pickle.dumps(split())[:500], "the pickle ends too early: it is truncated."),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "this is a git-lfs pointer, not the data."),
    "page": (b"<!DOCTYPE html><html></html>", "this is a web page, not the data."),
    "call": (pickle.dumps({"train": Call()}), "a data pickle must hold only numpy arrays, lists, dicts"),
    "splits": ({"train": split(), "dev": split(), "test": split()}, ": the splits must be train, valid and test, got"),
    "key": (dict.fromkeys(("train", "valid", "test"), split(vision=None)), ": the key vision is missing."),
    "label": (dict.fromkeys(("train", "valid", "test"), split(regression_labels=np.arange(8.0))), "lie in [-3, 3]"),
    "NaN": (dict.fromkeys(("train", "valid", "test"), split(audio=with_nan())), "Use --nonfinite zero to read them"),
}


def printed(capsys, command: str, *arguments) -> str:
    """The last line of a command line's messages, after its name."""
    assert import_module(f"rohydr_fast.{command}").main([str(argument) for argument in arguments]) != 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert ": error: " in line
    return line.split(": error: ", 1)[1]


def is_quoted(message: str, words: str) -> bool:
    """The message has these words, and is one that the page quotes."""
    return words in message and any(pattern(quote).search(message) for quote in quotes())


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_prints_a_quoted_message(case, tmp_path, capsys):
    content, words = FILES[case]
    path = tmp_path / "x.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    assert is_quoted(printed(capsys, "data.__main__", "check", path), words)


CALLS = {
    "no file": (("--data", "absent.pkl"), {}, ": the file does not exist. Check the path."),
    "no container": (("--data", "pyproject.toml"), {}, ": a data file's name must end in"),
    "rate": (("--missing-rate", "most"), {}, "--missing-rate: must be a number in [0, 1]"),
    "no run": (("--resume", "absent"), {}, ": must be the directory of a run, got no directory."),
    "none of them": (("--resume", "auto", "--out", "absent"), {}, ": must hold a run to go on with, got none."),
    "two runs": (("--resume", "absent", "--lr", "0.5"), {}, "--resume: must stand without other settings, got --lr."),
    "backend": (("--backend", "triton"), {}, "backend must be usable, got 'triton', which is not: "),
    "device": (("--device", "cuda:77"), {}, "--device: must be a device of this machine, got"),
    "instruction set": ((), {"ROHYDR_FAST_CPU": "sse9"}, "(usable here), got 'sse9'"),
    "processes": ((), {"WORLD_SIZE": "2", "RANK": "0"}, "torchrun: WORLD_SIZE is 2, and the other processes"),
    "memory": (("--max-memory", "1", "--preset", "wide", "--steps", "50"), {}, "be at least 7680000 bytes (8 MiB)"),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_bad_call_prints_a_quoted_message(case, tmp_path, capsys, monkeypatch):
    options, environment, words = CALLS[case]
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    settings = () if "--resume" in options else TINY  # which has those of the run
    assert is_quoted(printed(capsys, "train", *settings, *options), words)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (ABSENT, (), "data: must have at least two modalities to recover one from another, got"),
        ({}, ("--method", "gcnet"), ": must have clips in conversation order, with ids such as video$_$3, got"),
        ({}, ("--folds", "5", "--fold", "1"), ": --folds needs ids that name a video, such as video$_$3, got"),
    ],
    ids=["one modality", "conversations", "folds"],
)
def test_a_file_that_cannot_serve_prints_a_quoted_message(changes, options, words, tmp_path, capsys):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(dict.fromkeys(("train", "valid", "test"), split(**changes))))
    assert is_quoted(printed(capsys, "train", "--data", path, "--out", tmp_path / "run", *options), words)


def test_a_run_that_fails_prints_quoted_messages(tmp_path, capsys, one_thread):
    run = tmp_path / "run"
    message = printed(capsys, "train", *TINY, "--lr", "1e30", "--out", run)
    assert is_quoted(message, "training: L_D is nan in epoch 1, batch 0, S2. Start a new run")
    assert "The reverse chain of audio is not finite from step 5 of 5 down" in message
    assert is_quoted(printed(capsys, "train", *TINY, "--out", run), "--out: must be new, got")
    (tmp_path / "mine.txt").write_text("mine")
    assert is_quoted(printed(capsys, "train", *TINY, "--out", tmp_path), "--out: must be new or empty, got")
    assert is_quoted(printed(capsys, "report", run, "--out", tmp_path / "a"), "training is not finished, there is no")
    with RunDirectory.open(run).lock():
        assert is_quoted(printed(capsys, "train", "--resume", run), ": must be free, got process")
    (tmp_path / "empty").mkdir()
    words = "report: must be given at least one run, got"
    assert is_quoted(printed(capsys, "report", tmp_path / "empty", "--out", tmp_path / "b"), words)
    words = ": must hold a trained model, got no config.json."
    options = ("--model", tmp_path / "empty", "--out", tmp_path / "x.safetensors")
    assert is_quoted(printed(capsys, "sample", "synthetic:16/8/8", *options), words)
