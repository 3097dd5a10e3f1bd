//! Small tokenizers of each kind. The published vocabularies are covered by the fixtures of the integration tests.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A WordPiece tokenizer that wraps a text in `[CLS]` and `[SEP]`.
fn word_piece() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [
            {"id": 1, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 2, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}
        },
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "rock": 3, "##s": 4, "a": 5}}
    })
}

/// A BPE tokenizer with the given merges and no post-processor.
fn bpe(merges: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, " ": 5}, "merges": merges}
    })
}

fn open(tokenizer: &Value) -> Result<Tokenizer, Error> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(TOKENIZER), tokenizer.to_string()).unwrap();
    Tokenizer::open(dir.path())
}

#[test]
fn a_tokenizer_can_be_shared_between_threads() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Tokenizer>();
}

#[test]
fn word_piece_with_its_special_ids() {
    let tokenizer = open(&word_piece()).unwrap();
    assert_eq!(tokenizer.kind(), TokenizerKind::WordPiece);
    assert_eq!(tokenizer.encode("Rocks, a rock").unwrap(), [3, 4, 0, 5, 3]);
    assert_eq!(tokenizer.special_ids(), (&[1][..], &[2][..]));
    assert_eq!(tokenizer.vocab_size(), 6);
    assert_eq!(tokenizer.token_to_id("##s"), Some(4));
    assert_eq!(tokenizer.token_to_id("sand"), None);
    assert_eq!(tokenizer.encode("").unwrap(), [] as [u32; 0]);
    // Spelt-out special tokens become special ids.
    assert_eq!(tokenizer.encode("a [SEP] rock").unwrap(), [5, 2, 3]);
}

#[test]
fn truncation_and_padding_in_the_file_are_ignored() {
    let mut file = word_piece();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"});
    let tokenizer = open(&file).unwrap();
    assert_eq!(tokenizer.encode("a a a a a a a a a a").unwrap(), [5; 10]);
    assert_eq!(tokenizer.encode("a").unwrap(), [5]);
    assert_eq!(tokenizer.special_ids(), (&[1][..], &[2][..]));
}

/// A unigram tokenizer over words of one letter, as SentencePiece writes it.
fn unigram() -> Value {
    let pieces = json!([
        ["<unk>", 0.0],
        ["\u{2581}", -3.0],
        ["\u{2581}a", -2.0],
        ["a", -2.5],
        ["aa", -5.0],
        ["b", -2.5]
    ]);
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": false},
        "post_processor": null, "decoder": null, "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}
    })
}

proptest! {
    /// The start of a text has the ids that the whole text begins with, and more than were wanted if there are more.
    #[test]
    fn the_start_of_a_text_is_as_in_the_whole(
        words in prop::collection::vec("[ab]{1,40}| {1,3}|[ab]é|\n", 0..300),
        wanted in 0_usize..40,
    ) {
        let text = words.join(" ");
        let merges = json!(["a b", "ab c"]);
        for file in [word_piece(), bpe(merges), unigram()] {
            let tokenizer = open(&file).unwrap();
            let whole = tokenizer.encode(&text).unwrap();
            let start = tokenizer.encode_start(&text, wanted).unwrap();
            prop_assert_eq!(start.len() > wanted, whole.len() > wanted);
            let kept = whole.len().min(wanted);
            prop_assert_eq!(&start[..kept], &whole[..kept]);
        }
    }
}

#[test]
fn only_the_start_of_a_long_text_is_tokenised() {
    let text = "a ".repeat(1000);
    let tokenizer = open(&word_piece()).unwrap();
    assert!(tokenizer.splits_at_spaces());
    // 16 bytes for each of 11 ids, up to the next end of a word.
    assert_eq!(tokenizer.encode_start(&text, 10).unwrap().len(), 89);
    assert_eq!(tokenizer.encode_start(&text, 1000).unwrap().len(), 1000);
    // Words that are one token each need more bytes at the second try.
    let long = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa ".repeat(100);
    assert_eq!(tokenizer.encode_start(&long, 10).unwrap().len(), 12);
    // Nowhere to cut.
    assert_eq!(tokenizer.encode_start(&"a, ".repeat(1000), 10).unwrap().len(), 2000);
}

#[test]
fn a_vocabulary_with_tokens_over_two_words_sees_whole_texts() {
    let mut file = bpe(json!([["a", " "], ["a ", "b"]]));
    file["model"]["vocab"] = json!({"a": 0, "b": 1, " ": 2, "a ": 3, "a b": 4});
    let tokenizer = open(&file).unwrap();
    assert!(!tokenizer.splits_at_spaces());
    let text = "a b".repeat(1000);
    assert_eq!(tokenizer.encode_start(&text, 1).unwrap(), [4; 1000]);
    for (token, crosses) in
        [("\u{2581}a", false), ("\u{2581}\u{2581}", false), ("\u{120}the", false), ("a\u{2581}b", true)]
    {
        assert_eq!(crosses_words(token), crosses, "{token}");
    }
}

#[test]
fn merges_may_be_strings_or_pairs() {
    for merges in [json!(["a b", "ab c"]), json!([["a", "b"], ["ab", "c"]])] {
        let tokenizer = open(&bpe(merges)).unwrap();
        assert_eq!(tokenizer.kind(), TokenizerKind::Bpe);
        assert_eq!(tokenizer.encode("abcab").unwrap(), [4, 3]);
        assert_eq!(tokenizer.special_ids(), (&[][..], &[][..]));
    }
}

#[test]
fn a_missing_file_comes_with_the_command_that_makes_it() {
    let dir = TempDir::new().unwrap();
    let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("no tokenizer.json in {}; make one", dir.path().display())),
        "{message}"
    );
    fs::write(dir.path().join("sentencepiece.bpe.model"), "").unwrap();
    let message = Tokenizer::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains(", only sentencepiece.bpe.model; make one with"), "{message}");
    assert!(message.contains("python3 -c") && message.contains("AutoTokenizer"), "{message}");
    assert!(matches!(Tokenizer::from_file(&dir.path().join("none.json")), Err(Error::Read { .. })));
}

#[test]
fn damaged_files_are_errors() {
    let mut bad_merge = bpe(json!(["a z"]));
    assert!(matches!(open(&bad_merge), Err(Error::Tokenizer { .. })));
    bad_merge["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
    assert!(matches!(open(&bad_merge), Err(Error::UnsupportedTokenizer { .. })));
    assert!(matches!(open(&json!({"model": {"type": "Unigram", "vocab": []}})), Err(Error::Encode { .. })));
    for file in [json!({}), json!([]), json!(null), json!({"model": {"type": "Unigram", "vocab": [1]}})] {
        assert!(matches!(open(&file), Err(Error::Tokenizer { .. })), "{file}");
    }
    // A vocabulary that cannot write the letter `a` gives no way to see what surrounds a text.
    let mut no_letters = bpe(json!([]));
    no_letters["model"]["vocab"] = json!({"b": 0});
    assert!(matches!(open(&no_letters), Err(Error::SpecialTokens { .. })));

    for map in [json!("AAAA"), json!("?"), json!(1)] {
        let mut bad_map = word_piece();
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": map});
        bad_map["normalizer"] = json!({"type": "Sequence", "normalizers": [precompiled]});
        assert!(matches!(open(&bad_map), Err(Error::Tokenizer { .. })), "{map}");
    }

    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(TOKENIZER), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(matches!(Tokenizer::open(dir.path()), Err(Error::GitLfsPointer { .. })));
}
