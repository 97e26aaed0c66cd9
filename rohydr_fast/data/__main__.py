"""``python -m rohydr_fast.data``: check, describe and convert data files, and write synthetic ones."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from .. import cli
from ..errors import EXIT_OK
from . import containers, describe, mmsa
from .dataset import Dataset
from .loading import is_synthetic, load

PROG = "rohydr_fast.data"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 (usage), 65 (data), 74 (files)."""
    return cli.run(_parser(), _command, argv)


def _parser() -> cli.Parser:
    parser = cli.make_parser(PROG, "Check, describe and convert MMSA-format data files, or write synthetic ones.")
    commands = parser.add_subcommands(dest="command")
    for name, text in (
        ("check", "Validate a file and say what it holds."),
        ("describe", "Show sizes, value ranges, real lengths and labels of each split."),
    ):
        command = cli.make_parser(f"{PROG} {name}", text)
        command.add_argument("file", type=str, help=".pkl, .npz or .safetensors in the MMSA schema, or 'synthetic'")
        command.add_argument(
            "--nonfinite", choices=["error", "zero"], default="error", help="what to do with NaN and infinities"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object")
        commands.add_subcommand(name, command, help=text)

    text = "Copy a file into another container, which its suffix names; values and types stay the same."
    command = cli.make_parser(f"{PROG} convert", text)
    command.add_argument("file", type=str, help="the file to read")
    command.add_argument("--out", type=str, required=True, help="the file to write: .pkl, .npz or .safetensors")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    commands.add_subcommand("convert", command, help=text)

    text = "Write random data with the shapes of MMSA's MOSI or MOSEI file."
    command = cli.make_parser(f"{PROG} synth", text)
    command.add_argument("--like", choices=["mosi", "mosei"], required=True, help="whose shapes")
    command.add_argument("--unaligned", action="store_true", help="the shapes of unaligned_50")
    command.add_argument("--out", type=str, required=True, help="the file to write: .pkl, .npz or .safetensors")
    command.add_argument("--seed", type=int, default=0, help="of the values")
    command.add_argument("--clips", type=int, default=None, help="training clips; the other splits shrink alike")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    commands.add_subcommand("synth", command, help=text)
    return parser


def _command(args: Namespace) -> int:
    run = {"check": _check, "describe": _describe, "convert": _convert, "synth": _synth}[args.command]
    run(args[args.command])
    return EXIT_OK


def _read(args: Namespace) -> tuple[Dataset, mmsa.Findings | None]:
    if is_synthetic(args.file):
        return load(args.file), None
    return mmsa.read(args.file, nonfinite=args.nonfinite)


def _check(args: Namespace) -> None:
    dataset, findings = _read(args)
    document = describe.summary(dataset, findings)
    if args.json:
        cli.print_json(document)
        return
    published = document["published"]
    print(f"{dataset.source}: valid")
    print(f"sha256 {dataset.sha256}{f' (the digits of MMSA {published})' if published else ''}\n")
    describe.print_table(*describe.feature_table(document))
    print()
    zeros = {name: split["labels"]["zero"] for name, split in document["splits"].items()}
    print(f"labels that are exactly 0: {', '.join(f'{number} in {name}' for name, number in zeros.items())}")
    print(f"ids that an earlier clip has: {document.get('duplicate_ids', 0)}")
    lost = [
        f"{place} {kind}: {number:,}"
        for place, kinds in document.get("nonfinite", {}).items()
        for kind, number in kinds.items()
        if number
    ]
    print(f"values that are not finite: {', '.join(lost) or 'none'}")
    groups = " | ".join(", ".join(group) for group in document["aligned_groups"])
    print(f"modalities: {', '.join(document['modalities'])}; aligned with each other: {groups}")
    _print_notes(dataset)


def _describe(args: Namespace) -> None:
    dataset, findings = _read(args)
    document = describe.summary(dataset, findings, with_statistics=True)
    if args.json:
        cli.print_json(document)
        return
    print(f"{dataset.source}: data set {dataset.name}\n")
    describe.print_table(*describe.feature_table(document))
    print()
    describe.print_table(*describe.label_table(document))
    _print_notes(dataset)


def _convert(args: Namespace) -> None:
    tree, data = containers.read(args.file)
    sha256 = data.sha256()
    mmsa.build(tree, source=args.file, sha256=sha256, nonfinite="zero")  # refuse what could not be read back
    left_out = containers.write(tree, args.out, overwrite=args.overwrite)
    size = Path(args.out).stat().st_size
    if args.json:
        cli.print_json({"file": args.file, "sha256": sha256, "out": args.out, "bytes": size, "left_out": left_out})
        return
    print(f"{args.out}: written, {size:,} bytes")
    if left_out:
        print(f"left out, neither numbers nor texts: {', '.join(left_out)}")


def _synth(args: Namespace) -> None:
    from .synthetic import write_like

    containers.check_output(args.out, overwrite=args.overwrite)
    write_like(
        args.like, args.out, unaligned=args.unaligned, seed=args.seed, clips=args.clips, overwrite=args.overwrite
    )
    size = Path(args.out).stat().st_size
    if args.json:
        cli.print_json({"out": args.out, "bytes": size, "like": args.like, "seed": args.seed})
    else:
        print(f"{args.out}: written, {size:,} bytes of random data; nothing in it is real")


def _print_notes(dataset: Dataset) -> None:
    for sentence in dataset.notes:
        print(f"note: {sentence}")


if __name__ == "__main__":
    sys.exit(main())
