//! `tokenizer.json` and the two small files beside it, laid out as in the published models: the special tokens have
//! their ids, the model is the same, and only the words are made up.

use serde_json::{Value, json};

use super::vocabulary::{Style, pieces};
use super::{Family, bpe};

/// The contents of `tokenizer.json` for exactly `vocab_size` ids.
pub(crate) fn tokenizer(family: Family, vocab_size: usize) -> Value {
    match family {
        Family::Xlmr => unigram(vocab_size),
        Family::Bert => word_piece(vocab_size),
        Family::Gemma => bpe::gemma(vocab_size, false),
        Family::Minicpm => bpe::llama(vocab_size),
        Family::Gemma2 => bpe::gemma(vocab_size, true),
    }
}

/// The contents of `tokenizer_config.json`, from which other runtimes know the class and the limit.
pub(crate) fn tokenizer_config(family: Family, max_tokens: usize) -> Value {
    match family {
        Family::Xlmr => json!({
            "tokenizer_class": "XLMRobertaTokenizer", "model_max_length": max_tokens,
            "clean_up_tokenization_spaces": true,
            "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>",
            "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
        }),
        Family::Bert => json!({
            "tokenizer_class": "BertTokenizer", "model_max_length": max_tokens,
            "clean_up_tokenization_spaces": true,
            "do_lower_case": true, "strip_accents": null, "tokenize_chinese_chars": true,
            "cls_token": "[CLS]", "sep_token": "[SEP]",
            "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
        }),
        Family::Gemma | Family::Gemma2 => json!({
            "tokenizer_class": "GemmaTokenizer", "model_max_length": max_tokens,
            "clean_up_tokenization_spaces": false, "add_bos_token": true, "add_eos_token": false,
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        }),
        Family::Minicpm => json!({
            "tokenizer_class": "LlamaTokenizer", "model_max_length": max_tokens,
            "clean_up_tokenization_spaces": false, "add_bos_token": true, "add_eos_token": false, "legacy": true,
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>",
        }),
    }
}

/// XLM-R's layout: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, pieces, `<mask>` last.
///
/// The published normaliser is a table compiled from NFKC; plain NFKC stands in for it.
fn unigram(vocab_size: usize) -> Value {
    let mask_id = vocab_size - 1;
    let pieces = pieces(Style::SentencePiece, vocab_size - 5);
    let mut vocab: Vec<(String, f64)> =
        ["<s>", "<pad>", "</s>", "<unk>"].map(|token| (token.to_owned(), 0.0)).into();
    let last = pieces.len().max(2) - 1;
    for (i, piece) in pieces.into_iter().enumerate() {
        // Costs between 8 and 11 are close enough for the cut with the fewest pieces to be the most probable one.
        let cost = 8.0 + 3.0 * i as f64 / last as f64;
        vocab.push((piece, -(cost * 1e4).round() / 1e4));
    }
    vocab.push(("<mask>".to_owned(), 0.0));
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            added_token(0, "<s>", false, true), added_token(1, "<pad>", false, true), added_token(2, "</s>", false, true),
            added_token(3, "<unk>", false, true), added_token(mask_id, "<mask>", true, true),
        ],
        "normalizer": { "type": "NFKC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "WhitespaceSplit" },
            { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("<s>"), sequence("A"), special("</s>")],
            "pair": [special("<s>"), sequence("A"), special("</s>"), special("</s>"), sequence("B"), special("</s>")],
            "special_tokens": {
                "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] },
                "</s>": { "id": "</s>", "ids": [2], "tokens": ["</s>"] },
            },
        },
        "decoder": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true },
        "model": { "type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": false },
    })
}

/// The first id of BERT's English vocabulary that stands for text.
const FIRST_BERT_PIECE: usize = 999;

/// The layout of BERT's English vocabulary: `[PAD]` 0, `[UNK]` 100, `[CLS]` 101, `[SEP]` 102, `[MASK]` 103, unused
/// entries between and behind them, text from 999 on.
fn word_piece(vocab_size: usize) -> Value {
    let specials = [(0, "[PAD]"), (100, "[UNK]"), (101, "[CLS]"), (102, "[SEP]"), (103, "[MASK]")];
    let mut unused = (0..).map(|n| format!("[unused{n}]"));
    let heads = (0..FIRST_BERT_PIECE).map(|id| match specials.iter().find(|(special, _)| *special == id) {
        Some((_, token)) => Some((*token).to_owned()),
        None => unused.next(),
    });
    let mut vocab = serde_json::Map::new();
    for (id, piece) in
        heads.flatten().chain(pieces(Style::WordPiece, vocab_size - FIRST_BERT_PIECE)).enumerate()
    {
        vocab.insert(piece, id.into());
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials.map(|(id, token)| added_token(id, token, false, true)),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), sequence("A"), special("[SEP]")],
            "pair": [special("[CLS]"), sequence("A"), special("[SEP]"), second_sequence("B"), second_special("[SEP]")],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [101], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [102], "tokens": ["[SEP]"] },
            },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    })
}

/// `<mask>` takes the space before it with it and is looked for in the normalised text; the others do neither.
pub(super) fn added_token(id: usize, content: &str, mask: bool, special: bool) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": mask, "rstrip": false,
        "normalized": mask, "special": special,
    })
}

pub(super) fn special(id: &str) -> Value {
    json!({ "SpecialToken": { "id": id, "type_id": 0 } })
}

pub(super) fn sequence(id: &str) -> Value {
    json!({ "Sequence": { "id": id, "type_id": 0 } })
}

pub(super) fn second_special(id: &str) -> Value {
    json!({ "SpecialToken": { "id": id, "type_id": 1 } })
}

pub(super) fn second_sequence(id: &str) -> Value {
    json!({ "Sequence": { "id": id, "type_id": 1 } })
}
