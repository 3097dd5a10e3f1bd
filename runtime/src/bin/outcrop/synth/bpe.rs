//! Byte-pair tokenizers as the decoder models have them: Gemma's and Llama's layouts of `tokenizer.json`, with
//! made-up pieces and the merges that lead to each of them.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::tokenizer::{added_token, second_sequence, second_special, sequence, special};
use super::vocabulary::{Style, pieces};

/// Runs of line breaks and of spaces that are one token in Gemma's vocabulary: up to this many.
const LONGEST_RUN: usize = 31;

/// Gemma's tokens for the tags of tables, headings and letter styles; each also has its closing tag.
const TAGS: &str =
    "table caption thead tbody tfoot tr th td h1 h2 h3 h4 h5 h6 blockquote strong em b i u s sub sup code";

/// Gemma's layout: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3, the user-defined pieces up to 216, the bytes up to 472,
/// then what was learnt. A line break is token 108. Nothing is put before a text.
///
/// In the tokenizer of Gemma 1 only the four special tokens are looked for in the raw text (`user_defined_added` false);
/// in that of Gemma 2 every user-defined piece is.
pub(crate) fn gemma(vocab_size: usize, user_defined_added: bool) -> Value {
    let specials = ["<pad>", "<eos>", "<bos>", "<unk>"];
    let mut vocabulary = Vocabulary::new(vocab_size);
    specials.iter().for_each(|token| vocabulary.reserve((*token).to_owned()));
    gemma_user_defined().into_iter().for_each(|token| vocabulary.reserve(token));
    let num_added = if user_defined_added { vocabulary.tokens.len() } else { specials.len() };
    vocabulary.reserve_bytes();
    (2..=LONGEST_RUN).for_each(|n| vocabulary.learn(&"\n".repeat(n)));
    (2..=LONGEST_RUN).for_each(|n| vocabulary.learn(&"▁".repeat(n)));
    // The reranker's score is the logit of the first.
    ["Yes", "No"].iter().for_each(|answer| vocabulary.learn(answer));
    vocabulary.learn_words();

    let added_tokens: Vec<Value> = vocabulary.tokens[..num_added]
        .iter()
        .enumerate()
        .map(|(id, token)| added_token(id, token, false, id < specials.len()))
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": replace(" ", "▁"),
        // Finds no space, because the normalizer left none; the published file has it.
        "pre_tokenizer": {
            "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
        },
        "post_processor": begin_with("<bos>", 2),
        "decoder": { "type": "Sequence", "decoders": [
            replace("▁", " "), { "type": "ByteFallback" }, { "type": "Fuse" },
        ]},
        "model": vocabulary.into_model(),
    })
}

/// Llama's layout, which MiniCPM has: `<unk>` 0, `<s>` 1, `</s>` 2, the bytes up to 258, then what was learnt. Every text
/// gets a `▁` in front; a line break is a byte.
pub(crate) fn llama(vocab_size: usize) -> Value {
    let specials = ["<unk>", "<s>", "</s>"];
    let mut vocabulary = Vocabulary::new(vocab_size);
    specials.iter().for_each(|token| vocabulary.reserve((*token).to_owned()));
    vocabulary.reserve_bytes();
    vocabulary.learn_words();

    let added_tokens: Vec<Value> =
        specials.iter().enumerate().map(|(id, token)| added_token(id, token, false, true)).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" }, replace(" ", "▁"),
        ]},
        "pre_tokenizer": null,
        "post_processor": begin_with("<s>", 1),
        "decoder": { "type": "Sequence", "decoders": [
            replace("▁", " "), { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ]},
        "model": vocabulary.into_model(),
    })
}

/// Gemma's pieces from id 4 to 216, in their order.
fn gemma_user_defined() -> Vec<String> {
    let mut tokens = ["<mask>", "<2mass>", "[@BOS@]"].map(str::to_owned).to_vec();
    tokens.extend((0..99).map(|n| format!("<unused{n}>")));
    tokens.extend(["<start_of_turn>", "<end_of_turn>"].map(str::to_owned));
    tokens.extend((1..=LONGEST_RUN).map(|n| "\n".repeat(n)));
    tokens.extend((2..=LONGEST_RUN).map(|n| "▁".repeat(n)));
    tokens.extend(TAGS.split_whitespace().flat_map(|tag| [format!("<{tag}>"), format!("</{tag}>")]));
    tokens
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content })
}

