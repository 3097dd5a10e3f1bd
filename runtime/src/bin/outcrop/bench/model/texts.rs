//! The texts of a benchmark: made to have chosen numbers of tokens, or read from a file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use outcrop::{Engine, Score, ScoreOptions};
use serde_json::{Value, json};

use crate::error::Error;
use crate::output::Output;
use crate::synth::vocabulary;

/// The longest pair of a lognormal distribution, unless its mean asks for more: the limit that the published models were trained with.
const LONGEST: f64 = 512.0;
/// The spread of a lognormal distribution if none is given: that of passages in retrieval collections.
const SIGMA: f64 = 0.6;
/// Pairs over which a distribution is spread at least: more calls of few pairs each.
const PAIRS_SPREAD: usize = 256;
/// Calls of a workload at most.
const CALLS_MAX: usize = 16;
/// Common words that are tried at most; those that texts are made of, and that are enough for texts that differ.
const WORDS_TRIED: usize = 200;
const WORDS_WANTED: usize = 40;
const WORDS_MIN: usize = 8;

/// How many tokens pairs have.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Lengths {
    /// All the same.
    Fixed(usize),
    /// The exponential of a normal distribution of this spread.
    Lognormal { mean: f64, sigma: f64 },
    /// Those of the texts in a file.
    File(PathBuf),
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let positive = |text: &str| text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
        let found = match text.split_once(':') {
            Some(("fixed", tokens)) => tokens.parse().ok().filter(|n| *n > 0).map(Self::Fixed),
            Some(("lognormal", rest)) => {
                let (mean, sigma) = rest.split_once(':').unwrap_or((rest, "0.6"));
                positive(mean).zip(positive(sigma)).map(|(mean, sigma)| Self::Lognormal { mean, sigma })
            }
            Some(("file", path)) if !path.is_empty() => Some(Self::File(path.into())),
            _ => None,
        };
        found.ok_or_else(|| {
            "fixed:TOKENS, lognormal:MEAN, lognormal:MEAN:SIGMA or file:PATH is needed".to_owned()
        })
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(tokens) => write!(f, "fixed:{tokens}"),
            Self::Lognormal { mean, sigma: SIGMA } => write!(f, "lognormal:{mean}"),
            Self::Lognormal { mean, sigma } => write!(f, "lognormal:{mean}:{sigma}"),
            // The folder is the machine's affair.
            Self::File(path) => write!(f, "file:{}", path.file_name().unwrap_or_default().display()),
        }
    }
}

/// Texts, call by call.
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) calls: Vec<Call>,
    /// Tokens that a pair may have.
    pub(super) max_length: usize,
}

/// The queries of one call of the engine, with the passages of each.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    pub(super) queries: Vec<(String, Vec<String>)>,
}

impl Call {
    pub(super) fn pairs(&self) -> Vec<(&str, &str)> {
        self.queries
            .iter()
            .flat_map(|(query, passages)| {
                passages.iter().map(move |passage| (query.as_str(), passage.as_str()))
            })
            .collect()
    }

    /// Runs the call: a ranking of one query's passages, or else scores of pairs. Tokens and score of each pair, in the order given.
    pub(super) fn run(
        &self,
        engine: &Engine,
        options: &ScoreOptions,
    ) -> Result<Vec<(usize, f64)>, outcrop::Error> {
        if let [(query, passages)] = self.queries.as_slice() {
            let mut ranking = engine.rerank(query, passages, options)?;
            if !ranking.failed.is_empty() {
                return Err(ranking.failed.swap_remove(0).1);
            }
            ranking.results.sort_by_key(|ranked| ranked.index);
            return Ok(ranking.results.iter().map(|ranked| (ranked.tokens, ranked.score)).collect());
        }
        let scores: Vec<Score> =
            engine.score(&self.pairs(), options)?.into_iter().collect::<Result<_, _>>()?;
        Ok(scores.iter().map(|score| (score.tokens, score.score)).collect())
    }
}

