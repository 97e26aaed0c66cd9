"""A run's directory: inputs written once, results appended, one training process at a time.

    config.yaml  env.json  metrics.jsonl  timing.jsonl  run.lock
    checkpoints/{last,best}/  predictions/{split}-{name}.npz
    table.md  metrics.json  evaluations/{protocol}-{split}.{json,md}
"""

import contextlib
import errno
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..errors import DataError, FileAccessError, RunDirectoryBusy, UsageError, naming

CONFIG = "config.yaml"
LOCK = "run.lock"
LOCK_WAITS = (0.02, 0.08)
"""Seconds before the lock is asked for again: who holds it needs a moment to write its number, or only looks."""


DOCUMENT_LIMIT = 1 << 26
"""Bytes of the largest JSON file that is read."""


class RunDirectory:
    """The files of one run; make one with `create` or `open`.

    Small files are written beside their place and renamed, so a reader sees the old or the new one, never half of it.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.watchers: list[Callable[[Mapping], None]] = []  # called with every row of metrics.jsonl

    @classmethod
    def create(cls, out: Path | None, name: str) -> "RunDirectory":
        """Make the directory of a new run: `out`, or ``runs/{name}-{date}-{time}``.

        Raises:
            UsageError: `out` is a file, holds a run already, or holds anything else.
            RunDirectoryBusy: another process trains in it.
            OSError: it cannot be made.
        """
        if out is None:
            return cls(_fresh_directory(Path("runs"), f"{file_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}"))
        out = Path(out)
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out: must be a directory, got the file {out}. Use another --out.")
        out.mkdir(parents=True, exist_ok=True)
        run = cls(out)
        try:
            run.check_new()
        except UsageError:
            if (out / LOCK).exists():
                with run.lock():  # that somebody trains there is the better reason
                    raise
            raise
        return run

    def check_new(self) -> None:
        """Nothing must be in the directory yet: to be asked again under the lock, for runs that start at once.

        Raises:
            UsageError: it holds a run, or anything else.
        """
        out = self.path
        if (out / CONFIG).exists():
            raise UsageError(f"--out: must be new, got {out}, which holds a run. Use --resume {out} or another --out.")
        if any(entry.name != LOCK for entry in out.iterdir()):
            raise UsageError(
                f"--out: must be new or empty, got {out}, which holds other files and no run. "
                "Use another --out, or --resume with the directory of a run."
            )

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Open the directory of an existing run.

        Raises:
            FileAccessError: there is no such directory.
            DataError: it is not the directory of a run.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileAccessError(f"{path}: must be the directory of a run, got no directory. Check the path.")
        if not (path / CONFIG).is_file():
            raise DataError(f"{path}: must be the directory of a run, got one without {CONFIG}. Check the path.")
        return cls(path)

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint `name` (last, best) lies."""
        return self.path / "checkpoints" / name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for training. The system frees it when the process ends, however it ends.

        Raises:
            RunDirectoryBusy: another process holds it; the message has its process id.
        """
        import fcntl

        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            for wait in (*LOCK_WAITS, None):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if wait is not None:
                        time.sleep(wait)
                        continue
                    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                    raise RunDirectoryBusy(
                        f"{self.path}: must be free, got process {holder} training in it. "
                        "Wait for it, stop it, or use another --out."
                    ) from None
            with naming(self.path / LOCK):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough while forked workers share it
        finally:
            os.close(descriptor)

    def write_config(self, config: Mapping | str) -> None:
        """Store the resolved configuration: a mapping, or YAML text."""
        import yaml

        text = config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False)
        write_atomic(self.path / CONFIG, text.encode())

    def read_config(self) -> dict:
        """The stored configuration.

        Raises:
            DataError: it is not a YAML mapping.
        """
        import yaml

        try:
            config = yaml.safe_load((self.path / CONFIG).read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise DataError(f"{self.path / CONFIG}: must hold a YAML mapping, got something else. Restore the file.")
        return config

    def write_environment(self, environment: Mapping) -> None:
        """Store env.json: versions, machine, data checksum."""
        self._write_json("env.json", environment)

    def write_metrics(self, document: Mapping) -> None:
        """Store metrics.json, the result of an evaluation."""
        self._write_json("metrics.json", document)

    def write_calibration(self, radii: Mapping[str, float]) -> None:
        """Store calibration.json: half the width of intervals by available set, see `evaluation.calibrate`."""
        self._write_json("calibration.json", radii)

    def write_table(self, text: str) -> None:
        """Store table.md."""
        write_atomic(self.path / "table.md", text.encode())

    def write_evaluation(self, name: str, document: Mapping, table: str) -> None:
        """Store evaluations/{name}.json and .md: the rows of a protocol, and their table."""
        folder = self.path / "evaluations"
        folder.mkdir(exist_ok=True)
        self._write_json(f"evaluations/{file_name(name)}.json", document)
        write_atomic(folder / f"{file_name(name)}.md", table.encode())

    def write_predictions(self, split: str, name: str, arrays: Mapping) -> Path:
        """Store predictions/{split}-{name}.npz; `name` may be the name of a missing pattern.

        Raises:
            UsageError: an array that only pickle could store.
        """
        import numpy as np

        arrays = {key: np.asarray(value) for key, value in arrays.items()}
        for key, value in arrays.items():
            if value.dtype.hasobject:
                raise UsageError(f"predictions: {key} must hold numbers or text, got objects. Convert it first.")
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        path = self.path / "predictions" / f"{file_name(split)}-{file_name(name)}.npz"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, buffer.getvalue())
        return path

    def append(self, row: Mapping) -> None:
        """Append one row to metrics.jsonl. No times here: the same seed must give the same file."""
        self._append("metrics.jsonl", row)
        for watcher in self.watchers:
            watcher(row)

    def append_timing(self, row: Mapping) -> None:
        """Append one row to timing.jsonl."""
        self._append("timing.jsonl", row)

    def rows(self, name: str = "metrics.jsonl") -> list[dict]:
        """The rows of metrics.jsonl, or timing.jsonl; a last line that is still being written is left out.

        Raises:
            DataError: a line that is not a JSON object.
        """
        path = self.path / name
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} must be a JSON object, got {line[:40]!r}. Remove the line.")
            rows.append(row)
        return rows

    def offset(self) -> int:
        """Length of metrics.jsonl in bytes, for a checkpoint; what it counts is on the disk when it returns."""
        try:
            descriptor = os.open(self.path / "metrics.jsonl", os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            os.fsync(descriptor)
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def truncate(self, offset: int) -> None:
        """Cut metrics.jsonl back to where it was when a checkpoint was written.

        Raises:
            DataError: the file is shorter than that, or has no end of line there: it is not the checkpoint's file.
        """
        path = self.path / "metrics.jsonl"
        if offset == 0 and not path.exists():
            return
        content = path.read_bytes() if path.exists() else b""
        if len(content) < offset or (offset and content[offset - 1 : offset] != b"\n"):
            raise DataError(
                f"{path}: must have a line that ends at byte {offset}, as the checkpoint says, "
                f"got {len(content)} bytes. Restore the checkpoint's file, or start a new run with another --out."
            )
        os.truncate(path, offset)

    def _append(self, name: str, row: Mapping) -> None:
        line = strict_json(row, name) + "\n"
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            try:
                with naming(self.path / name):
                    _write_all(descriptor, line.encode())
            except BaseException:
                os.ftruncate(descriptor, before)  # a full disk must not leave half a line
                raise
        finally:
            os.close(descriptor)

    def _write_json(self, name: str, document: Mapping) -> None:
        write_atomic(self.path / name, (strict_json(document, name, indent=2) + "\n").encode())


class Witness(RunDirectory):
    """The directory as a process sees it that leaves all writing to another."""

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        yield

    def _nothing(self, *arguments, **options) -> None:
        """In the place of what would write."""

    check_new = _nothing
    write_config = write_table = write_evaluation = write_predictions = truncate = _append = _write_json = _nothing


def read_document(path: Path) -> dict:
    """The JSON object in a file of a run.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(DOCUMENT_LIMIT + 1)
        document = json.loads(content) if len(content) <= DOCUMENT_LIMIT else None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Restore the file.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({str(error)[:80]}). Restore the file.") from None
    if not isinstance(document, dict):
        raise DataError(f"{path} must hold a JSON object. Restore the file.")
    return document


def file_name(name: str) -> str:
    """`name` with everything but letters, digits, ``.`` and ``=`` replaced by ``-``: ``{a,t}`` becomes ``a-t``."""
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.") or "run"


def strict_json(document: Mapping, what: str, indent: int | None = None) -> str:
    """JSON text without NaN or infinity.

    Raises:
        UsageError: a value that JSON cannot hold.
    """
    try:
        return json.dumps(document, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{what}: values must be plain JSON without NaN or infinity, got an error: {error}. Use null instead."
        ) from None


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        with naming(path):
            _write_all(descriptor, content)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Wait until the disk has the directory's entries; does nothing on file systems that cannot."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step: after a crash it is the old or the new one. An error leaves no other file behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, instead_of=temporary):
            write_synced(temporary, content)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _fresh_directory(parent: Path, name: str) -> Path:
    """Make `parent`/`name`, or the same with -2, -3, .. if it is taken."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise UsageError(f"--out: must be free, got {parent / name} and 998 more taken. Use --out with another directory.")