/// The post-processor that puts the token `bos` before each text.
fn begin_with(bos: &str, id: usize) -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [special(bos), sequence("A")],
        "pair": [special(bos), sequence("A"), second_special(bos), second_sequence("B")],
        "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
    })
}

/// A byte-pair vocabulary that grows by one piece at a time up to a fixed size.
///
/// A piece is learnt by tokenising it with the merges so far and adding the merges that join what is left. These come
/// last in the order of merges, where they cannot fire before the others have done their work: a piece once learnt
/// stays one token.
struct Vocabulary {
    size: usize,
    tokens: Vec<String>,
    ids: HashMap<String, usize>,
    /// The pairs in the order of their merges.
    merges: Vec<(usize, usize)>,
    /// For a pair, its place in that order and what it makes.
    merged: HashMap<(usize, usize), (usize, usize)>,
}

impl Vocabulary {
    fn new(size: usize) -> Vocabulary {
        let (tokens, ids) = (Vec::with_capacity(size), HashMap::with_capacity(size));
        Vocabulary { size, tokens, ids, merges: Vec::new(), merged: HashMap::new() }
    }

    /// Gives `token` the next id, without merges that lead to it.
    fn reserve(&mut self, token: String) {
        self.id(token);
    }

    /// The tokens that stand for the bytes of characters that are no tokens.
    fn reserve_bytes(&mut self) {
        (0..=0xff).for_each(|byte| self.reserve(format!("<0x{byte:02X}>")));
    }

    /// Fills the vocabulary with pieces of English first, and made-up words last.
    fn learn_words(&mut self) {
        // Some ids go to what the pieces are put together from: these are more than are needed.
        for piece in pieces(Style::SentencePiece, self.size) {
            if self.tokens.len() == self.size {
                return;
            }
            self.learn(&piece);
        }
    }

    /// Makes `piece` one token, as far as there is room.
    fn learn(&mut self, piece: &str) {
        let symbols: Option<Vec<usize>> = piece.chars().map(|c| self.id(c.to_string())).collect();
        let Some(mut symbols) = symbols else { return };
        while symbols.len() > 1 {
            let known = symbols.windows(2).enumerate().filter_map(|(at, pair)| {
                let (rank, token) = self.merged.get(&(pair[0], pair[1]))?;
                Some((*rank, at, *token))
            });
            let (at, token) = match known.min() {
                Some((_, at, token)) => (at, token),
                None => match self.merge(symbols[0], symbols[1]) {
                    Some(token) => (0, token),
                    None => return,
                },
            };
            symbols[at] = token;
            symbols.remove(at + 1);
        }
    }

    /// The id of a token, a new one if it has none and there is room.
    fn id(&mut self, token: String) -> Option<usize> {
        if let Some(id) = self.ids.get(&token) {
            return Some(*id);
        }
        let id = self.tokens.len();
        (id < self.size).then(|| {
            self.tokens.push(token.clone());
            self.ids.insert(token, id);
            id
        })
    }

    /// Adds the merge of a pair, the last in order; what it makes.
    fn merge(&mut self, left: usize, right: usize) -> Option<usize> {
        let token = self.id(format!("{}{}", self.tokens[left], self.tokens[right]))?;
        self.merged.insert((left, right), (self.merges.len(), token));
        self.merges.push((left, right));
        Some(token)
    }

    /// The `model` of tokenizer.json.
    fn into_model(self) -> Value {
        let merges: Vec<String> = self
            .merges
            .iter()
            .map(|(left, right)| format!("{} {}", self.tokens[*left], self.tokens[*right]))
            .collect();
        let vocab: serde_json::Map<String, Value> =
            self.tokens.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
        json!({
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        })
    }
}
