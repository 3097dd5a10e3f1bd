"""Tiny decoder rerankers with random weights, and the scores FlagEmbedding gives for them.

    python make_decoders.py OUT [NAME ...]

needs OUT/tokenizers (make_tokenizers.py) and writes a folder for every name of MODELS. All scores are fp32 on the CPU, also
those of weights stored as BF16: the values drawn are rounded to bf16, and the reference computes with them in fp32. README.md
describes expected.json.
"""

import json
import sys
import tempfile
from pathlib import Path

from common import TRACED, add_tokenizer, draw, edit_config, keep_fixture, last_call, quiet, run_case, versions, write_json
from tiny_text import PAIRS
import torch
from safetensors.torch import save_file

F32, BF16 = torch.float32, torch.bfloat16
FEW = [0, 1, 2, 5, 6, 7]  # indices in PAIRS: short ones and those with an empty text
LONG = [9, 1]  # a query and a passage beyond every limit, and a short pair
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NO_PREFIXES = {"query_instruction_for_rerank": "", "passage_instruction_for_rerank": ""}
MERGED = "peft_path is relative to the model's folder"

# The standard deviation of an entry: of embeddings and norms as it is, of a matrix divided by the root of its inputs. They
# keep every part of a network audible in the score: attention is neither uniform nor one-hot, soft-caps bend, heads differ.
GEMMA_SPREADS = {"embed_tokens": 0.35, "norm": 0.3, "q_proj": 1.3, "k_proj": 1.3, "v_proj": 1.2, "o_proj": 2.0,
                 "gate_proj": 1.5, "up_proj": 1.5, "down_proj": 2.0}
GEMMA2_SPREADS = {**GEMMA_SPREADS, "q_proj": 2.0, "k_proj": 2.0, "linear_head": 12.0}
MINICPM_SPREADS = {"embed_tokens": 0.1, "norm": 0.25, "q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.5, "o_proj": 2.0,
                   "gate_proj": 1.5, "up_proj": 1.5, "down_proj": 2.0, "linear_head": 4.5}


def draw_decoder(model, seed, spreads, norm_mean):
    def spread(name, parameter):
        part = next((part for part in spreads if part in name), None)
        if part is None:
            assert name == "lm_head.weight", name  # the tied embedding again
            return None
        if part in ("embed_tokens", "norm"):
            return (norm_mean if part == "norm" else 0.0), spreads[part]
        return 0.0, spreads[part] / parameter.shape[1] ** 0.5

    draw(model, seed, spread)


