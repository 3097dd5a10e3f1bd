//! What a caller may choose.

use std::borrow::Cow;
use std::path::PathBuf;

use outcrop_loader::Gelu;
use outcrop_models::decoder::HeadRule;
use outcrop_models::{ElementType, Pooling};

use crate::{Compression, Cutoffs, Device, Error};

/// How a model is read and run. Options that the model does not have are refused when it is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Compute threads; `None` takes as many as the process may use. Results do not depend on it.
    pub threads: Option<usize>,
    /// Tokens packed into one forward pass; `None` takes 1024 on the CPU and 16384 on a GPU. A longer sequence runs alone. More tokens per pass use
    /// more memory for activations; results do not depend on it.
    pub batch_tokens: Option<usize>,
    /// Where the model runs.
    pub device: Device,
    /// Whether a GPU records the launches of a run and replays them for later ones. Results do not depend on it.
    pub graphs: bool,
    /// Whether a GPU may begin a kernel before the one ahead of it has ended, to hide the time between the two: programmatic dependent
    /// launch, of GPUs of compute capability 9.0 and newer. Off until it has been measured. Results do not depend on it.
    pub programmatic_launch: bool,
    /// Whether the RMSNorms of v2-gemma and MiniCPM are folded into the matrices behind them (their weights into the matrices' columns, the
    /// division into the products' ends), for weights stored in f32, on a GPU. Off until it has been measured. It is another rounding:
    /// scores move as little as they do by the rounding of a norm's result.
    pub fold_norms: bool,
    /// The type in which matrices are held, and on a GPU multiplied.
    pub dtype: Dtype,
    /// LoRA adapters, merged in this order while a decoder is read.
    pub adapters: Vec<PathBuf>,
    /// Which head reads which cutoff of a layerwise model; `None` is [`HeadRule::Reference`].
    pub heads: Option<HeadRule>,
    /// Whether Gemma 2 bounds its attention scores, as its configuration says and the reference does not.
    pub attention_softcap: bool,
    /// The GELU of the Gemma families; `None` takes what the configuration says, which for v2-gemma is tanh.
    pub gelu: Option<Gelu>,
    /// Whether a decoder computes the query part of pairs that share it once. Results do not depend on it.
    pub prefix_sharing: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            batch_tokens: None,
            device: Device::Auto,
            graphs: true,
            programmatic_launch: false,
            fold_norms: false,
            dtype: Dtype::Auto,
            adapters: Vec::new(),
            heads: None,
            attention_softcap: false,
            gelu: None,
            prefix_sharing: true,
        }
    }
}

/// The type in which matrices are held. Everything is computed in f32; 16-bit matrices take half the memory of f32, and rounding
/// them to 16 bits moves scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// As stored; what an adapter changes, in f32.
    #[default]
    Auto,
    /// IEEE half precision. A weight beyond its range is an error.
    F16,
    /// bfloat16.
    BF16,
    /// 32-bit floats.
    F32,
}

impl Dtype {
    pub(crate) fn element_type(self) -> Option<ElementType> {
        match self {
            Self::Auto => None,
            Self::F16 => Some(ElementType::F16),
            Self::BF16 => Some(ElementType::BF16),
            Self::F32 => Some(ElementType::F32),
        }
    }
}

/// How pairs are read and scores reported. The defaults are the reference's.
#[derive(Clone, Debug)]
pub struct ScoreOptions {
    /// Tokens of the whole sequence, special ones included; `None` takes 512 for a reranker, and for an embedding model
    /// what its files say. Only the passage is cut to it.
    pub max_length: Option<usize>,
    /// Whether texts that are too long are cut. Otherwise each such pair is an error, alone.
    pub truncate: bool,
    /// Tokens of the query; `None` takes three quarters of `max_length`.
    pub query_max_length: Option<usize>,
    /// Whether to report `1 / (1 + exp(-score))`, computed in f64. A cosine is never normalised.
    pub normalize: bool,
    /// Put before the query by `query_instruction_format`. `None` takes the model's: nothing for an encoder, `A: ` for a decoder;
    /// an empty text switches it off.
    pub query_instruction: Option<String>,
    /// Put before the passage by `passage_instruction_format`; `None` is nothing for an encoder and `B: ` for a decoder.
    pub passage_instruction: Option<String>,
    /// Joins instruction and query: `{}` twice, or `{0}` and `{1}`; the two characters `\n` mean a line break.
    pub query_instruction_format: String,
    /// Joins instruction and passage, as `query_instruction_format`.
    pub passage_instruction_format: String,
    /// The layers of a layerwise model behind which pairs are scored, all in one run to the largest; `None` takes the largest
    /// that the model allows.
    pub cutoff_layers: Option<Cutoffs>,
    /// Merging of passage states on the way, for a model that was trained for it; `None` for none.
    pub compression: Option<Compression>,
    /// The question at the end of a decoder's input; `None` takes the reference's.
    pub prompt: Option<String>,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            truncate: true,
            query_max_length: None,
            normalize: false,
            query_instruction: None,
            passage_instruction: None,
            query_instruction_format: "{}{}".to_owned(),
            passage_instruction_format: "{}{}".to_owned(),
            cutoff_layers: None,
            compression: None,
            prompt: None,
        }
    }
}

