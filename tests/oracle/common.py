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

import numpy as np  # noqa: E402 - the environment above must be set first
from tiny_text import PAIRS  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

logging.getLogger("transformers").setLevel(logging.ERROR)
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

TRACED = 1  # index in PAIRS of the pair whose hidden states are kept
TOKENIZER_FILES = [
    "tokenizer.json", "tokenizer.cases.json", "tokenizer.old_layout.json", "tokenizer.old_layout.cases.json",
]
KEPT_FILES = [
    "config.json", "modules.json", "sentence_bert_config.json", "1_Pooling", "*_adapter", "expected.json", "trace.safetensors",
    "token_compress.*",
]
WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]


def quiet(function, *args, **kwargs):
    """Calls `function` with its progress bars and prints thrown away."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def versions(*packages):
    """The versions that made a fixture; recorded in its expected.json."""
    found = {name: version(name) for name in ("torch", "transformers", "tokenizers", *packages)}
    return {**found, "dtype": "float32", "device": "cpu"}


def draw(model, seed, spread):
    """Fills the parameters of `model`, in their order, with normal noise. `spread` gives the mean and the standard deviation
    for a name and a parameter, or None for one that stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if (chosen := spread(name, parameter)) is not None:
            mean, std = chosen
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(noise.mul(std).add(mean).float())


def draw_weights(model, seed, *, token_type, bias, norm_bias):
    """Fills an encoder with spreads that keep every part of it audible in the score: attention is neither uniform nor
    one-hot, and no bias, norm or embedding row can be left out unnoticed."""
    hidden_size, intermediate_size = model.config.hidden_size, model.config.intermediate_size

    def spread(name, parameter):
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
        return mean, std

    draw(model, seed, spread)


def add_tokenizer(folder, tokenizer_json, tokenizer_class, model_max_length, **more):
    """Puts a trained tokenizer into a model folder, byte for byte, and returns its vocabulary size.

    Saving it through transformers instead would rewrite the scores' last digits."""
    shutil.copy(tokenizer_json, folder / "tokenizer.json")
    config = {"tokenizer_class": tokenizer_class, "model_max_length": model_max_length, **more}
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


def edit_config(folder, without=(), **changes):
    """Sets keys of config.json that the published files carry and transformers does not write, and removes those `without`."""
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    config.update(changes)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def last_call(reranker, pair, options):
    """Scores one pair and returns what compute_score returned with the arguments of the model's last call."""
    seen = []
    hook = reranker.model.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs), with_kwargs=True)
    scores = quiet(reranker.compute_score, [pair], **options)
    hook.remove()
    return scores, seen[-1]


def run_case(reranker, name, pairs=None, picks=None, constructor=None, note=None, capture=True, **options):
    """One call of compute_score with `options`: its scores or its error, and (with `capture`) the ids of each pair alone.

    The pairs are those given, or PAIRS at the indices `picks`, or all of PAIRS."""
    case = {"name": name, "options": options}
    if constructor:
        case["constructor"] = constructor
    if note:
        case["note"] = note
    if pairs is None:
        chosen = PAIRS if picks is None else [PAIRS[i] for i in picks]
        case["pair_ids"] = [pair_id for pair_id, _, _ in chosen]
        pairs = [[query, passage] for _, query, passage in chosen]
    else:
        case["pairs"] = pairs
    try:
        case["scores"] = quiet(reranker.compute_score, pairs, **options)
    except Exception as error:  # the reference's failures are part of what is recorded
        case["error"] = {"type": type(error).__name__, "message": str(error)[:300]}
        return case
    if capture:
        add_single_calls(case, [last_call(reranker, pair, options) for pair in pairs])
    return case


def add_single_calls(case, alone):
    """Adds to a case what calls with one pair each showed: ids and scores, in the shape of `scores`."""
    case["input_ids"] = [call["input_ids"][0][call["attention_mask"][0].bool()].tolist() for _, call in alone]
    if "query_lengths" in alone[0][1]:
        case["query_and_prompt_lengths"] = [[call["query_lengths"][0], call["prompt_lengths"][0]] for _, call in alone]
    scores = np.concatenate([np.array(scores) for scores, _ in alone], axis=-1)
    case["scores_one_pair_per_call"] = scores.tolist()
    case["max_abs_diff_batched_vs_alone"] = float(np.abs(np.array(case["scores"]) - scores).max())


def keep_fixture(work, out, tokenizer, weights_of=None):
    """Copies what the tests read from the complete model folder `work` to `out`/<name of work>, with the tokenizer files as
    links into `out`/tokenizers, and the weights as links into `out`/`weights_of` if that is given."""
    target = out / work.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in (path for pattern in KEPT_FILES for path in work.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)
    for path in (path for pattern in WEIGHT_FILES for path in work.glob(pattern)):
        if weights_of is None:
            shutil.copyfile(path, target / path.name)
        else:
            (target / path.name).symlink_to(Path("..") / weights_of / path.name)
    shared = Path("..") / "tokenizers" / tokenizer
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
