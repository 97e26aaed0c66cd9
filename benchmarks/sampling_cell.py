"""One cell of benchmarks/sampling.py: all contenders at one preset, batch and number of threads, gated, then timed."""

import torch
from accuracy import gate_limit, one_line
from measure import Rounds, contention, interleave, native_probe, summary
from presets import PRESETS, one_modality_absent, useful_flop
from sampling_gate import MASKED_STEPS, Gate
from sampling_problem import make_problem
from sampling_providers import PROVIDERS, Sampler
from sampling_scaling import run_scaling


def run_cell(cell: dict) -> dict:
    """Gate and time all contenders at one preset, batch and number of threads; see `cells` for the keys."""
    if cell.get("kind") == "scaling":
        return run_scaling(cell)
    threads, steps, preset = cell["threads"], cell["steps"], PRESETS[cell["preset"]]
    torch.set_num_threads(threads)
    dense = Gate(make_problem(preset, cell["batch"], steps), threads)
    masked_problem = make_problem(preset, 3, min(steps, MASKED_STEPS), key_mask=one_modality_absent(preset.keys))
    masked = Gate(masked_problem, threads)
    rows, samplers = {}, {}
    for name in cell["providers"]:
        rows[name] = {key: cell[key] for key in ("preset", "batch", "threads", "steps")} | {"provider": name}
        samplers[name] = gated(name, dense, masked, rows[name])
    ready = {name: sampler for name, sampler in samplers.items() if sampler is not None}
    probe = native_probe(threads)
    found = interleave(ready, rounds=cell["rounds"], probe=probe) if ready else None
    for name in ready:
        rows[name] |= timed(name, found, flop=useful_flop(preset) * cell["batch"] * steps, steps=steps)
    probes = found.probes if found else []
    verdict = contention({threads: probes})
    for name in ready:
        rows[name]["contended"] = verdict["contended"]
    return {"rows": list(rows.values()), "probes": [[p.alone, p.together] for p in probes], "isa": probe and probe.isa}


def gated(name: str, dense: Gate, masked: Gate, row: dict) -> Sampler | None:
    """Build a contender and let it through or not; `row` gets gate, reason and errors."""
    provider = PROVIDERS[name]
    reason = provider.reason()
    if reason is not None:
        row |= {"gate": "skipped", "reason": reason}
        return None
    try:
        sampler = provider.build(dense.problem, dense.threads)
        error = dense.error(sampler)
        masked_error = masked.error(provider.build(masked.problem, masked.threads))
    except Exception as failure:  # a contender that breaks must not take the others' numbers with it
        row |= {"gate": "error", "reason": one_line(failure)}
        return None
    row |= {"rel_error": error, "rel_error_masked": masked_error, "rel_error_float32": dense.float32_error}
    if dense.passes(error, provider.exact) and masked.passes(masked_error, provider.exact):
        row["gate"] = "pass"
        return sampler
    limits = [gate_limit(provider.exact, gate.float32_error, gate.reference) for gate in (dense, masked)]
    text = f"x_0 is off by {error:.3g} and, with masks, {masked_error:.3g}; allowed {limits[0]:.3g} and {limits[1]:.3g}"
    row |= {"gate": "fail", "reason": text}
    return None


def timed(name: str, found: Rounds, *, flop: float, steps: int) -> dict:
    """What a row says about time."""
    times = summary([1e3 * value / steps for value in found.seconds[name]])
    return {"ms_per_step": times, **found.speed(name, flop)}