/// Makes texts for one model.
pub(super) struct Maker<'a> {
    engine: &'a Engine,
    words: Vec<&'static str>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(engine: &'a Engine) -> Result<Self, outcrop::Error> {
        let options = ScoreOptions::default();
        let count = |passage: String| -> Result<usize, outcrop::Error> {
            Ok(engine.pair_sequence("a", &passage, &options)?.sequence.input_ids.len())
        };
        // Words that are one token each make any length.
        let mut words = Vec::new();
        for word in vocabulary::words().take(WORDS_TRIED) {
            let (two, three) = (count(format!("{word} {word}"))?, count(format!("{word} {word} {word}"))?);
            words.extend((three == two + 1).then_some(word));
            if words.len() == WORDS_WANTED {
                break;
            }
        }
        if words.len() < WORDS_MIN {
            words = vocabulary::words().take(WORDS_TRIED).collect();
        }
        Ok(Self { engine, words })
    }

    /// `queries` queries a call with `passages` passages each; pairs of as many tokens as `lengths` says, special ones and the prompt
    /// included, of which a query has `query_tokens`.
    pub(super) fn workload(
        &self,
        queries: usize,
        passages: usize,
        query_tokens: usize,
        lengths: &Lengths,
    ) -> Result<Workload, Error> {
        let name = format!("{queries}x{passages}/{lengths}");
        let pairs = queries * passages;
        let (num_calls, least) = match lengths {
            Lengths::Lognormal { .. } => {
                (PAIRS_SPREAD.div_ceil(pairs).min(CALLS_MAX), self.least_tokens(query_tokens)?)
            }
            Lengths::Fixed(_) | Lengths::File(_) => (1, 1),
        };
        let wanted = match lengths {
            Lengths::Fixed(tokens) => vec![*tokens; pairs],
            Lengths::Lognormal { mean, sigma } => lognormal(*mean, *sigma, least, num_calls * pairs),
            Lengths::File(path) => {
                return Ok(Workload { name: lengths.to_string(), calls: read(path)?, max_length: 512 });
            }
        };
        let longest = wanted.iter().copied().max().unwrap_or(0);
        let max_length = longest.max(2 * query_tokens).max(512);
        let mut wanted = wanted.into_iter();
        let mut seed = 0;
        let mut text = |words: usize| {
            seed += 1;
            self.text(words, seed)
        };
        let mut calls = Vec::with_capacity(num_calls);
        for _ in 0..num_calls {
            let mut call = Call { queries: Vec::with_capacity(queries) };
            for _ in 0..queries {
                let query = text(query_tokens);
                let mut texts = Vec::with_capacity(passages);
                for tokens in wanted.by_ref().take(passages) {
                    texts.push(self.passage(&query, tokens, max_length, &mut text)?);
                }
                call.queries.push((query, texts));
            }
            calls.push(call);
        }
        Ok(Workload { name, calls, max_length })
    }

    /// A passage that with `query` makes a pair of `tokens` tokens; where words are several, of the nearest number found.
    fn passage(
        &self,
        query: &str,
        tokens: usize,
        max_length: usize,
        text: &mut impl FnMut(usize) -> String,
    ) -> Result<String, Error> {
        let options =
            ScoreOptions { max_length: Some(max_length.max(tokens) + 1), ..ScoreOptions::default() };
        let count = |passage: &str| -> Result<usize, Error> {
            Ok(self.engine.pair_sequence(query, passage, &options)?.sequence.input_ids.len())
        };
        let all: Vec<String> = text(tokens).split(' ').map(str::to_owned).collect();
        let first = |words: usize| all[..words.clamp(1, all.len())].join(" ");
        let least = count(&first(1))?;
        if least > tokens {
            let query = query.split(' ').count();
            return Err(Error::TooShort { asked: tokens, query, least });
        }
        // The most words that are not too many tokens.
        let (mut fit, mut too_many) = (1, all.len() + 1);
        while too_many - fit > 1 {
            // Right at once where a word is a token; or else halved.
            let missing = tokens - count(&first(fit))?;
            let next = if fit + missing < too_many { fit + missing } else { usize::midpoint(fit, too_many) };
            if next == fit {
                break;
            }
            match count(&first(next))? {
                found if found > tokens => too_many = next,
                found => {
                    fit = next;
                    if found == tokens {
                        break;
                    }
                }
            }
        }
        Ok(first(fit))
    }

    /// Tokens of the shortest pair with such a query.
    fn least_tokens(&self, query_tokens: usize) -> Result<usize, Error> {
        let query = self.text(query_tokens, 0);
        let options = ScoreOptions { max_length: Some(4 * query_tokens + 512), ..ScoreOptions::default() };
        Ok(self.engine.pair_sequence(&query, self.words[0], &options)?.sequence.input_ids.len())
    }

    fn text(&self, words: usize, seed: u64) -> String {
        let mut random = Random(seed);
        let text: Vec<&str> = (0..words).map(|_| self.words[random.below(self.words.len())]).collect();
        text.join(" ")
    }
}

