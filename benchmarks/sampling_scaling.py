"""How the cost of sampling grows with what is there: real tokens, real keys, samples and steps.

Part of benchmarks/sampling.py --ragged. A dense loop pays for padding; one that works on real tokens does not.
"""

from dataclasses import dataclass

import torch
from accuracy import gate_limit
from measure import interleave, native_probe, summary
from presets import PRESETS, Preset
from sampling_gate import Gate
from sampling_problem import Problem, make_problem
from sampling_providers import PROVIDERS

BATCH, STEPS = 8, 10


@dataclass(frozen=True)
class Case:
    """One point of a series."""

    series: str
    value: int
    batch: int = BATCH
    steps: int = STEPS
    tokens: int | None = None  # real ones in each row; None is all, without a mask
    keys: int | None = None

    def problem(self, preset: Preset) -> Problem:
        """What is sampled."""
        token_mask = _first(self.batch, preset.tokens, self.tokens)
        key_mask = _first(self.batch, preset.keys, self.keys)
        return make_problem(preset, self.batch, self.steps, token_mask=token_mask, key_mask=key_mask)


def _first(batch: int, size: int, real: int | None) -> torch.Tensor | None:
    return None if real is None else (torch.arange(size) < real).expand(batch, size).contiguous()


def cases(preset: Preset) -> list[Case]:
    """Tokens 50, 25, 15 of 50; all and half of the keys; batch 1 to 32; K 10, 25, 50."""
    tokens = [preset.tokens, preset.tokens // 2, round(0.3 * preset.tokens)]
    return [
        *(Case("real tokens", n, tokens=n) for n in tokens),
        *(Case("real keys", n, keys=n) for n in (preset.keys, preset.keys // 2)),
        *(Case("batch", n, batch=n) for n in (1, 2, 4, 8, 16, 32)),
        *(Case("steps", n, steps=n) for n in (10, 25, 50)),
    ]


def run_scaling(cell: dict) -> dict:
    """Gate and time every case of a preset; rows with ms for a call, and its ratio to the first of the series."""
    preset, threads = PRESETS[cell["preset"]], cell["threads"]
    torch.set_num_threads(threads)
    rows, calls = [], {}
    for case in cases(preset):
        gate = Gate(case.problem(preset), threads)
        for name in cell["providers"]:
            row = {"series": case.series, "value": case.value, "batch": case.batch, "steps": case.steps}
            row |= {"preset": cell["preset"], "threads": threads, "provider": name}
            rows.append(row)
            reason = PROVIDERS[name].reason()
            if reason is not None:
                row |= {"gate": "skipped", "reason": reason}
                continue
            sampler = PROVIDERS[name].build(gate.problem, threads)
            row["rel_error"] = gate.error(sampler)
            if gate.passes(row["rel_error"], PROVIDERS[name].exact):
                row["gate"] = "pass"
                calls[name, case] = (sampler, row)
            else:
                limit = gate_limit(PROVIDERS[name].exact, gate.float32_error, gate.reference)
                row |= {"gate": "fail", "reason": f"x_0 is off by {row['rel_error']:.3g}; allowed {limit:.3g}"}
    probe = native_probe(threads)
    found = interleave({key: sampler for key, (sampler, _) in calls.items()}, rounds=cell["rounds"], probe=probe)
    first: dict[tuple[str, str], str] = {}
    for key, (_, row) in calls.items():
        row["ms"] = summary([1e3 * seconds for seconds in found.seconds[key]])
        start = first.setdefault((row["provider"], row["series"]), row["ms"]["median"])
        row["relative"] = row["ms"]["median"] / start
    return {"scaling": rows, "probes": [[p.alone, p.together] for p in found.probes], "isa": probe and probe.isa}
