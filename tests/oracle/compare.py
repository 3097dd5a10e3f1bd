"""Compares freshly made fixtures with the committed ones.

    python compare.py NEW [COMMITTED]

Tokenizer files, configurations, weights and adapters must be equal byte for byte; texts, options, ids, errors and facts must
be equal; scores, vectors and traces may differ by TOLERANCE, or by DECODER_TOLERANCE in the decoder rerankers. Exits with
status 1 at the first difference.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TOLERANCE = 1e-6
# Their scores reach 30 and pass through more layers: the same versions without vector instructions differ by up to 8e-5.
DECODER_TOLERANCE = 2e-4
DECODERS = ("gemma", "minicpm")
NUMBERS = ("scores", "scores_one_pair_per_call", "vectors")
NOT_COMPARED = ("max_abs_diff_batched_vs_alone",)
TRACES = ("trace.safetensors", "token_compress.safetensors")


def fail(message):
    raise SystemExit(message)


def difference(name, new, committed):
    """The largest difference of two arrays of one shape."""
    new, committed = np.asarray(new, dtype=np.float64), np.asarray(committed, dtype=np.float64)
    if new.shape != committed.shape:
        fail(f"{name}: shape {new.shape}, committed {committed.shape}")
    return float(np.abs(new - committed).max(initial=0.0))


def compare_case(name, new, committed):
    """Returns the largest difference of scores or vectors."""
    name, worst = f"{name}, case {committed['name']}", 0.0
    for key in new.keys() | committed.keys():
        if key in NUMBERS and key in new and key in committed:
            worst = max(worst, difference(f"{name}: {key}", new[key], committed[key]))
        elif key not in NOT_COMPARED and new.get(key) != committed.get(key):
            fail(f"{name}: {key} differs")
    return worst


def compare_expected(name, new, committed):
    """Returns the largest difference of scores or vectors of two expected.json."""
    made, kept = (json.loads(path.read_text(encoding="utf-8")) for path in (new, committed))
    for key in (made.keys() | kept.keys()) - {"versions", "cases"}:
        if made.get(key) != kept.get(key):
            fail(f"{name}: {key} differs")
    if [case["name"] for case in made["cases"]] != [case["name"] for case in kept["cases"]]:
        fail(f"{name}: not the same cases")
    return max(compare_case(name, *cases) for cases in zip(made["cases"], kept["cases"]))


def compare_trace(name, new, committed):
    """Returns the largest difference of two files of hidden states."""
    made, kept = load_file(new), load_file(committed)
    if made.keys() != kept.keys():
        fail(f"{name}: not the same tensors")
    return max(difference(f"{name}: {tensor}", made[tensor], kept[tensor]) for tensor in made)


def compare_model(new, committed):
    """Compares every file of one folder and prints the largest difference."""
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in (new, committed)]
    if files[0] != files[1]:
        fail(f"{new.name}: not the same files: {sorted(set(files[0]) ^ set(files[1]))}")
    tolerance = DECODER_TOLERANCE if new.name.startswith(DECODERS) else TOLERANCE
    worst = 0.0
    for file in files[0]:
        name, paths = f"{new.name}/{file}", (new / file, committed / file)
        if file == "expected.json":
            worst = max(worst, compare_expected(name, *paths))
        elif file in TRACES:
            worst = max(worst, compare_trace(name, *paths))
        elif paths[0].read_bytes() != paths[1].read_bytes():
            fail(f"{name} differs")
    if worst > tolerance:
        fail(f"{new.name}: differs by {worst:.1e}, allowed is {tolerance:.0e}")
    print(f"{new.name}: {len(files[0])} files, largest difference {worst:.1e}")


def main():
    new = Path(sys.argv[1])
    committed = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).resolve().parent.parent / "fixtures"
    for path in sorted((new / "tokenizers").rglob("*.json")):
        if path.read_bytes() != (committed / path.relative_to(new)).read_bytes():
            fail(f"{path.relative_to(new)} differs")
    print("tokenizers: equal")
    for path in sorted(new.glob("*/expected.json")):
        compare_model(path.parent, committed / path.parent.name)


if __name__ == "__main__":
    main()