/// `count` lengths, the same in every run.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "of the size of texts, and positive"
)]
pub(super) fn lognormal(mean: f64, sigma: f64, least: usize, count: usize) -> Vec<usize> {
    let mu = mean.ln() - sigma * sigma / 2.0;
    let longest = LONGEST.max(3.0 * mean).max(least as f64);
    let mut random = Random(17);
    // Box and Muller 1958: two uniform numbers make a normal one.
    let mut normal = || (-2.0 * random.unit().ln()).sqrt() * (std::f64::consts::TAU * random.unit()).cos();
    (0..count).map(|_| (mu + sigma * normal()).exp().round().clamp(least as f64, longest) as usize).collect()
}

/// SplitMix64 (Steele, Lea and Flood 2014): the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Above 0 and at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap_or(0)
    }
}

/// The calls of a file: a line with passages is one; all lines of pairs together are another, before them.
fn read(path: &Path) -> Result<Vec<Call>, Error> {
    let text = fs::read_to_string(path)
        .map_err(|source| Error::Read { from: path.display().to_string(), source })?;
    let mut pairs = Call { queries: Vec::new() };
    let mut calls = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let refused = |reason: String| Error::Texts { path: path.to_owned(), line: n + 1, reason };
        if !line.trim_start().starts_with('{') {
            let (query, passage) = line.split_once('\t').ok_or_else(|| refused("no tab".to_owned()))?;
            pairs.queries.push((query.to_owned(), vec![passage.to_owned()]));
            continue;
        }
        let fields: Value = serde_json::from_str(line).map_err(|error| refused(error.to_string()))?;
        let text = |value: &Value, name: &str| {
            value.as_str().map(str::to_owned).ok_or_else(|| refused(format!("no text {name:?}")))
        };
        let query = text(&fields["query"], "query")?;
        match fields["passages"].as_array() {
            None => pairs.queries.push((query, vec![text(&fields["passage"], "passage")?])),
            Some(passages) if passages.is_empty() => return Err(refused("\"passages\" is empty".to_owned())),
            Some(passages) => {
                let passages: Result<_, _> =
                    passages.iter().map(|passage| text(passage, "passages")).collect();
                calls.push(Call { queries: vec![(query, passages?)] });
            }
        }
    }
    if !pairs.queries.is_empty() {
        calls.insert(0, pairs);
    }
    if calls.is_empty() { Err(Error::NoTexts { path: path.to_owned() }) } else { Ok(calls) }
}

/// Writes the texts of a workload, to be read by `file:PATH` and by others.
pub(super) fn write(workload: &Workload, path: &Path) -> Result<(), Error> {
    let mut output = Output::create(Some(path))?;
    for (query, passages) in workload.calls.iter().flat_map(|call| &call.queries) {
        output.json_line(&json!({ "query": query, "passages": passages }))?;
    }
    output.flush()
}
