"""One bit of a checkpoint turned over, and every file of it cut at every length: noticed, and the file is named."""

import random
import tempfile
from pathlib import Path

import torch

from rohydr_fast.errors import DataError
from rohydr_fast.training.checkpoint import MANIFEST, flatten_optimizer, load_checkpoint, save_checkpoint

from .runs import small_run, stop_here

TRAINED_SHARE = 10
"""One of so many flips hits the checkpoint of a training run, which is a thousand times as large as the small one."""


def run(count: int, seed: int) -> dict[str, int | str]:
    """`count` flipped bits, drawn from `seed`; the lengths are all of those of a small checkpoint."""
    generator = random.Random(seed)
    counts = {"flips": 0, "of a training run": 0, "truncations": 0}
    with tempfile.TemporaryDirectory() as name:
        small, trained = Path(name) / "small" / "last", Path(name) / "run" / "checkpoints" / "last"
        save_checkpoint(small, *_content())
        stop_here(2, *small_run(Path(name)), "--out", str(Path(name) / "run"))
        for number in range(count):
            of_run = number % TRAINED_SHARE == 0
            _flip(trained if of_run else small, generator, f"flip {number} of seed {seed}")
            counts["flips"] += 1
            counts["of a training run"] += of_run
        for path in sorted(small.iterdir()):
            counts["truncations"] += _cut_everywhere(path)
        for directory in (small, trained):
            load_checkpoint(directory)  # every damage was undone: it was the flip that was noticed
    return counts


def _content() -> tuple[dict, dict]:
    """A small checkpoint of everything that a run saves: weights, Adam's state, averages and a cursor."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors, state = flatten_optimizer(optimizer, dict(model.named_parameters()))
    weights = model.state_dict()
    return {"model": weights, "optimizer": tensors, "ema": weights}, {"optimizer": state, "cursor": {"epoch": 3}}


def _flip(directory: Path, generator: random.Random, where: str) -> None:
    """Turn a random bit of all bits of the checkpoint, load it, and turn it back."""
    paths = sorted(directory.iterdir())
    path = generator.choices(paths, [path.stat().st_size for path in paths])[0]
    if generator.random() < 0.5:  # files differ a thousandfold in size: half of the flips choose the file first
        path = generator.choice(paths)
    place, bit = generator.randrange(path.stat().st_size), 1 << generator.randrange(8)
    _turn(path, place, bit)
    _must_be_refused(path, f"{where}: bit {bit} of byte {place}")
    _turn(path, place, bit)


def _turn(path: Path, place: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def _cut_everywhere(path: Path) -> int:
    """Try every length from 0 to that of the file without its last byte; gives their number."""
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        _must_be_refused(path, f"{length} of {len(content)} bytes")
    path.write_bytes(content)
    return len(content)


def _must_be_refused(path: Path, what: str) -> None:
    try:
        load_checkpoint(path.parent)
    except DataError as error:
        # A manifest with another checksum or name cannot be told from another file of that name.
        named = path.parent if path.name == MANIFEST else path
        assert str(error).startswith(str(named)), f"{what} of {path.name}: {error}"
    except Exception as error:
        raise AssertionError(f"{what} of {path.name}: gave {error!r}") from error
    else:
        raise AssertionError(f"{what} of {path.name}: was not noticed")
