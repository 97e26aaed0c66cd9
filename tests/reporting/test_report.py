"""``python -m rohydr_fast.report``: files, page, exit codes; and a real run from training to the page."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from rohydr_fast import report
from tests.reporting.run_directories import sweep, write_run

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Balanced(HTMLParser):
    """Checks that every tag is closed in order, and gathers what a page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.references = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.references.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()


def parsed(path) -> Balanced:
    parser = Balanced()
    parser.feed(path.read_text("utf-8"))
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture
def runs(tmp_path):
    return sweep(tmp_path / "runs", {"zero": 3.0, "rohydr": 1.0}, seeds=(1, 2), missing_rate="mixed")


def test_a_report_has_all_files_and_says_what_is_left_out(tmp_path, runs, capsys):
    write_run(runs / "stopped", seed=9, finished=False)
    write_run(runs / "again", seed=1, method="zero", missing_rate="mixed", evaluate=())
    out = tmp_path / "report"
    assert report.main([str(runs), "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    names = {path.name for path in out.iterdir()}
    assert {f"table{i}.{kind}" for i in range(1, 6) for kind in ("md", "csv", "tex")} < names
    assert {"comparisons.md", "comparisons.csv", "figure3.svg", "robustness.svg", "index.html", "report.json"} < names
    assert "figure4.svg" not in names and "Figure 4. Weights of the losses is left out" in captured.err
    assert "stopped is left out: training is not finished" in captured.err
    assert "seed 1 of the same settings" in captured.err and "again" in captured.err
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary == json.loads((out / "report.json").read_text()) and set(summary["files"]) == names
    assert [entry["path"].rsplit("/")[-1] for entry in summary["left_out"]] == ["stopped", "seed1"]
    assert summary["tables"]["table1"][0]["row"] == ["zero-fill"]
    assert "# Table 1" in captured.out and "# Table 3" in captured.out


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, runs):
    write_run(runs / "stopped", seed=9, finished=False)
    out = tmp_path / "report"
    report.main([str(runs), "--out", str(out)])
    page = parsed(out / "index.html")
    sections = {"table1", "table5", "comparisons", "figures", "cost", "classes", "clips", "runs", "left-out"}
    assert sections < set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags and "img" not in page.tags and "link" not in page.tags
    inside = {reference for reference in page.references if reference.startswith("#")}
    assert {reference[1:] for reference in inside} <= set(page.ids)
    links = set(page.references) - inside
    assert links == {f"../runs/{m}/seed{s}" for m in ("zero", "rohydr") for s in (1, 2)}
    assert all((out / link).is_dir() for link in links)
    text = (out / "index.html").read_text()
    assert not re.search(r"url\((?!#)|@import", text) and text.count('class="card"') == 20
    assert "not finished" in text and "c0ffee" in text and "5a5a5a" in text


def test_text_from_data_is_inert(tmp_path):
    nasty = "<script>alert(1)</script>\"'"
    write_run(tmp_path / "a <b>&", prefix=nasty, source=nasty, setting_of_the_future=nasty)
    write_run(tmp_path / "other", prefix=nasty, source=nasty)
    assert report.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page = parsed(tmp_path / "out" / "index.html")
    assert "script" not in page.tags
    text = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;script&gt;alert(1)" in text and "a%20%3Cb%3E%26" in text


def test_a_newer_report_leaves_nothing_of_an_older_one(tmp_path, runs):
    out = tmp_path / "report"
    report.main([str(runs), "--out", str(out)])
    (out / "mine.txt").write_text("kept")
    assert report.main([str(runs), "--out", str(out), "--tables-only"]) == 0
    names = {path.name for path in out.iterdir()}
    assert "mine.txt" in names and "index.html" not in names and "robustness.svg" not in names


def test_the_same_runs_give_the_same_bytes(tmp_path, runs):
    for name in ("one", "two"):
        report.main([str(runs), "--out", str(tmp_path / name / "report")])
    for path in (tmp_path / "one" / "report").iterdir():
        if path.name != "report.json":  # it names its directory
            assert path.read_bytes() == (tmp_path / "two" / "report" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["{runs}"], 2, "--out"),
        (["--out", "{out}"], 2, "--help"),
        (["{empty}", "--out", "{out}"], 2, "at least one run"),
        (["{runs}/nothing", "--out", "{out}"], 74, "Check the path"),
        (["{runs}", "--out", "{runs}/zero/seed1"], 2, "a file or a run"),
        (["{runs}", "--out", "{out}", "--split", "train"], 2, "--split"),
        (["{runs}", "--out", "{out}", "--against", "nobody"], 2, "--against"),
        (["{runs}", "--out", "{out}", "--data-sha256", "00"], 65, "no run is left"),
    ],
)
def test_wrong_calls_are_one_sentence_and_write_nothing(tmp_path, runs, capsys, argv, code, words):
    (tmp_path / "empty").mkdir()
    places = {"runs": runs, "out": tmp_path / "out", "empty": tmp_path / "empty"}
    assert report.main([word.format(**places) for word in argv]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "error:" in lines[0] and words in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(tmp_path, runs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.main([str(runs), "--out", str(tmp_path / "out")]) == 2
    assert 'need matplotlib, which is not installed. Run: pip install "rohydr_fast[viz]"' in capsys.readouterr().err
    assert report.main([str(runs), "--out", str(tmp_path / "out"), "--tables-only"]) == 0


def test_the_valid_split_is_never_set_beside_the_paper(tmp_path, capsys):
    write_run(tmp_path / "run", source="mosi.pkl", clips=686, evaluate=("rates",))
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--tables-only"]) == 0
    assert "82.45" in (tmp_path / "out" / "table1.md").read_text()
    arguments = [str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--tables-only", "--split", "valid"]
    assert report.main(arguments) == 0
    assert "82.45" not in (tmp_path / "out" / "table1.md").read_text()


@pytest.mark.usefixtures("one_thread")
def test_from_training_to_the_page(tmp_path, capsys):
    """Real runs of a real model: what training and evaluation write is what the report reads."""
    import numpy as np

    from rohydr_fast import evaluate, train
    from rohydr_fast.data import containers
    from tests.small_data import small_dataset

    dataset, tree = small_dataset(test=12), {}
    for split in (dataset.train, dataset.valid, dataset.test):
        keys = {"a": "audio", "t": "text", "v": "vision"}
        features = {keys[m]: x for m, x in split.features.items()}
        tree[split.name] = {**features, "regression_labels": split.labels, "id": np.array(split.ids)}
    data = tmp_path / "data.npz"
    containers.write(tree, str(data))
    quick = ["--data", str(data), "--epochs", "1", "--steps", "2", "--batch-size", "5", "--missing-rate", "mixed"]
    for name, more in (("full", []), ("zero", ["--without", "hddm,ur"])):
        out = tmp_path / "runs" / name
        assert train.main([*quick, *more, "--seeds", "1", "2", "--out", str(out)]) == 0
        for protocol in ("rates", "fixed"):
            assert evaluate.main([str(out / "seed1"), str(out / "seed2"), "--protocol", protocol]) == 0
    capsys.readouterr()
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [group["label"] for group in summary["groups"]] == ["RoHyDR without HDDM, UR", "RoHyDR"]
    assert summary["left_out"] == [] and len(summary["comparisons"]) == 16
    stored = json.loads((tmp_path / "runs" / "full" / "seed1" / "evaluations" / "fixed-test.json").read_text())
    cell = next(row for row in summary["tables"]["table2"] if row["row"] == ["RoHyDR"])["cells"]["{a}"]["MAE"]
    other = json.loads((tmp_path / "runs" / "full" / "seed2" / "evaluations" / "fixed-test.json").read_text())
    assert cell[0] == pytest.approx((stored["rows"]["{a}"]["MAE"] + other["rows"]["{a}"]["MAE"]) / 2) and cell[2] == 2
    parsed(tmp_path / "out" / "index.html")
