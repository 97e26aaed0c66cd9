"""Run directories: never two runs in one place, never half a file, exact cutting back."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from rohydr_fast.errors import DataError, FileAccessError, RunDirectoryBusy, UsageError
from rohydr_fast.training.run_directory import RunDirectory, file_name, write_atomic

from .at_once import started_at_once


@pytest.fixture
def run(tmp_path):
    run = RunDirectory.create(tmp_path / "run", "name")
    run.write_config({"seed": 1, "data": "synthetic"})
    return run


class TestCreate:
    def test_default_place_has_the_name_and_never_collides(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        paths = {RunDirectory.create(None, "mosi-{a,t}-s1").path for _ in range(3)}
        assert len(paths) == 3
        assert all(path.parent.name == "runs" and path.name.startswith("mosi-a-t-s1-") for path in paths)

    def test_an_empty_directory_and_one_with_only_a_lock_are_new(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.lock").touch()
        assert RunDirectory.create(tmp_path / "out", "x").path == tmp_path / "out"

    def test_a_run_is_not_overwritten(self, run):
        with pytest.raises(UsageError, match="holds a run. Use --resume .*run or another --out"):
            RunDirectory.create(run.path, "x")

    def test_other_files_are_not_touched(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UsageError, match="other files and no run. Use another --out, or --resume"):
            RunDirectory.create(tmp_path, "x")
        with pytest.raises(UsageError, match="must be a directory"):
            RunDirectory.create(tmp_path / "thesis.tex", "x")


class TestOpen:
    def test_finds_a_run(self, run):
        opened = RunDirectory.open(run.path)
        assert opened.read_config() == {"seed": 1, "data": "synthetic"}
        assert opened.checkpoint("best") == run.path / "checkpoints" / "best"

    def test_refuses_what_is_no_run(self, tmp_path):
        with pytest.raises(FileAccessError, match="no directory"):
            RunDirectory.open(tmp_path / "nothing")
        with pytest.raises(DataError, match="one without config.yaml"):
            RunDirectory.open(tmp_path)

    @pytest.mark.parametrize("content", [b"- a\n", b"a: [", b"\xff\xfe\x00", b""])
    def test_a_config_that_is_no_mapping_is_refused(self, run, content):
        (run.path / "config.yaml").write_bytes(content)
        with pytest.raises(DataError, match="config.yaml: must hold a YAML mapping"):
            run.read_config()


class TestMetricsLog:
    def test_rows_come_back_and_the_file_depends_on_the_rows_only(self, run, tmp_path):
        other = RunDirectory.create(tmp_path / "other", "x")
        rows = [{"epoch": 1, "S1": 0.1 + 0.2}, {"epoch": 2, "Corr": None}]
        for row in rows:
            run.append(row)
            other.append(row)
        assert run.rows() == rows
        assert (run.path / "metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()
        run.append_timing({"seconds": 1.5})
        assert json.loads((run.path / "timing.jsonl").read_text()) == {"seconds": 1.5}

    def test_cutting_back_to_an_offset_forgets_exactly_what_came_later(self, run):
        assert run.offset() == 0
        run.append({"epoch": 1})
        offset = run.offset()
        before = (run.path / "metrics.jsonl").read_bytes()
        run.append({"epoch": 2})
        run.truncate(offset)
        assert (run.path / "metrics.jsonl").read_bytes() == before
        run.truncate(0)
        assert run.rows() == []

    def test_cutting_back_to_a_place_that_the_file_does_not_have_is_refused(self, run):
        run.truncate(0)
        with pytest.raises(DataError, match="ends at byte 5, as the checkpoint says, got 0 bytes"):
            run.truncate(5)
        run.append({"epoch": 1})
        for offset in (run.offset() - 1, run.offset() + 1):
            with pytest.raises(DataError, match="metrics.jsonl: must have a line that ends"):
                run.truncate(offset)

    def test_nan_is_refused_and_nothing_is_written(self, run):
        with pytest.raises(UsageError, match="without NaN or infinity"):
            run.append({"loss": float("nan")})
        assert not (run.path / "metrics.jsonl").exists()

    def test_an_unfinished_last_line_is_left_out_and_a_broken_one_is_named(self, run):
        run.append({"epoch": 1})
        with open(run.path / "metrics.jsonl", "ab") as file:
            file.write(b'{"epoch": ')
        assert run.rows() == [{"epoch": 1}]
        with open(run.path / "metrics.jsonl", "ab") as file:
            file.write(b"\n")
        with pytest.raises(DataError, match="line 2 must be a JSON object"):
            run.rows()

    def test_a_full_disk_leaves_no_half_line(self, run, monkeypatch):
        run.append({"epoch": 1})
        original = os.write

        def short_then_full(descriptor, data):
            monkeypatch.setattr(os, "write", full)
            return original(descriptor, bytes(data[:4]))

        def full(descriptor, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", short_then_full)
        with pytest.raises(OSError, match="No space left") as caught:
            run.append({"epoch": 2})
        assert caught.value.filename == str(run.path / "metrics.jsonl")
        monkeypatch.setattr(os, "write", original)
        run.append({"epoch": 3})
        assert run.rows() == [{"epoch": 1}, {"epoch": 3}]


class TestFiles:
    def test_results_are_written_and_only_they(self, run):
        run.write_environment({"torch": "2.13"})
        run.write_metrics({"test": {"MAE": 0.9, "Corr": None}})
        run.write_table("| a |\n")
        path = run.write_predictions("test", "{a,t}", {"prediction": [0.5, 1.0], "id": ["x", "y"]})
        assert path == run.path / "predictions" / "test-a-t.npz"
        with np.load(path, allow_pickle=False) as arrays:
            assert arrays["prediction"].tolist() == [0.5, 1.0] and arrays["id"].tolist() == ["x", "y"]
        assert json.loads((run.path / "metrics.json").read_text())["test"]["MAE"] == 0.9
        names = {entry.name for entry in run.path.iterdir()}
        assert names == {"config.yaml", "env.json", "metrics.json", "table.md", "predictions"}

    def test_predictions_that_need_pickle_are_refused(self, run):
        with pytest.raises(UsageError, match="id must hold numbers or text"):
            run.write_predictions("test", "x", {"id": np.array([None, {}], dtype=object)})

    @pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, call):
        path = tmp_path / "table.md"
        write_atomic(path, b"old")

        def fail(place, *args, **kwargs):
            known = () if isinstance(place, int) else (str(place),)  # of a descriptor the system knows no name
            raise OSError(errno.ENOSPC, "No space left on device", *known)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(OSError, match="No space left") as caught:
                write_atomic(path, b"new")
        assert caught.value.filename == str(path)
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("exact 0.5", "exact-0.5"), ("{a,t,v}", "a-t-v"), ("../../x", "x"), ("", "run")],
    )
    def test_names_become_file_names(self, name, expected):
        assert file_name(name) == expected


HOLD = """
import sys
from rohydr_fast.training.run_directory import RunDirectory
with RunDirectory.open(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


class TestLock:
    def test_a_second_process_is_refused_with_the_first_one_s_id_until_it_dies(self, run):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RunDirectoryBusy, match=f"got process {holder.pid} training in it") as caught:
                with run.lock():
                    pass
            assert caught.value.exit_code == 75
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with run.lock():
                pass
        finally:
            holder.kill()
            holder.communicate()

    def test_it_is_free_again_after_an_error(self, run):
        with pytest.raises(RuntimeError, match="stop"), run.lock():
            with pytest.raises(RunDirectoryBusy, match=f"process {os.getpid()} "), run.lock():
                pass
            raise RuntimeError("stop")
        with run.lock():
            pass

    def test_it_does_not_outlive_the_training_in_forked_workers(self, run):
        read, write = os.pipe()
        with run.lock():
            child = os.fork()
            if child == 0:
                os.close(write)
                os.read(read, 1)  # until the parent is done
                os._exit(0)
        try:
            with run.lock():
                pass
        finally:
            os.close(write)
            os.close(read)
            os.waitpid(child, 0)


def test_of_several_that_start_at_once_one_trains_and_the_others_name_it(tmp_path):
    imports = (
        "from pathlib import Path; from rohydr_fast.training.run_directory import RunDirectory\n"
        "from rohydr_fast.errors import RunDirectoryBusy"
    )
    code = (
        "try:\n"
        "    run = RunDirectory.create(Path(sys.argv[1]), 'run')\n"
        "    with run.lock():\n"
        "        run.check_new(); run.write_config({'a': 1})\n"
        "        print('trains', flush=True); sys.stdin.readline()\n"
        "except RunDirectoryBusy as error:\n"
        "    print(error, flush=True); sys.exit(error.exit_code)\n"
    )
    with started_at_once(50, imports, code, str(tmp_path / "run")) as processes:
        said = [process.stdout.readline() for process in processes]
        trainers = [process for process, line in zip(processes, said, strict=True) if line == "trains\n"]
        assert len(trainers) == 1
        assert sum(f"process {trainers[0].pid} training in it" in line for line in said) == 49
        codes = [process.wait() if process not in trainers else process.communicate("\n") for process in processes]
        assert codes.count(75) == 49 and trainers[0].returncode == 0