/// How texts are embedded. `None` takes what the model's sentence-transformers files say.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// Tokens of a text, special ones included; without sentence-transformers files 512, or what the model can place.
    pub max_length: Option<usize>,
    /// Whether texts that are too long are cut. Otherwise each of them is an error, alone.
    pub truncate: bool,
    /// Whether vectors are scaled to length 1; without such files they are.
    pub normalize: Option<bool>,
    /// How token vectors become one; without such files the first token's is taken.
    pub pooling: Option<Pooling>,
    /// Put before the text by `instruction_format`.
    pub instruction: Option<String>,
    /// Joins instruction and text, as in [`ScoreOptions`].
    pub instruction_format: String,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            truncate: true,
            normalize: None,
            pooling: None,
            instruction: None,
            instruction_format: "{}{}".to_owned(),
        }
    }
}

/// A checked instruction and its format: what stands before, between and after, with the two values' order.
pub(crate) struct Instruction<'a>(Option<(&'a str, Vec<Piece>)>);

enum Piece {
    Literal(String),
    Instruction,
    Text,
}

impl<'a> Instruction<'a> {
    /// Reads `format` as Python's `str.format` with two positional arguments would, after replacing the two characters `\n`
    /// by a line break (SPEC 2.2). Without an instruction the format is not looked at, as in the reference.
    pub(crate) fn parse(instruction: Option<&'a str>, format: &str) -> Result<Self, Error> {
        let Some(instruction) = instruction else { return Ok(Self(None)) };
        let invalid = |problem| Error::InstructionFormat { format: format.to_owned(), problem };
        let expanded = format.replace("\\n", "\n");
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut automatic = 0;
        let mut explicit = false;
        let mut rest = expanded.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '{' | '}' if rest.next_if_eq(&c).is_some() => literal.push(c),
                '}' => return Err(invalid("a single }")),
                '{' => {
                    let field: String = std::iter::from_fn(|| rest.next_if(|c| *c != '}')).collect();
                    if rest.next().is_none() {
                        return Err(invalid("a { without its }"));
                    }
                    let index = match field.as_str() {
                        "" => {
                            automatic += 1;
                            automatic - 1
                        }
                        "0" | "1" => {
                            explicit = true;
                            usize::from(field == "1")
                        }
                        _ => return Err(invalid("a field that is neither empty nor 0 or 1")),
                    };
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(match index {
                        0 => Piece::Instruction,
                        1 => Piece::Text,
                        _ => return Err(invalid("more than two {}")),
                    });
                }
                c => literal.push(c),
            }
        }
        if explicit && automatic > 0 {
            return Err(invalid("{} mixed with numbered fields"));
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self(Some((instruction, pieces))))
    }

    /// The text with its instruction.
    pub(crate) fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some((instruction, pieces)) = &self.0 else { return Cow::Borrowed(text) };
        let pieces = pieces.iter().map(|piece| match piece {
            Piece::Literal(literal) => literal.as_str(),
            Piece::Instruction => instruction,
            Piece::Text => text,
        });
        Cow::Owned(pieces.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(format: &str) -> String {
        Instruction::parse(Some("I"), format).unwrap().apply("t{}").into_owned()
    }

    #[test]
    fn formats_read_as_python_does() {
        assert_eq!(apply("{}{}"), "It{}");
        assert_eq!(apply("<{}> {}."), "<I> t{}.");
        assert_eq!(apply("{1} {0} {1}"), "t{} I t{}");
        assert_eq!(apply("{{}} {}"), "{} I");
        assert_eq!(apply(r"{}\nQuery: {}"), "I\nQuery: t{}");
        assert_eq!(apply("no fields"), "no fields");
        assert_eq!(Instruction::parse(None, "{broken").unwrap().apply("text"), "text");
    }

    #[test]
    fn wrong_formats_are_refused() {
        for format in ["{", "}", "{}{}{}", "{2}", "{name}", "{}{1}", "{!r}"] {
            let error = Instruction::parse(Some("I"), format).err().unwrap().to_string();
            assert!(error.contains(&format!("{format:?}")), "{format}: {error}");
        }
    }
}
