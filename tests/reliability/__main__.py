"""All campaigns with all their counts: python -m tests.reliability [NAME ...] [--seed S] [--few] [--json FILE]

Exit code 1 when a promise was broken. What was counted is printed as a Markdown table.
"""

import argparse
import json
import sys
import time
import traceback

from .campaigns import CAMPAIGNS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("names", nargs="*", help="campaigns (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--few", action="store_true", help="as many as a test run makes")
    parser.add_argument("--json", help="file for the counts")
    options = parser.parse_args()
    unknown = set(options.names) - {campaign.module for campaign in CAMPAIGNS}
    if unknown:
        parser.error(f"no campaign is called {', '.join(sorted(unknown))}; there are {', '.join(_names())}")
    rows, broken = [], 0
    print("| campaign | promise | counted | seconds |\n|---|---|---|---|")
    for campaign in CAMPAIGNS:
        if options.names and campaign.module not in options.names:
            continue
        started, counts = time.perf_counter(), {}
        try:
            counts = campaign.run(campaign.few if options.few else campaign.all, options.seed)
        except Exception:
            traceback.print_exc()
            broken += 1
            counts = {"BROKEN": "see the traceback"}
        seconds = round(time.perf_counter() - started)
        rows.append({"campaign": campaign.module, "counts": counts, "seconds": seconds, "seed": options.seed})
        told = ", ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in counts.items()
        )
        print(f"| {campaign.module} | {campaign.promise} | {told} | {seconds} |", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)
    return 1 if broken else 0


def _names() -> list[str]:
    return [campaign.module for campaign in CAMPAIGNS]


if __name__ == "__main__":
    sys.exit(main())
