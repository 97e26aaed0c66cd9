"""``python -m rohydr_fast.sample``: recover what is missing in a data file by a trained model, and predict."""

import sys
import types

from .cli import Parser, add_output, make_parser, new_file, print_json, run
from .errors import UsageError
from .modalities import NAMES


def parser() -> Parser:
    """The options of the command."""
    result = make_parser(
        "rohydr_fast.sample", "Recover missing modalities of a data file by a trained model, and predict."
    )
    result.add_argument("file", type=str, help="a file in MMSA's schema (.pkl, .npz, .safetensors), or synthetic")
    result.add_argument("--model", type=str, required=True, help="a run, a directory of save_pretrained, or a hub name")
    result.add_argument("--available", type=str, help="set of modalities to read, such as a,t (default: all there are)")
    add_output(result, "new .safetensors file")
    result.add_argument("--split", type=str, default="test", help="train, valid or test")
    result.add_argument("--samples", type=int, default=1, help="recoveries drawn for each clip")
    result.add_argument("--seed", type=int, default=0, help="of the noise")
    result.add_argument("--nonfinite", type=str, default="error", help="NaN and infinities in features: error, or zero")
    result.add_argument("--backend", type=str, default="auto", help="auto, reference, cpp, triton or cuda")
    result.add_argument("--device", type=str, default="cpu", help="torch device")
    result.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(parser(), _command, argv)


def _command(options) -> None:
    out = new_file(options, ".safetensors")
    if options.split not in ("train", "valid", "test"):
        raise UsageError(f"--split: must be train, valid or test, got {options.split!r}. Choose one of them.")
    from .data.loading import load as load_data
    from .distributed import joined, local_device
    from .inference import infer_split
    from .ops.registry import backend, select
    from .pretrained import load as load_model
    from .training.experiment import device_type
    from .training.run_directory import write_atomic

    with joined() as team, backend(options.backend):
        device = local_device(options.device)
        select("reverse_loop", options.backend, device=device_type(device))
        model = load_model(options.model, device=device)
        dataset = load_data(options.file, nonfinite=options.nonfinite)
        split = getattr(dataset, options.split)
        tensors = infer_split(model, dataset, split, options.available, samples=options.samples, seed=options.seed)
    if not team.leads:
        return
    content = serialise(tensors, split.ids)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, content)
    recovered = {name.rpartition("_")[2]: len(value) for name, value in tensors.items() if name.startswith("rows_")}
    told = ", ".join(f"{NAMES[m]} recovered for {count}" for m, count in recovered.items())
    print(f"{out}: {len(split)} clips, {told or 'nothing was missing'}")
    if options.json:
        print_json({"out": str(out), "clips": len(split), "recovered": recovered, "samples": options.samples})


def serialise(tensors: dict, ids: list[str]) -> bytes:
    """safetensors, with the clips' ids as JSON in its metadata under ``ids``."""
    import json

    import safetensors.torch

    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    return safetensors.torch.save(contiguous, metadata={"ids": json.dumps(list(ids))})


class _Command(types.ModuleType):
    """Importing this module puts it where `rohydr_fast.sample`, the function, stands: so it can be called like it."""

    def __call__(self, *arguments, **options):
        from .diffusion.sampler import sample

        return sample(*arguments, **options)


if __name__ == "__main__":
    sys.exit(main())
sys.modules[__name__].__class__ = _Command
