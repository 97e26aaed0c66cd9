"""One cell of benchmarks/training.py: all contenders of a workload at one size and number of threads.

A cell is gated and timed in one process. The peak memory of each contender is measured before, in a process of its own,
at its first call of these sizes: no memory that an earlier call left is used again. What is loaded once, 70 MiB for
torch's checkpoint, is not the step's: three clips have gone through one reverse step before. For torch.compile it
is the whole batch, or the figure would be the compiler's.
"""

import time
from collections.abc import Callable

import torch
from accuracy import one_line
from measure import Rounds, contention, interleave, native_probe, summary
from memory import OutOfMemory, peak_mib, why_not
from presets import PRESETS
from training_epoch import Epoch, shares
from training_gate import gates
from training_iteration import Iteration
from training_methods import torch_noise
from training_problem import Block, Chain
from training_providers import PROVIDERS, refusal

KEYS = ("workload", "preset", "batch", "threads", "steps", "lengths")
LEAST_ROUNDS, MOST_ROUNDS, BUDGET = 3, 30, 90.0
EPOCH_ROUNDS = 1
MEMORY_BATCHES = 2
"""An epoch's memory is that of an epoch of so many batches."""
ONE_STEP = {"steps": 1}
FEW_CLIPS = {"steps": 1, "batch": 3, "clips": 6}


def run_cell(cell: dict) -> dict:
    """Measure what a cell asks for; see `measure_cell` for the keys."""
    torch.set_num_threads(cell["threads"])
    return {"memory": measure_memory, "timing": measure_times}[cell["kind"]](cell)


def measure_cell(cell: dict, execute: Callable[[dict], dict]) -> dict:
    """The rows of a cell: memory of each contender, then gates and times of those that have enough.

    Args:
        cell: `KEYS`, providers, rounds and clips (of an epoch).
        execute: runs a cell of kind "memory", with a provider, or "timing", with providers.
    """
    rows, memory = {}, {}
    for name in cell["providers"]:
        rows[name] = {key: cell[key] for key in KEYS} | {"provider": name}
        reason = refusal(cell["workload"], name)
        memory[name] = {"skipped": reason} if reason else execute({**cell, "kind": "memory", "provider": name})
        for gate in {"skipped", "error"} & memory[name].keys():
            rows[name] |= {"gate": gate, "reason": memory[name][gate]}
    ready = [name for name, row in rows.items() if "gate" not in row]
    found = {"rows": [], "probes": [], "isa": None}
    if ready:
        found = execute({**cell, "kind": "timing", "providers": ready})
    for row in found["rows"]:
        if row["gate"] == "pass":
            row["peak_memory_mib"] = memory[row["provider"]]["peak_memory_mib"]
        rows[row["provider"]] |= row
    return found | {"rows": list(rows.values())}


def make_problem(cell: dict):
    """What is timed."""
    preset, batch, steps = PRESETS[cell["preset"]], cell["batch"], cell["steps"]
    if cell["workload"] == "iteration":
        return Iteration(preset, batch, steps, cell["lengths"])
    if cell["workload"] == "epoch":
        return Epoch(preset, batch, steps, cell["lengths"], cell["clips"])
    return {"block": Block, "chain": Chain}[cell["workload"]](preset, batch, steps)


def measure_memory(cell: dict) -> dict:
    """ "peak_memory_mib" of the first call of the cell's provider; or "skipped" or "error" with the reason."""
    if cell["workload"] == "epoch":
        cell = cell | {"clips": min(cell["clips"], MEMORY_BATCHES * cell["batch"])}
    if why_not():
        return {"peak_memory_mib": None}
    try:
        problem, method = make_problem(cell), PROVIDERS[cell["provider"]].build(cell["workload"], torch_noise)
        make_problem(cell | (ONE_STEP if cell["provider"] == "compile" else FEW_CLIPS)).run(method)
        return {"peak_memory_mib": peak_mib(lambda: problem.run(method))}
    except OutOfMemory as failure:
        return {"skipped": f"at {cell['preset']}, batch {cell['batch']}, {cell['workload']} {failure}."}
    except Exception as failure:  # a contender that breaks must not take the others' numbers with it
        return {"error": one_line(failure)}


