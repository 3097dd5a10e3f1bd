//! What a caller may choose.

use std::borrow::Cow;

use outcrop_models::Pooling;

use crate::Error;

/// How an engine runs.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Compute threads; `None` takes as many as the process may use. Results do not depend on it.
    pub threads: Option<usize>,
    /// Tokens packed into one forward pass; `None` takes 1024. A longer sequence runs alone. More tokens per pass use
    /// more memory for activations; results do not depend on it.
    pub batch_tokens: Option<usize>,
}

/// How pairs are read and scores reported. The defaults are the reference's.
#[derive(Clone, Debug)]
pub struct ScoreOptions {
    /// Tokens of the whole sequence, special ones included; `None` takes 512 for a reranker, and for an embedding model
    /// what its files say. Only the passage is cut to it.
    pub max_length: Option<usize>,
    /// Tokens of the query; `None` takes three quarters of `max_length`.
    pub query_max_length: Option<usize>,
    /// Whether to report `1 / (1 + exp(-score))`, computed in f64. A cosine is never normalised.
    pub normalize: bool,
    /// Put before the query by `query_instruction_format`.
    pub query_instruction: Option<String>,
    /// Put before the passage by `passage_instruction_format`.
    pub passage_instruction: Option<String>,
    /// Joins instruction and query: `{}` twice, or `{0}` and `{1}`; the two characters `\n` mean a line break.
    pub query_instruction_format: String,
    /// Joins instruction and passage, as `query_instruction_format`.
    pub passage_instruction_format: String,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            query_max_length: None,
            normalize: false,
            query_instruction: None,
            passage_instruction: None,
            query_instruction_format: "{}{}".to_owned(),
            passage_instruction_format: "{}{}".to_owned(),
        }
    }
}

/// How texts are embedded. `None` takes what the model's sentence-transformers files say.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// Tokens of a text, special ones included; without sentence-transformers files 512, or what the model can place.
    pub max_length: Option<usize>,
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
