//! `tokenizer.json`: text to ids.
//!
//! Truncation and padding in the file are ignored: they are traces of how the file was saved, and what a text is cut
//! to is decided by whoever builds the input.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::ModelWrapper;
use tokenizers::normalizers::Precompiled;

use crate::Error;
use crate::json;

#[cfg(test)]
mod tests;

const TOKENIZER: &str = "tokenizer.json";

/// The longest `tokenizer.json` that is read. Those of the largest published vocabularies have about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;

/// How much of a long text is tokenised at first, for each id that is wanted. Prose has about four bytes per token.
const BYTES_PER_ID: usize = 16;

/// A space, as texts, SentencePiece's vocabularies and byte-level ones write it.
const SPACES: [char; 3] = [' ', '\u{2581}', '\u{120}'];

/// A tokenizer. Can be used from many threads at once.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    kind: TokenizerKind,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    vocab_size: usize,
    /// Found out when it is needed first: it takes a look at the whole vocabulary.
    splits_at_spaces: OnceLock<bool>,
}

/// A token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: u32,
    /// The piece of the text, or the spelling of a special token.
    pub text: String,
    /// Whether it was put around the text.
    pub is_special: bool,
    /// The bytes of the text that it stands for.
    pub bytes: Option<std::ops::Range<usize>>,
}

/// How a tokenizer splits words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenizerKind {
    /// The most probable segmentation under a unigram model (SentencePiece; XLM-RoBERTa).
    Unigram,
    /// Byte-pair merges (Gemma, MiniCPM).
    Bpe,
    /// Longest match first (BERT).
    WordPiece,
}

impl Tokenizer {
    /// Reads the `tokenizer.json` of the model directory `dir`.
    ///
    /// # Errors
    ///
    /// [`Error::NoTokenizer`], which says how to make the file if the directory has a tokenizer in an older format,
    /// and the errors of [`Tokenizer::from_file`].
    pub fn open(dir: &Path) -> Result<Tokenizer, Error> {
        let path = dir.join(TOKENIZER);
        match json::read_if_present(&path, MAX_TOKENIZER_BYTES)? {
            Some(bytes) => Tokenizer::parse(&path, &bytes),
            None => Err(no_tokenizer(dir)),
        }
    }

    /// Reads a file in the format of `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], [`Error::FileTooLarge`], [`Error::GitLfsPointer`], [`Error::Tokenizer`],
    /// [`Error::SpecialTokens`].
    pub fn from_file(path: &Path) -> Result<Tokenizer, Error> {
        match json::read_if_present(path, MAX_TOKENIZER_BYTES)? {
            Some(bytes) => Tokenizer::parse(path, &bytes),
            None => Err(Error::Read { path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() }),
        }
    }

    /// How words are split.
    pub fn kind(&self) -> TokenizerKind {
        self.kind
    }

    /// The ids of `text`, with no special ids around them and nothing cut off.
    ///
    /// A special token that is spelt out in the text becomes its id, as in the reference.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], for a vocabulary that has no way to write the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|source| Error::Encode { path: self.path.clone(), source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The first ids of `text`: those that [`Tokenizer::encode`] gives, of which only the first `wanted` are to be relied on. There
    /// are more than `wanted` if the text has more.
    ///
    /// Of a long text no more is tokenised than that takes: a document of megabytes costs as much as the part of it that a
    /// model reads. A text without a space between two ASCII letters or digits is tokenised whole.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], as [`Tokenizer::encode`], about the part that was tokenised.
    pub fn encode_start(&self, text: &str, wanted: usize) -> Result<Vec<u32>, Error> {
        let mut at_least = wanted.saturating_add(1).saturating_mul(BYTES_PER_ID);
        while let Some(end) = word_end(text, at_least)
            && self.splits_at_spaces()
        {
            let ids = self.encode(&text[..end])?;
            if ids.len() > wanted {
                return Ok(ids);
            }
            at_least = end.saturating_mul(4);
        }
        self.encode(text)
    }

    /// The tokens of `text` with where they come from; with the special ones around them if `special` says so.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`], as [`Tokenizer::encode`].
    pub fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, Error> {
        let encoding = self.inner.encode(text, special);
        let encoding = encoding.map_err(|source| Error::Encode { path: self.path.clone(), source })?;
        let token = |i: usize| {
            let id = encoding.get_ids()[i];
            if encoding.get_special_tokens_mask()[i] != 0 {
                let text = encoding.get_tokens()[i].clone();
                return Token { id, text, is_special: true, bytes: None };
            }
            let (start, end) = encoding.get_offsets()[i];
            // A token may be part of a character.
            let text =
                String::from_utf8_lossy(text.as_bytes().get(start..end).unwrap_or_default()).into_owned();
            Token { id, text, is_special: false, bytes: Some(start..end) }
        };
        Ok((0..encoding.len()).map(token).collect())
    }