def measure_times(cell: dict) -> dict:
    """Gate and time the cell's providers: rows, probes and the instruction set of the probes."""
    checks = gates(cell["workload"], PRESETS[cell["preset"]], cell["batch"], cell["steps"], cell["lengths"])
    rows = {name: {"provider": name} for name in cell["providers"]}
    ready = [name for name in rows if passes(name, checks, rows[name])]
    methods = {name: PROVIDERS[name].build(cell["workload"], torch_noise) for name in ready}
    probe = native_probe(cell["threads"])
    found, flop, parts = Rounds(), None, {}
    if cell["workload"] == "epoch":
        problem = make_problem(cell)
        flop = problem.flop()
        found, parts = time_epochs(problem, methods, cell["rounds"] or EPOCH_ROUNDS, probe)
    elif ready:
        problems = {name: make_problem(cell) for name in ready}
        flop = problems[ready[0]].flop()
        calls = {name: lambda name=name: problems[name].run(methods[name]) for name in ready}
        found = interleave(
            calls,
            rounds=cell["rounds"],
            probe=probe,
            least=LEAST_ROUNDS,
            most=MOST_ROUNDS,
            budget=BUDGET,
            warm_ups=1,
        )
    verdict = contention({cell["threads"]: found.probes})
    for name in ready:
        rows[name] |= {"seconds": summary(found.seconds[name]), **found.speed(name, flop)}
        rows[name] |= {"contended": verdict["contended"]}
        if name in parts:
            rows[name]["parts"] = shares(parts[name])
    probes = [[p.alone, p.together] for p in found.probes]
    return {"rows": list(rows.values()), "probes": probes, "isa": probe and probe.isa}


def passes(name: str, checks: list, row: dict) -> bool:
    """Let a contender through or not; `row` gets gate, reason and errors."""
    exact = PROVIDERS[name].exact
    try:
        errors = [check.errors(check.build(name)) for check in checks]
    except Exception as failure:  # a contender that breaks must not take the others' numbers with it
        row |= {"gate": "error", "reason": one_line(failure)}
        return False
    row |= {"rel_error": max(errors[0]), "rel_error_loss": errors[0][0], "rel_error_gradient": errors[0][1]}
    row |= {"rel_error_float32": checks[0].float32_error}
    if len(errors) > 1:
        row["rel_error_masked"] = max(errors[1])
    limits = [check.limit(exact) for check in checks]
    if all(error <= limit for pair, limit in zip(errors, limits, strict=True) for error in pair):
        row["gate"] = "pass"
        return True
    found = " and, with masks, ".join(f"{loss:.3g} and {gradient:.3g}" for loss, gradient in errors)
    allowed = " and ".join(f"{limit:.3g}" for limit in limits)
    row |= {"gate": "fail", "reason": f"loss and gradients are off by {found}; allowed {allowed}"}
    return False


def time_epochs(problem: Epoch, methods: dict, rounds: int, probe: Callable | None) -> tuple[Rounds, dict]:
    """As `interleave`, with the trainer's own seconds and without warming up, which would be another epoch."""
    found, parts = Rounds({name: [] for name in methods}), {name: [] for name in methods}
    if not methods:
        return found, parts
    if probe is not None:
        probe()  # a core that slept needs some milliseconds to reach its clock
        found.probes.append(probe())
    for _ in range(rounds):
        for name, method in methods.items():
            seconds, of_parts = problem.run(method)
            found.seconds[name].append(seconds)
            parts[name].append(of_parts)
        time.sleep(0.02)  # thread pools go on spinning for some time
        if probe is not None:
            found.probes.append(probe())
    return found, parts
