"""``python -m rohydr_fast.export``: a trained model as a file for onnxruntime or torch, for one set of modalities."""

import sys

from .cli import Parser, add_output, make_parser, new_file, print_json, run


def parser() -> Parser:
    """The options of the command."""
    result = make_parser(
        "rohydr_fast.export", "Write a trained model as one program for clips that all have the same modalities."
    )
    result.add_argument("model", type=str, help="a run, a directory of save_pretrained, or a hub name")
    result.add_argument(
        "--available", type=str, required=True, help="set of modalities that the clips have, such as a,t"
    )
    add_output(result, "new .onnx file, or .pt2 for torch.export.load")
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), _command, argv)


def _command(options) -> None:
    out = new_file(options, ".onnx", ".pt2")
    from .exporting import save_onnx, save_program
    from .modalities import parse_available
    from .pretrained import load

    available = parse_available(options.available)
    save = save_onnx if out.suffix == ".onnx" else save_program
    made = save(load(options.model), available, out)
    told = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in made.inputs.items())
    print(f"{out}: reads {told}; differs from the model by {made.error:.1e} at most")
    if options.json:
        print_json(
            {
                "out": str(out),
                "available": list(available),
                "inputs": made.inputs,
                "outputs": made.outputs,
                "error": made.error,
                "bytes": out.stat().st_size,
            }
        )


if __name__ == "__main__":
    sys.exit(main())