    /// The text that ids stand for.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`], for ids that the tokenizer's decoder cannot join.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        let text = self.inner.decode(ids, skip_special);
        text.map_err(|source| Error::Decode { path: self.path.clone(), source })
    }

    /// The special ids before and after a single text: `<s>` and `</s>` for XLM-RoBERTa, `[CLS]` and `[SEP]` for
    /// BERT.
    pub fn special_ids(&self) -> (&[u32], &[u32]) {
        (&self.prefix, &self.suffix)
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token, spelt as in the file.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether words are tokenised as if nothing followed the space behind them.
    fn splits_at_spaces(&self) -> bool {
        *self.splits_at_spaces.get_or_init(|| {
            // A space that a vocabulary cannot write would vanish, and the words around it be joined.
            let keeps_spaces = match self.kind {
                TokenizerKind::WordPiece => self.inner.get_pre_tokenizer().is_some(),
                TokenizerKind::Unigram | TokenizerKind::Bpe => {
                    SPACES.iter().any(|space| self.token_to_id(space.encode_utf8(&mut [0; 4])).is_some())
                }
            };
            keeps_spaces && !self.inner.get_vocab(true).keys().any(|token| crosses_words(token))
        })
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer, Error> {
        let invalid = |source| Error::Tokenizer { path: path.to_owned(), source };
        check_normalizer(bytes).map_err(|error| invalid(error.into()))?;
        // The crate has panics left that a damaged file can reach (an added token that normalises to nothing, for one).
        let parsed = catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let mut inner = parsed
            .map_err(|_| invalid("the tokenizers library panicked on it; the file is damaged".into()))?
            .map_err(invalid)?;
        inner.with_padding(None).with_truncation(None).map_err(invalid)?;
        let kind = match inner.get_model() {
            ModelWrapper::Unigram(_) => TokenizerKind::Unigram,
            ModelWrapper::BPE(_) => TokenizerKind::Bpe,
            ModelWrapper::WordPiece(_) => TokenizerKind::WordPiece,
            ModelWrapper::WordLevel(_) => return Err(Error::UnsupportedTokenizer { path: path.to_owned() }),
        };
        let (prefix, suffix) = special_ids(path, &inner)?;
        let vocab_size = inner.get_vocab_size(true);
        Ok(Tokenizer {
            path: path.to_owned(),
            inner,
            kind,
            prefix,
            suffix,
            vocab_size,
            splits_at_spaces: OnceLock::new(),
        })
    }
}

/// Whether a token can begin in one word and end in the next. Where none can, what follows a space has no part in how the words
/// before it are split: neither merges nor the most probable segmentation reach over it.
fn crosses_words(token: &str) -> bool {
    token.trim_start_matches(SPACES).contains(SPACES)
}

/// The first place from `at_least` on where a word ends and a space stands before another one. Only ASCII letters and digits
/// count as words here: no normalizer joins them with a space, or drops one between them.
fn word_end(text: &str, at_least: usize) -> Option<usize> {
    let bytes = text.as_bytes().get(at_least..)?;
    let is_end = |w: &[u8]| w[0].is_ascii_alphanumeric() && w[1] == b' ' && w[2].is_ascii_alphanumeric();
    Some(at_least + 1 + bytes.windows(3).position(is_end)?)
}

/// Parses the character maps of the file's normalizer, on which the tokenizers crate panics if they are damaged.
fn check_normalizer(bytes: &[u8]) -> Result<(), serde_json::Error> {
    #[derive(Deserialize)]
    struct File {
        normalizer: Option<Value>,
    }
    let mut normalizers = Vec::from_iter(serde_json::from_slice::<File>(bytes)?.normalizer);
    while let Some(normalizer) = normalizers.pop() {
        if normalizer["type"] == "Precompiled" {
            serde_json::from_str::<Precompiled>(&normalizer.to_string())?;
        }
        if let Some(Value::Array(parts)) = normalizer.get("normalizers") {
            normalizers.extend(parts.iter().cloned());
        }
    }
    Ok(())
}

/// What the file's post-processor puts before and after a text, found by tokenising one.
fn special_ids(path: &Path, inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), Error> {
    const PROBE: &str = "a";
    let encode = |add_special_tokens| {
        let encoding = inner.encode_fast(PROBE, add_special_tokens);
        encoding.map_err(|source| Error::Encode { path: path.to_owned(), source })
    };
    let bare = encode(false)?;
    let wrapped = encode(true)?;
    let ids = wrapped.get_ids();
    let before = wrapped.get_special_tokens_mask().iter().take_while(|special| **special == 1).count();
    let after = before + bare.len();
    if bare.is_empty() || ids.get(before..after) != Some(bare.get_ids()) {
        return Err(Error::SpecialTokens { path: path.to_owned() });
    }
    Ok((ids[..before].to_vec(), ids[after..].to_vec()))
}

/// The error for a directory without `tokenizer.json`.
fn no_tokenizer(dir: &Path) -> Error {
    let found = ["sentencepiece.bpe.model", "tokenizer.model", "vocab.txt"];
    let found = found.into_iter().find(|name| dir.join(name).exists());
    let command = format!(
        "python3 -c \"import sys, transformers; \
         transformers.AutoTokenizer.from_pretrained(sys.argv[1], use_fast=True).save_pretrained(sys.argv[1])\" {}",
        json::shell_quoted(dir)
    );
    Error::NoTokenizer { dir: dir.to_owned(), found, command }
}
