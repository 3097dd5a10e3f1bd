"""Compares freshly made fixtures with the committed ones.

    python compare.py NEW [COMMITTED]

Tokenizer files must be equal byte for byte, texts, options, ids and errors must be equal, scores and vectors may differ by
1e-6. Exits with status 1 at the first difference.
"""

import json
import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-6
NUMBERS = ("scores", "scores_one_pair_per_call", "vectors")
NOT_COMPARED = ("max_abs_diff_batched_vs_alone",)


def compare_case(name, new, committed):
    """Returns the largest difference of scores or vectors."""
    worst = 0.0
    for key in new.keys() | committed.keys():
        if key in NUMBERS:
            worst = max(worst, float(np.abs(np.array(new[key]) - np.array(committed[key])).max(initial=0.0)))
        elif key not in NOT_COMPARED and new.get(key) != committed.get(key):
            raise SystemExit(f"{name}, case {committed['name']}: {key} differs")
    if worst > TOLERANCE:
        raise SystemExit(f"{name}, case {committed['name']}: differs by {worst:.1e}")
    return worst


def main():
    new = Path(sys.argv[1])
    committed = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).resolve().parent.parent / "fixtures"
    for path in sorted((new / "tokenizers").rglob("*.json")):
        if path.read_bytes() != (committed / path.relative_to(new)).read_bytes():
            raise SystemExit(f"{path.relative_to(new)} differs")
    print("tokenizers: equal")
    for path in sorted(new.glob("*/expected.json")):
        name = path.parent.name
        made, kept = (json.loads((folder / name / "expected.json").read_text(encoding="utf-8")) for folder in (new, committed))
        if any(made.get(key) != kept.get(key) for key in ("family", "pairs", "texts", "trace_pair")):
            raise SystemExit(f"{name}: pairs or texts differ")
        if [case["name"] for case in made["cases"]] != [case["name"] for case in kept["cases"]]:
            raise SystemExit(f"{name}: not the same cases")
        worst = max(compare_case(name, *cases) for cases in zip(made["cases"], kept["cases"]))
        print(f"{name}: {len(kept['cases'])} cases, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
