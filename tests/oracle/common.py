"""What the scripts share: drawing weights, finishing a fixture folder, and writing JSON that a person can read in a diff."""

import contextlib
import io
import json
import logging
import os
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch  # noqa: E402 - the environment above must be set first
import transformers  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

TOKENIZER_FILES = [
    "tokenizer.json", "tokenizer.cases.json", "tokenizer.old_layout.json", "tokenizer.old_layout.cases.json",
]


def quiet(function, *args, **kwargs):
    """Calls `function` with its progress bars and prints thrown away."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def versions(*packages):
    """The versions that made a fixture; recorded in its expected.json."""
    found = {name: version(name) for name in ("torch", "transformers", "tokenizers", *packages)}
    return {**found, "dtype": "float32", "device": "cpu"}


def draw_weights(model, seed, *, token_type, bias, norm_bias):
    """Fills `model` with normal noise, in parameter order. The spreads keep every part of the network audible in the score:
    attention is neither uniform nor one-hot, and no bias, norm or embedding row can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    hidden_size, intermediate_size = model.config.hidden_size, model.config.intermediate_size
    for name, parameter in model.named_parameters():
        mean = 0.0
        if "word_embeddings" in name:
            std = 0.8
        elif "position_embeddings" in name:
            std = 0.35
        elif "token_type_embeddings" in name:
            std = token_type
        elif "LayerNorm.weight" in name:
            std, mean = 0.2, 1.0
        elif "LayerNorm.bias" in name:
            std = norm_bias
        elif name.endswith("bias"):
            std = bias
        elif "query.weight" in name or "key.weight" in name:
            std = 1.5 / hidden_size**0.5
        elif "output.dense.weight" in name and parameter.shape[1] == intermediate_size:
            std = 1.3 / intermediate_size**0.5
        elif "classifier.out_proj" in name:
            std = 5.0 / hidden_size**0.5
        elif "classifier.dense" in name:
            std = 1.0 / hidden_size**0.5
        else:
            std = 1.2 / hidden_size**0.5
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(noise.mul(std).add(mean).float())


def add_tokenizer(folder, tokenizer_json, tokenizer_class, model_max_length):
    """Puts a trained tokenizer into a model folder, byte for byte, and returns its vocabulary size.

    Saving it through transformers instead would rewrite the scores' last digits."""
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    config = {"tokenizer_class": tokenizer_class, "model_max_length": model_max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(transformers.AutoTokenizer.from_pretrained(folder))


def save_with_positions(model, folder, rows):
    """Saves `model` with only the first `rows` rows of its position table, and config.json to match.

    The 8194-row tables of the M3 models are most of their bytes, and no case reads more than the first quarter."""
    state = model.state_dict()
    for name in state:
        if name.endswith("position_embeddings.weight"):
            state[name] = state[name][:rows].clone()
    model.config.max_position_embeddings = rows
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)


def keep_fixture(work, out, tokenizer):
    """Copies what the tests read from the complete model folder `work` to `out`/<name of work>, with the tokenizer files as
    links into `out`/tokenizers."""
    target = out / work.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shared = Path("..") / "tokenizers" / tokenizer
    kept = ["config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "1_Pooling"]
    for name in kept + ["expected.json", "trace.safetensors"]:
        if (work / name).is_dir():
            shutil.copytree(work / name, target / name)
        elif (work / name).exists():
            shutil.copyfile(work / name, target / name)
    for name in TOKENIZER_FILES:
        if (target / shared / name).exists():
            (target / name).symlink_to(shared / name)


def write_json(path, value):
    """Writes `value` with lists of numbers, and other short values, on one line each."""
    Path(path).write_text(_layout(value, "") + "\n", encoding="utf-8")


def _layout(value, indent):
    flat = json.dumps(value, ensure_ascii=False)
    numbers = isinstance(value, list) and all(isinstance(item, (int, float)) for item in value)
    if numbers or not isinstance(value, (list, dict)) or len(flat) <= 120:
        return flat
    deeper = indent + " "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_layout(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + indent + "}"
    return "[\n" + ",\n".join(deeper + _layout(item, deeper) for item in value) + "\n" + indent + "]"
