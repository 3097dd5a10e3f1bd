"""Reference vectors of the published all-MiniLM-L6-v2, and a check of the ranking lists with it.

    python make_minilm.py MODEL_DIR OUT

MODEL_DIR is the model as tests/run unpacks it; reads OUT/minilm/texts.json and writes OUT/minilm/vectors.safetensors
(`vectors`: F32 [texts, 384], fp32 on the CPU, one text per batch, normalised as modules.json says; `num_tokens`: I64 [texts],
special tokens included). Then ranks every list of OUT/rankings.jsonl and fails if the model does not put the right passage
first.
"""

import json
import re
import sys
from pathlib import Path

import common  # noqa: F401 - quiet, offline, one thread
import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer


def write_vectors(model, folder):
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    # One text per batch: the padding of longer neighbours moves the last bits.
    vectors = np.stack([model.encode(text, show_progress_bar=False) for text in texts])
    lengths = [int(model.preprocess([text])["attention_mask"].sum()) for text in texts]
    # The file's own truncation (128) does not apply: sentence-transformers sets max_seq_length (256) instead.
    assert model.max_seq_length == 256 and max(lengths) == 256, (model.max_seq_length, max(lengths))
    tensors = {"vectors": torch.from_numpy(vectors), "num_tokens": torch.tensor(lengths, dtype=torch.int64)}
    save_file(tensors, folder / "vectors.safetensors")
    norms = np.linalg.norm(vectors, axis=1)
    print(f"minilm: {vectors.shape} {vectors.dtype}, norms {norms.min():.7f} .. {norms.max():.7f}, "
          f"{sum(length == 256 for length in lengths)} texts of 256 tokens")


def words(text):
    return set(re.findall(r"\w+", text.lower()))


def check_rankings(model, path):
    """Ranks by cosine, and counts the lists that counting shared words would get wrong."""
    lists = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wrong, beaten, tied, margins = [], 0, 0, []
    for entry in lists:
        query, passages, relevant = entry["query"], entry["passages"], entry["relevant"]
        vectors = model.encode([query, *passages], normalize_embeddings=True, show_progress_bar=False)
        scores = vectors[1:] @ vectors[0]
        others = np.delete(scores, relevant)
        margins.append(float(scores[relevant] - others.max()))
        if margins[-1] <= 0:
            wrong.append(query)
        shared = [len(words(query) & words(passage)) for passage in passages]
        beaten += max(shared) > shared[relevant]
        tied += max(shared) == shared[relevant] and shared.count(shared[relevant]) > 1
    print(f"rankings: {len(lists)} lists, {len(lists) - len(wrong)} right, smallest margin {min(margins):.4f}; by shared words "
          f"a wrong passage is ahead in {beaten} and level in {tied}")
    if wrong:
        raise SystemExit(f"wrong first passage for: {wrong}")


def main():
    model = SentenceTransformer(sys.argv[1], device="cpu")
    write_vectors(model, Path(sys.argv[2]) / "minilm")
    check_rankings(model, Path(sys.argv[2]) / "rankings.jsonl")


if __name__ == "__main__":
    main()