def write_adapter(model, folder, seed, **config):
    """Writes a random adapter for `model` in peft's file layout, which also turns `model` into a peft model."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **config))

    def spread(name, parameter):
        if "lora_" in name:
            return 0.0, 0.1
        return (0.0, 0.6) if "modules_to_save" in name else None

    draw(adapted, seed, spread)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    # peft writes the path of the base model, and sets in another order in every process.
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    written.update(base_model_name_or_path="..", target_modules=sorted(written["target_modules"]))
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def write_trace(reranker, folder, options):
    """Keeps the hidden states of one pair alone, without padding: what goes into every layer and what comes out of it."""
    _, call = last_call(reranker, list(PAIRS[TRACED][1:]), options)
    real = call["attention_mask"][0].bool()
    call.update({name: call[name][:, real] for name in ("input_ids", "attention_mask")})
    trace, hooks = {"input_ids": call["input_ids"][0]}, []
    for index, layer in enumerate(reranker.model.model.layers):
        def record(_, args, output, name=f"layer_{index:02}"):
            trace[f"{name}_in"], trace[f"{name}_out"] = args[0][0].clone(), output[0][0].clone()

        hooks.append(layer.register_forward_hook(record))
    with torch.no_grad():
        logits = reranker.model(**call).logits
    for hook in hooks:
        hook.remove()
    if isinstance(logits, tuple):  # one [1, tokens] per cutoff
        trace["scores"] = torch.stack([per_cutoff[0, -1] for per_cutoff in logits])
    else:  # [1, tokens, vocabulary]
        trace["scores"] = logits[0, -1, reranker.yes_loc : reranker.yes_loc + 1].clone()
    save_file({name: tensor.contiguous() for name, tensor in trace.items()}, folder / "trace.safetensors")


# Gemma


def build_gemma(folder, tokenizers, seed, layers, heads, head_dim, intermediate_size, dtype, shard, activation):
    from transformers import GemmaConfig, GemmaForCausalLM

    vocab_size = add_tokenizer(folder, tokenizers / "gemma" / "tokenizer.json", "GemmaTokenizerFast", 8192)
    model = GemmaForCausalLM(GemmaConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=1, head_dim=head_dim, hidden_act="gelu", hidden_activation=activation,
        max_position_embeddings=8192, rms_norm_eps=1e-6, pad_token_id=0, eos_token_id=1, bos_token_id=2, rope_theta=10000.0,
        attention_bias=False))
    draw_decoder(model, seed, GEMMA_SPREADS, 0.0)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    # Where the file has none, as the published one, transformers 4.44.2 uses tanh, whatever hidden_act says; saving would write
    # that down.
    edit_config(folder, without=[] if activation else ["hidden_activation"], hidden_act="gelu", rope_scaling=None)


def gemma_reranker(folder, **constructor):
    from FlagEmbedding import FlagLLMReranker

    if "peft_path" in constructor:
        constructor["peft_path"] = str(folder / constructor["peft_path"])
    return quiet(FlagLLMReranker, str(folder), use_fp16=False, devices="cpu", **constructor)


def write_gemma_adapters(folder):
    from transformers import AutoModelForCausalLM

    def load():
        return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=F32)

    write_adapter(load(), folder / "lora_adapter", 22, r=4, lora_alpha=16, target_modules=LINEAR)
    write_adapter(load(), folder / "rslora_adapter", 23, r=3, lora_alpha=6, use_rslora=True,
                  target_modules=["q_proj", "v_proj", "down_proj"])


def stacked_reranker(folder, adapters):
    """The packaged class takes one adapter; its research code merges several one after the other."""
    from peft import PeftModel

    reranker = gemma_reranker(folder)
    for adapter in adapters:
        reranker.model = PeftModel.from_pretrained(reranker.model, folder / adapter).merge_and_unload()
    return reranker


def gemma_cases(folder, name):
    """Every case of one Gemma model, and its trace."""
    plain = gemma_reranker(folder)
    assert plain.model.dtype == F32
    yield run_case(plain, "default")
    if name != "gemma":
        return

    def constructed(case_name, picks=None, note=None, **constructor):
        reranker = gemma_reranker(folder, **constructor)
        return run_case(reranker, case_name, picks=picks, constructor=constructor, note=note)

    yield run_case(plain, "normalize", normalize=True, capture=False)
    yield run_case(plain, "batch_size_3", batch_size=3, capture=False)
    yield run_case(plain, "max_length_64", max_length=64)
    yield run_case(plain, "max_length_64_query_16", max_length=64, query_max_length=16)
    yield run_case(plain, "max_length_10", max_length=10)
    yield run_case(plain, "query_limit_above_max_length", picks=LONG, max_length=32, query_max_length=400,
                   note="the passage with its separator is shorter than what must go: nothing is cut")
    yield run_case(plain, "prompt", prompt="Predict whether passage B contains an answer to query A.")
    yield run_case(plain, "prompt_empty", picks=[0, 1, 6, 7], prompt="")
    yield constructed("no_prefixes", **NO_PREFIXES)
    yield constructed("other_prefixes", FEW, query_instruction_for_rerank="query: ", passage_instruction_for_rerank="doc: ")
    yield constructed("instructions", FEW, query_instruction_for_rerank="Represent this query: ",
                      passage_instruction_for_rerank="passage", passage_instruction_format="{} -> {}")
    yield constructed("instruction_format_backslash_n", FEW, query_instruction_for_rerank="find",
                      query_instruction_format="Task: {}\\nQuery: {}",
                      note="the two characters backslash n in the format become a newline; the passage keeps its prefix")
    yield run_case(plain, "single_pair_list", picks=[TRACED])
    yield run_case(plain, "empty_list", pairs=[])
    right = gemma_reranker(folder)
    right.tokenizer.padding_side = "right"
    yield run_case(right, "right_padding", constructor={"padding_side": "right"})
    quiet(write_gemma_adapters, folder)
    yield constructed("lora_adapter_merged", note=f"{MERGED}; r 4, alpha 16, all seven linear layers", peft_path="lora_adapter")
    yield constructed("rslora_adapter_merged", note=f"{MERGED}; r 3, alpha 6, scaled by alpha / sqrt(r); q, v and down",
                      peft_path="rslora_adapter")
    both = ["lora_adapter", "rslora_adapter"]
    yield run_case(stacked_reranker(folder, both), "lora_then_rslora_merged", constructor={"peft_path": both},
                   note="the second is loaded onto the result of merging the first")
    write_trace(plain, folder, {})


# MiniCPM layerwise

MINICPM_AUTO_MAP = {"AutoConfig": "configuration_minicpm_reranker.LayerWiseMiniCPMConfig",
                    "AutoModel": "modeling_minicpm_reranker.LayerWiseMiniCPMModel",
                    "AutoModelForCausalLM": "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM"}


def build_minicpm(folder, tokenizers, seed, heads, kv_heads, intermediate_size, dtype, shard, head_multi, eps, theta):
    from FlagEmbedding.inference.reranker.decoder_only.models.configuration_minicpm_reranker import LayerWiseMiniCPMConfig
    from FlagEmbedding.inference.reranker.decoder_only.models.modeling_minicpm_reranker import LayerWiseMiniCPMForCausalLM

    vocab_size = add_tokenizer(folder, tokenizers / "minicpm" / "tokenizer.json", "LlamaTokenizerFast", 2048,
                               pad_token="<unk>", legacy=True, add_bos_token=True, add_eos_token=False)
    model = LayerWiseMiniCPMForCausalLM(LayerWiseMiniCPMConfig(
        vocab_size=vocab_size, hidden_size=64, intermediate_size=intermediate_size, num_hidden_layers=6,
        num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_act="silu", max_position_embeddings=2048,
        initializer_range=0.1, rms_norm_eps=eps, use_cache=False, bos_token_id=1, eos_token_id=2, rope_theta=theta,
        rope_scaling=None, attention_bias=False, scale_emb=12, dim_model_base=256, scale_depth=1.4, start_layer=2,
        head_multi=head_multi, head_type="simple", pretraining_tp=1))
    draw_decoder(model, seed, MINICPM_SPREADS, 1.0)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    # The published file says bfloat16 whatever the weights are stored as: they are F32.
    edit_config(folder, architectures=["LayerWiseMiniCPMForCausalLM"], auto_map=MINICPM_AUTO_MAP, model_type="minicpm",
                torch_dtype="bfloat16")


def minicpm_reranker(folder, **constructor):
    from FlagEmbedding import LayerWiseFlagLLMReranker

    if "peft_path" in constructor:
        constructor["peft_path"] = str(folder / constructor["peft_path"])
    # On the CPU the class switches fp16 off; without it, it warns.
    return quiet(LayerWiseFlagLLMReranker, str(folder), use_fp16=True, devices="cpu", **constructor)


def minicpm_adapted(folder, name, note, cutoff_layers, **config):
    """Writes an adapter and scores with it merged."""
    adapter = name.removesuffix("_merged")
    quiet(write_adapter, minicpm_reranker(folder).model, folder / adapter, 36, **config)
    constructor = {"peft_path": adapter}
    reranker = minicpm_reranker(folder, **constructor)
    return run_case(reranker, name, constructor=constructor, note=f"{MERGED}; {note}", cutoff_layers=cutoff_layers)


def minicpm_cases(folder, name):
    """Every case of one MiniCPM model, and its trace."""
    plain = minicpm_reranker(folder)
    assert plain.model.dtype == F32
    every = [2, 3, 4, 5, 6]
    yield run_case(plain, "cutoff_none", note="last layer")
    yield run_case(plain, "cutoff_4", cutoff_layers=[4])
    yield run_case(plain, "cutoff_2_3_4_5_6", cutoff_layers=every)
    if name == "minicpm_single_head":
        yield minicpm_adapted(folder, "head_lora_adapter_merged", "r 2, alpha 8, the head and q", every,
                              r=2, lora_alpha=8, target_modules=["linear_head", "q_proj"])
    if name != "minicpm_layerwise":
        return
    yield run_case(plain, "cutoff_first", cutoff_layers=[2])
    yield run_case(plain, "cutoff_int", cutoff_layers=4)
    yield run_case(plain, "cutoff_unsorted_6_2", cutoff_layers=[6, 2],
                   note="results are in layer order (2, 6), but the i-th result uses the head of the i-th layer in the list "
                        "given: state 2 with head 6, state 6 with head 2")
    yield run_case(plain, "cutoff_duplicate_4_4", cutoff_layers=[4, 4], note="one result")
    yield run_case(plain, "cutoff_some_invalid_1_4_99", cutoff_layers=[1, 4, 99], note="1 and 99 are dropped")
    yield run_case(plain, "cutoff_all_invalid", cutoff_layers=[1, 99])
    yield run_case(plain, "cutoff_empty_list", cutoff_layers=[])
    yield run_case(plain, "normalize_4_6", cutoff_layers=[4, 6], normalize=True, capture=False)
    yield run_case(plain, "batch_size_3", cutoff_layers=[4, 6], batch_size=3, capture=False)
    yield run_case(plain, "max_length_64", cutoff_layers=[4, 6], max_length=64)
    yield run_case(plain, "max_length_64_query_16", cutoff_layers=[5], max_length=64, query_max_length=16)
    yield run_case(plain, "prompt", cutoff_layers=[4], prompt="Is B an answer to A?", picks=FEW)
    yield run_case(minicpm_reranker(folder, **NO_PREFIXES), "no_prefixes", constructor=NO_PREFIXES, cutoff_layers=[4])
    constructor = {"cutoff_layers": [3, 5]}
    yield run_case(minicpm_reranker(folder, **constructor), "cutoff_from_constructor", picks=[0, 1, 2], constructor=constructor)
    yield minicpm_adapted(folder, "lora_adapter_merged",
                          "r 4, alpha 16, all seven linear layers, and every head replaced by a saved one", every,
                          r=4, lora_alpha=16, target_modules=LINEAR, modules_to_save=["linear_head"])
    write_trace(plain, folder, {"cutoff_layers": [2, 4, 6]})


# Gemma 2 lightweight

GEMMA2_AUTO_MAP = {"AutoConfig": "gemma_config.CostWiseGemmaConfig", "AutoModel": "gemma_model.CostWiseGemmaModel",
                   "AutoModelForCausalLM": "gemma_model.CostWiseGemmaForCausalLM"}


def build_gemma2(folder, tokenizers, seed, hidden_size, head_dim, scalar, dtype, shard, layer_sep, window, eps, theta):
    from FlagEmbedding.inference.reranker.decoder_only.models.gemma_config import CostWiseGemmaConfig
    from FlagEmbedding.inference.reranker.decoder_only.models.gemma_model import CostWiseGemmaForCausalLM

    vocab_size = add_tokenizer(folder, tokenizers / "gemma" / "tokenizer.json", "GemmaTokenizerFast", 8192)
    model = CostWiseGemmaForCausalLM(CostWiseGemmaConfig(
        start_layer=2, layer_sep=layer_sep, layer_wise=True, vocab_size=vocab_size, hidden_size=hidden_size,
        intermediate_size=64, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim,
        hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192, rms_norm_eps=eps, query_pre_attn_scalar=scalar,
        sliding_window=window, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, pad_token_id=0, eos_token_id=1,
        bos_token_id=2, rope_theta=theta, use_cache=True, cache_implementation="hybrid"))
    draw_decoder(model, seed, GEMMA2_SPREADS, 0.0)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    edit_config(folder, architectures=["CostWiseGemmaForCausalLM"], auto_map=GEMMA2_AUTO_MAP, model_type="cost_wise_gemma",
                hidden_act="gelu_pytorch_tanh", sliding_window_size=window, attention_bias=False)


def gemma2_reranker(folder, eager=False, **constructor):
    from FlagEmbedding import LightWeightFlagLLMReranker
    from FlagEmbedding.inference.reranker.decoder_only.models.gemma_model import CostWiseGemmaForCausalLM

    # On the CPU the class switches fp16 off; without it, it warns.
    reranker = quiet(LightWeightFlagLLMReranker, str(folder), use_fp16=True, devices="cpu", **constructor)
    if eager:
        load = CostWiseGemmaForCausalLM.from_pretrained
        reranker.model = quiet(load, folder, torch_dtype=F32, attn_implementation="eager")
    return reranker


def gemma2_cases(folder, name):
    """Every case of one Gemma 2 model, and its trace."""
    eager = name == "gemma2_lightweight_eager"
    plain = gemma2_reranker(folder, eager)
    assert plain.model.dtype == F32 and plain.model.config._attn_implementation == ("eager" if eager else "sdpa")
    yield run_case(plain, "cutoff_none_ratio_1", note="last layer, head 0")
    yield run_case(plain, "cutoff_8_ratio_2_layers_4_6", cutoff_layers=[8], compress_ratio=2, compress_layers=[4, 6])
    if name == "gemma2_lightweight_sep2":
        yield run_case(plain, "cutoff_2_4_6_8", cutoff_layers=[2, 4, 6, 8])
        yield run_case(plain, "cutoff_3_4_6", cutoff_layers=[3, 4, 6], note="3 is not start_layer + k * layer_sep: dropped")
        yield run_case(plain, "cutoff_only_odd", cutoff_layers=[3, 5])
    else:
        yield run_case(plain, "cutoff_4", cutoff_layers=[4], note="state after 4 layers, head 0 (not head 2)")
    if name == "gemma2_lightweight":
        yield from cutoff_cases(plain)
        yield from compression_cases(plain)
        yield from text_cases(plain, folder)
        write_trace(plain, folder, {"cutoff_layers": [3, 5, 8], "compress_ratio": 2, "compress_layers": [4, 6]})
        write_token_compress(folder)


def cutoff_cases(plain):
    yield run_case(plain, "cutoff_2_to_8", cutoff_layers=[2, 3, 4, 5, 6, 7, 8],
                   note="every layer: here ordinal and layer agree")
    yield run_case(plain, "cutoff_3_5_8", cutoff_layers=[3, 5, 8], note="heads 0, 1, 2")
    yield run_case(plain, "cutoff_unsorted_8_3_5", cutoff_layers=[8, 3, 5], note="same as 3, 5, 8")
    yield run_case(plain, "cutoff_duplicate_5_5", cutoff_layers=[5, 5])
    yield run_case(plain, "cutoff_int_5", cutoff_layers=5)
    yield run_case(plain, "cutoff_some_invalid_1_5_99", cutoff_layers=[1, 5, 99])
    yield run_case(plain, "cutoff_all_invalid", cutoff_layers=[1, 99])


def compression_cases(plain):
    def compressed(name, ratio, layers, cutoffs=(8,), note=None, **options):
        return run_case(plain, name, note=note, cutoff_layers=list(cutoffs), compress_ratio=ratio, compress_layers=layers,
                        **options)

    yield compressed("ratio_2_layer_4", 2, [4])
    yield compressed("ratio_4_layer_4", 4, [4])
    yield compressed("ratio_8_layer_2", 8, [2])
    yield compressed("ratio_3_layer_3", 3, [3], note="3 is not a documented ratio, it works")
    yield compressed("ratio_2_layers_2_4_6", 2, [2, 4, 6], [3, 5, 8])
    yield compressed("cutoff_3_5_8_ratio_2_layers_4_6", 2, [4, 6], [3, 5, 8])
    yield compressed("cutoff_2_to_8_ratio_4_layers_3_5", 4, [3, 5], [2, 3, 4, 5, 6, 7, 8])
    yield compressed("ratio_2_layer_0", 2, [0], note="layer 0 never compresses")
    yield compressed("ratio_2_layer_0_3", 2, [0, 3], note="same as [3]")
    yield compressed("ratio_2_layer_3", 2, [3])
    yield compressed("ratio_2_layer_4_cutoff_4", 2, [4], [4],
                     note="the state is taken before the compression at the same index, and the loop ends: same as no "
                          "compression")
    yield compressed("ratio_2_layer_4_cutoffs_4_5", 2, [4], [4, 5])
    yield compressed("ratio_2_layer_7_40", 2, [7, 40], note="40 does not exist: ignored")
    yield compressed("ratio_1_layers_4_6", 1, [4, 6], note="no compression at all")
    yield compressed("ratio_2_empty_layer_list", 2, [])
    yield run_case(plain, "compress_layer_old_name", cutoff_layers=[8], compress_ratio=2, compress_layer=[4])
    yield compressed("ratio_64_longer_than_passage", 64, [4])
    yield compressed("ratio_0", 0, [4])
    yield compressed("normalize", 2, [4], [5, 8], normalize=True, capture=False)
    yield compressed("batch_size_3", 2, [4], [5, 8], batch_size=3, capture=False)
    yield compressed("max_length_64", 2, [4], max_length=64)
    yield compressed("max_length_64_query_16", 4, [2, 4], max_length=64, query_max_length=16)
    yield compressed("ratio_2_query_above_limit", 2, [4], picks=LONG, max_length=100,
                     note="the first query is cut to 75 ids, and the passage to what is left")
    yield compressed("ratio_2_query_limit_above_max_length", 2, [4], picks=LONG, max_length=32, query_max_length=400,
                     note="the passage with its separator is shorter than what must go: 32 ids of it stay")
    yield compressed("empty_passage_alone_ratio_2", 2, [4], picks=[6], note="only the prefix of the passage")
    yield compressed("prompt", 2, [4], prompt="Predict whether passages A and B have the same meaning.", picks=FEW)


def text_cases(plain, folder):
    """Compression with an empty passage, and padding on the wrong side."""
    options = {"cutoff_layers": [8], "compress_ratio": 2, "compress_layers": [4]}
    bare = gemma2_reranker(folder, **NO_PREFIXES)
    yield run_case(bare, "no_prefixes_ratio_2", constructor=NO_PREFIXES, **options,
                   note="two pairs have a passage of 0 tokens; batched with others it works")
    empty = [["what is the capital of France?", ""]]
    yield run_case(bare, "no_prefixes_empty_passage_alone", pairs=empty, constructor=NO_PREFIXES, **options,
                   note="a batch in which every passage has 0 tokens: same as without compression")
    yield run_case(bare, "no_prefixes_empty_passage_alone_ratio_1", pairs=empty, constructor=NO_PREFIXES,
                   cutoff_layers=[8], compress_ratio=1)
    plain.tokenizer.padding_side = "left"
    constructor = {"padding_side": "left"}
    yield run_case(plain, "left_padding_ratio_2", constructor=constructor, **options)
    yield run_case(plain, "left_padding_ratio_1", constructor=constructor, cutoff_layers=[8], compress_ratio=1, capture=False)
    plain.tokenizer.padding_side = "right"


def write_token_compress(folder):
    """The compression alone, on random states: odd passage lengths, zero, one, exact multiples."""
    from FlagEmbedding.inference.reranker.decoder_only.models.gemma_model import token_compress

    generator = torch.Generator().manual_seed(77)
    tensors, units = {}, []
    for unit, (ratio, rows) in enumerate([
        (2, [(3, 7, 2), (5, 4, 2), (2, 1, 2), (4, 0, 2)]),
        (4, [(3, 9, 3), (6, 8, 3), (1, 3, 3), (2, 12, 3)]),
        (8, [(4, 17, 1), (3, 8, 1), (9, 1, 1)]),
        (3, [(2, 5, 2)]),
        (16, [(2, 5, 2), (2, 3, 2)]),
    ]):
        lengths = [sum(row) for row in rows]
        padded = (max(lengths) + 7) // 8 * 8
        states = torch.randn((len(rows), padded, 6), generator=generator, dtype=torch.float64).float()
        mask = (torch.arange(padded) < torch.tensor(lengths)[:, None]).long()
        query_lengths, prompt_lengths = (torch.tensor([row[i] for row in rows]) for i in (0, 2))
        out, out_mask = token_compress(ratio, states, mask, query_lengths, prompt_lengths)
        tensors |= {f"c{unit}_in": states, f"c{unit}_mask": mask, f"c{unit}_out": out, f"c{unit}_out_mask": out_mask}
        units.append({"case": unit, "ratio": ratio, "rows_query_passage_prompt": rows, "padded_length": padded,
                      "out_shape": list(out.shape)})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "token_compress.safetensors")
    write_json(folder / "token_compress.json", units)


# All of them

# name: what builds it, its arguments after the tokenizers' folder, the tokenizer, the cases
MODELS = {
    # seed, layers, heads, head_dim, intermediate_size, stored type, shard size, hidden_activation
    "gemma": (build_gemma, (21, 3, 4, 32, 96, F32, "300KB", None), "gemma", gemma_cases),
    "gemma_exact_gelu": (build_gemma, (21, 2, 2, 256, 128, BF16, "1GB", "gelu"), "gemma", gemma_cases),
    # seed, heads, kv heads, intermediate_size, stored type, shard size, head_multi, rms_norm_eps, rope_theta
    "minicpm_layerwise": (build_minicpm, (31, 2, 2, 96, BF16, "150KB", True, 1e-5, 10000.0), "minicpm", minicpm_cases),
    "minicpm_single_head": (build_minicpm, (32, 1, 1, 64, F32, "1GB", False, 0.05, 500.0), "minicpm", minicpm_cases),
    "minicpm_gqa_bf16_stored": (build_minicpm, (33, 4, 1, 96, BF16, "1GB", True, 1e-5, 10000.0), "minicpm", minicpm_cases),
    # seed, hidden_size, head_dim, query_pre_attn_scalar, stored type, shard size, layer_sep, window, rms_norm_eps, rope_theta
    "gemma2_lightweight": (build_gemma2, (41, 64, 32, 28, BF16, "240KB", 1, 4096, 1e-6, 10000.0), "gemma", gemma2_cases),
    "gemma2_lightweight_eager": (build_gemma2, (41, 64, 32, 28, BF16, "240KB", 1, 4096, 1e-6, 10000.0), "gemma", gemma2_cases),
    "gemma2_lightweight_sep2": (build_gemma2, (42, 32, 16, 14, F32, "200KB", 2, 4096, 0.05, 500.0), "gemma", gemma2_cases),
    "gemma2_lightweight_window": (build_gemma2, (43, 32, 16, 14, F32, "200KB", 1, 24, 1e-6, 10000.0), "gemma", gemma2_cases),
}


def drop_repeated_ids(cases):
    """Removes from every case but the first the ids that its pairs have in the first case too."""
    first = dict(zip(cases[0]["pair_ids"], cases[0]["input_ids"]))
    for case in cases[1:]:
        if case.get("input_ids") == [first[pair_id] for pair_id in case.get("pair_ids", [])]:
            case.pop("input_ids", None)
            case.pop("query_and_prompt_lengths", None)


def facts(folder, name):
    """What a reader of expected.json wants to know about the reference's model and tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {"bos_token_id": tokenizer.bos_token_id, "sep_ids": tokenizer("\n", add_special_tokens=False)["input_ids"],
             "trace_pair": PAIRS[TRACED][0]}
    if name.startswith("gemma2"):
        found["attn_softcap_applied"] = name == "gemma2_lightweight_eager"
    elif name.startswith("gemma"):
        found["yes_token_id"] = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
        found["activation_used"] = "gelu exact" if name == "gemma_exact_gelu" else "gelu tanh"
    return found


def main():
    out = Path(sys.argv[1])
    for name in sys.argv[2:] or MODELS:
        build, arguments, tokenizer, cases_of = MODELS[name]
        with tempfile.TemporaryDirectory() as scratch:
            work = Path(scratch) / name
            work.mkdir()
            build(work, out / "tokenizers", *arguments)
            cases = list(cases_of(work, name))
            drop_repeated_ids(cases)
            pairs = {pair_id: {"query": query, "passage": passage} for pair_id, query, passage in PAIRS}
            write_json(work / "expected.json", {"family": name, "versions": versions("FlagEmbedding", "peft"),
                                                **facts(work, name), "pairs": pairs, "cases": cases})
            keep_fixture(work, out, tokenizer, "gemma2_lightweight" if name == "gemma2_lightweight_eager" else None)
        failed = sum("error" in case for case in cases)
        worst = max(case.get("max_abs_diff_batched_vs_alone", 0.0) for case in cases)
        print(f"{name}: {len(cases)} cases, {failed} of them errors of the reference; batched and alone differ by {worst:.1e}")


if __name__ == "__main__":
    main()
