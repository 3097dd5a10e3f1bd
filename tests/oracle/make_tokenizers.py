"""Trains the tiny tokenizers in the file layouts of the published checkpoints, and records what they answer.

    python make_tokenizers.py OUT

writes OUT/tokenizers/<kind>/tokenizer.json and tokenizer.cases.json (ids of awkward strings, from the tokenizers library):

    xlmr     sentencepiece unigram, nmt_nfkc character map, fairseq id offset, <s> A </s></s> B </s>
    gemma    sentencepiece BPE, byte fallback, no dummy prefix, newline runs and space runs as user-defined symbols
    minicpm  sentencepiece BPE, byte fallback, dummy prefix ("legacy" Llama tokenizer)
    bert     WordPiece

xlmr and gemma exist in a second file, tokenizer.old_layout.json: the same vocabulary as older conversions serialised it.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from common import quiet, write_json
import sentencepiece
import tokenizers
from tokenizers import Tokenizer
from tiny_text import PAIRS, corpus

STRINGS = [query for _, query, _ in PAIRS] + [passage for _, _, passage in PAIRS] + [
    "Yes", "No", "\n", "\n\n", "\n\n\n\n\n\n", "A: ", "B: ", "A: what is panda?", "B: hi", " ", "  ", "   ", "\t", "a\tb",
    "\r\n", "a\r\nb", "trailing ", " leading", "a  b   c    d     e      f", "\u3000full width space\u3000",
    "zero\u200bwidth", "bom\ufeff", "nul\u0000byte", "<s>", "</s>", "<pad>", "<unk>", "<mask>", " <mask> x", "<bos>",
    "<eos>", "a<s>b", "<start_of_turn>user", "<h1>t</h1>", "<unused1>", "\u2581", "\u2581\u2581x", "Ｆｕｌｌ１２３", "ﬁﬂ",
    "①②", "㍿", "e\u0301", "É", "ǅ", "İ", "ß", "ﷺ", "ำ", "가", "각", "한글", "日本語テキスト", "👩‍👩‍👧‍👦", "🏳️‍🌈", "\ud7ff",
    "\U0010ffff", "12345", "3.14", "x" * 300, "don't", "U.S.A.", "e-mail@x.org", "http://a.b/c?d=e&f=g",
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'.",
    "Predict whether passage B contains an answer to query A.",
]


def train_sentencepiece(folder, **options):
    """Trains on the corpus and returns the path of the model file."""
    text = Path(folder) / "corpus.txt"
    text.write_text("\n".join(corpus()) + "\n", encoding="utf-8")
    prefix = Path(folder) / "sp"
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), minloglevel=2, num_threads=1, hard_vocab_limit=False, **options)
    return f"{prefix}.model"


def write_old_layout(folder, change):
    """Writes tokenizer.old_layout.json: tokenizer.json after `change`."""
    definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(definition)
    text = json.dumps(definition, ensure_ascii=False, indent=1)
    (folder / "tokenizer.old_layout.json").write_text(text, encoding="utf-8")


def make_xlmr(folder):
    from transformers import XLMRobertaTokenizerFast

    # A coverage below 1 leaves rare characters out, so that <unk> appears in the tests.
    model = train_sentencepiece(folder, model_type="unigram", vocab_size=900, character_coverage=0.995)
    XLMRobertaTokenizerFast(vocab_file=model).save_pretrained(folder)

    def old_layout(definition):
        normalizers = definition["normalizer"]["normalizers"]
        definition["normalizer"] = next(entry for entry in normalizers if entry["type"] == "Precompiled")
        metaspace = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}
        definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
        definition["decoder"] = metaspace

    write_old_layout(folder, old_layout)


def make_gemma(folder):
    from transformers import GemmaTokenizerFast

    symbols = ["<mask>", "<2mass>", "[@BOS@]"] + [f"<unused{i}>" for i in range(4)] + ["<start_of_turn>", "<end_of_turn>"]
    symbols += ["\n" * n for n in range(1, 5)] + ["\u2581" * n for n in range(2, 6)]
    symbols += ["<table>", "</table>", "<h1>", "</h1>"]
    model = train_sentencepiece(
        folder, model_type="bpe", vocab_size=1100, character_coverage=0.998, byte_fallback=True, split_digits=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>", user_defined_symbols=symbols)
    GemmaTokenizerFast(vocab_file=model).save_pretrained(folder)

    # Older conversions listed only the four special tokens as added tokens; the user-defined pieces were ordinary vocabulary
    # entries reached through merges.
    def old_layout(definition):
        definition["added_tokens"] = [token for token in definition["added_tokens"] if token["special"]]

    write_old_layout(folder, old_layout)


def make_minicpm(folder):
    from transformers import LlamaTokenizerFast

    model = train_sentencepiece(
        folder, model_type="bpe", vocab_size=1000, character_coverage=0.998, byte_fallback=True, split_digits=True,
        add_dummy_prefix=True, remove_extra_whitespaces=False, normalization_rule_name="identity",
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    # Without add_prefix_space, transformers 4.44.2 drops the Prepend normaliser.
    LlamaTokenizerFast(
        vocab_file=model, legacy=True, add_bos_token=True, add_eos_token=False, pad_token="<unk>", add_prefix_space=True,
    ).save_pretrained(folder)


def make_bert(folder):
    from transformers import BertTokenizerFast

    # The vocabulary was trained once on tiny_text.corpus() and is kept as a file: the WordPiece trainer breaks ties in hash
    # order, so that a second training gives another vocabulary.
    vocabulary = Path(__file__).with_name("bert_vocab.txt")
    BertTokenizerFast(vocab_file=str(vocabulary), do_lower_case=True, model_max_length=512).save_pretrained(folder)


def write_cases(path):
    """Writes <stem>.cases.json beside a tokenizer file: ids without and with special tokens, and ids of pairs."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    strings = [
        {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids, "ids_special": tokenizer.encode(text).ids}
        for text in dict.fromkeys(STRINGS)
    ]
    pairs = [{"a": a, "b": b, "ids_special": tokenizer.encode(a, b).ids} for _, a, b in PAIRS]
    cases = {"tokenizers": tokenizers.__version__, "file": path.name, "strings": strings, "pairs": pairs}
    write_json(path.with_suffix(".cases.json"), cases)


def main():
    out = Path(sys.argv[1]) / "tokenizers"
    makers = {"xlmr": make_xlmr, "gemma": make_gemma, "minicpm": make_minicpm, "bert": make_bert}
    for kind, make in makers.items():
        target = out / kind
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as folder:
            quiet(make, Path(folder))
            for name in ("tokenizer.json", "tokenizer.old_layout.json"):
                if (Path(folder) / name).exists():
                    shutil.copy(Path(folder) / name, target / name)
                    write_cases(target / name)
        print(kind, *sorted(path.name for path in target.iterdir()))


if __name__ == "__main__":
    main()
