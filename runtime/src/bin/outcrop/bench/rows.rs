//! What is timed: every kernel at the shapes of the published models.

use outcrop::bench::{AttentionParams, Call, Fused, Mask, Sequences};

use crate::args::KernelsArgs;
use crate::error::Error;

/// A call with the name it goes by: kernel, model, part, tokens.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    /// The name without the tokens.
    part: String,
    pub(super) call: Call,
}

/// The widths of a published model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    pub(super) name: &'static str,
    pub(super) family: Family,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Encoder,
    Gemma,
    Minicpm,
    Gemma2,
}

/// bge-reranker-base; -large and -v2-m3; -v2-gemma; -v2-minicpm-layerwise; -v2.5-gemma2-lightweight.
#[rustfmt::skip]
pub(super) const MODELS: [Model; 5] = [
    Model { name: "base",    family: Family::Encoder, hidden_size:  768, intermediate_size:  3072, num_heads: 12, num_kv_heads: 12, head_dim:  64 },
    Model { name: "large",   family: Family::Encoder, hidden_size: 1024, intermediate_size:  4096, num_heads: 16, num_kv_heads: 16, head_dim:  64 },
    Model { name: "gemma",   family: Family::Gemma,   hidden_size: 2048, intermediate_size: 16384, num_heads:  8, num_kv_heads:  1, head_dim: 256 },
    Model { name: "minicpm", family: Family::Minicpm, hidden_size: 2304, intermediate_size:  5760, num_heads: 36, num_kv_heads: 36, head_dim:  64 },
    Model { name: "gemma2",  family: Family::Gemma2,  hidden_size: 3584, intermediate_size: 14336, num_heads: 16, num_kv_heads:  8, head_dim: 256 },
];

/// The window that every other layer of Gemma 2 sees.
const WINDOW: usize = 4096;

/// Tokens of the sequences that attention is timed on.
const LENGTHS: [usize; 3] = [128, 256, 512];
/// And the mean of those of many lengths.
const RAGGED_LEN: usize = 256;

/// The rows that the arguments choose, of those that the CPU has if it is to run them; `default_tokens` where they do not say how many.
pub(super) fn selected(
    args: &KernelsArgs,
    default_tokens: &[usize],
    on_cpu: bool,
) -> Result<Vec<Row>, Error> {
    if !args.m.is_empty() {
        return Ok(by_hand(args));
    }
    let tokens: Vec<usize> = match &args.tokens {
        Some(tokens) => tokens.iter().map(|tokens| tokens.get()).collect(),
        None => default_tokens.to_vec(),
    };
    let mut rows = published(&tokens);
    rows.retain(|row| !on_cpu || row.call.is_on_cpu());
    let matches_none = |filter: &&String| !rows.iter().any(|row| row.name.contains(filter.as_str()));
    if let Some(filter) = args.filter.iter().find(matches_none) {
        return Err(Error::NoRow { filter: filter.clone(), nearest: nearest(filter, &rows) });
    }
    rows.retain(|row| is_chosen(args, &row.name));
    Ok(rows)
}

/// Whether the filters let a row of this name through.
pub(super) fn is_chosen(args: &KernelsArgs, name: &str) -> bool {
    args.filter.is_empty() || args.filter.iter().any(|filter| name.contains(filter))
}

/// Products of every shape that `--m`, `--n` and `--k` make.
fn by_hand(args: &KernelsArgs) -> Vec<Row> {
    let mut rows = Vec::new();
    for (n, k) in args.n.iter().flat_map(|n| args.k.iter().map(move |k| (n.get(), k.get()))) {
        for m in args.m.iter().map(|m| m.get()) {
            let fused = Fused::named(&args.epilogue, n).unwrap_or(Fused::None);
            let name = format!("gemm/{m}x{n}x{k}/{}", fused.name());
            rows.push(Row { part: name.clone(), name, call: Call::Gemm { m, n, k, fused } });
        }
    }
    rows
}

/// Every kernel of every model at these numbers of tokens, kernel by kernel.
pub(super) fn published(tokens: &[usize]) -> Vec<Row> {
    let mut list = List(Vec::new());
    for model in MODELS {
        for tokens in tokens {
            match model.family {
                Family::Encoder => encoder(&mut list, model, *tokens),
                _ => decoder(&mut list, model, *tokens),
            }
        }
    }
    for (tokens, len) in tokens.iter().flat_map(|tokens| lengths(*tokens).map(move |len| (*tokens, len))) {
        let sequences = Sequences { number: tokens / len, len, is_ragged: false };
        list.push("layout", sized(tokens, len), Call::Layout { sequences });
    }
    // Kernels, and their models' parts, in the order in which they come first; tokens as they were given.
    let mut rows = list.0;
    let (mut kernels, mut parts) = (Vec::new(), Vec::new());
    rows.sort_by_cached_key(|row| {
        (place(&mut kernels, row.call.kernel().to_owned()), place(&mut parts, row.part.clone()))
    });
    rows
}

/// The index of a name among those that have come so far.
fn place(names: &mut Vec<String>, name: String) -> usize {
    names.iter().position(|there| *there == name).unwrap_or_else(|| {
        names.push(name);
        names.len() - 1
    })
}

/// Rows under construction.
struct List(Vec<Row>);

impl List {
    fn push(&mut self, part: &str, size: impl std::fmt::Display, call: Call) {
        self.0.push(Row { name: format!("{part}/{size}"), part: part.to_owned(), call });
    }

    /// A product of the model.
    fn gemm(&mut self, model: Model, part: &str, [m, n, k]: [usize; 3], fused: Fused) {
        self.push(&format!("gemm/{}/{part}", model.name), m, Call::Gemm { m, n, k, fused });
    }
}

/// Lengths of sequences that `tokens` are cut into: a batch of few tokens is one short sequence.
fn lengths(tokens: usize) -> impl Iterator<Item = usize> {
    let mut lengths = LENGTHS.map(|len| len.min(tokens)).to_vec();
    lengths.dedup();
    lengths.into_iter()
}

fn sized(tokens: usize, len: usize) -> String {
    format!("{tokens}/len{len}")
}

fn encoder(list: &mut List, model: Model, tokens: usize) {
    let Model { name, hidden_size: h, intermediate_size: i, .. } = model;
    list.gemm(model, "qkv", [tokens, 3 * h, h], Fused::Bias);
    list.gemm(model, "o", [tokens, h, h], Fused::Bias);
    list.gemm(model, "up", [tokens, i, h], Fused::BiasGeluErf);
    list.gemm(model, "down", [tokens, h, i], Fused::Bias);
    attention(list, model, tokens, "", Mask::Full);
    let rows_of = |kernel: &str| format!("{kernel}/{name}");
    list.push(&rows_of("add_layer_norm"), tokens, Call::AddLayerNorm { rows: tokens, width: h });
    list.push(&rows_of("embed_layer_norm"), tokens, Call::EmbedLayerNorm { rows: tokens, width: h });
    let sequences = shortest(tokens);
    let size = sized(tokens, sequences.len);
    let dense = Call::Gemm { m: sequences.number, n: h, k: h, fused: Fused::BiasTanh };
    list.push(&format!("gemm/{name}/dense"), &size, dense);
    list.push(&rows_of("pool"), &size, Call::Pool { sequences, width: h });
    list.push(&rows_of("l2_normalize"), &size, Call::L2Normalize { rows: sequences.number, width: h });
    scored_rows(list, model, tokens, false);
}

fn decoder(list: &mut List, model: Model, tokens: usize) {
    let Model { name, hidden_size: h, intermediate_size: i, head_dim, .. } = model;
    let (q, kv) = (model.num_heads * head_dim, model.num_kv_heads * head_dim);
    let gated = match model.family {
        Family::Minicpm => Fused::GatedSilu,
        _ => Fused::GatedGeluTanh,
    };
    // Gemma 2 normalises a block's output before it is added.
    let is_gemma2 = model.family == Family::Gemma2;
    let output = if is_gemma2 { Fused::None } else { Fused::AddScaled };
    list.gemm(model, "qkv", [tokens, q + 2 * kv, h], Fused::Rope { head_dim, columns: q + kv });
    list.gemm(model, "o", [tokens, h, q], output);
    list.gemm(model, "gate-up", [tokens, i, h], gated);
    list.gemm(model, "down", [tokens, h, i], output);
    if !is_gemma2 {
        let rope = Fused::RopeDeferred { head_dim, columns: q + kv };
        let gated = match model.family {
            Family::Minicpm => Fused::GatedSiluDeferred,
            _ => Fused::GatedGeluTanhDeferred,
        };
        list.gemm(model, "qkv-deferred", [tokens, q + 2 * kv, h], rope);
        list.gemm(model, "o-deferred", [tokens, h, q], Fused::AddScaledDeferred);
        list.gemm(model, "gate-up-deferred", [tokens, i, h], gated);
        list.gemm(model, "down-deferred", [tokens, h, i], Fused::AddScaledDeferred);
    }
    attention(list, model, tokens, "", Mask::Causal);
    let rows_of = |kernel: &str| format!("{kernel}/{name}");
    list.push(&rows_of("rms_norm"), tokens, Call::RmsNorm { rows: tokens, width: h });
    list.push(&rows_of("embed"), tokens, Call::Embed { rows: tokens, width: h });
    if is_gemma2 {
        attention(list, model, tokens, "/window", Mask::Window(WINDOW));
        list.push(&rows_of("sandwich_norm"), tokens, Call::SandwichNorm { rows: tokens, width: h });
        let len = lengths(tokens).last().unwrap_or(tokens);
        let sequences = Sequences { number: tokens / len, len, is_ragged: false };
        list.push(
            &rows_of("token_compress"),
            sized(tokens, len),
            Call::TokenCompress { sequences, width: h },
        );
    }
    // Keys and values among the columns of the fused projection.
    let kept = Call::CopyBlock { rows: tokens, width: 2 * kv, stride: q + 2 * kv };
    list.push(&rows_of("copy_block"), tokens, kept);
    scored_rows(list, model, tokens, true);
}

fn attention(list: &mut List, model: Model, tokens: usize, variety: &str, mask: Mask) {
    let Model { name, num_heads, num_kv_heads, head_dim, .. } = model;
    let softmax_scale = (head_dim as f32).powf(-0.5);
    let params = AttentionParams { num_heads, num_kv_heads, head_dim, softmax_scale, mask, softcap: None };
    for len in lengths(tokens) {
        let sequences = Sequences { number: tokens / len, len, is_ragged: false };
        let part = format!("attention/{name}{variety}");
        list.push(&part, sized(tokens, len), Call::Attention { sequences, params });
        if variety.is_empty() {
            let call = Call::AttentionRow { sequences, params };
            list.push(&format!("{part}/row"), sized(tokens, len), call);
        }
    }
    if variety.is_empty() && tokens >= 4 * RAGGED_LEN {
        let sequences = Sequences { number: tokens / RAGGED_LEN, len: RAGGED_LEN, is_ragged: true };
        let call = Call::Attention { sequences, params };
        list.push(&format!("attention/{name}"), format!("{tokens}/ragged{RAGGED_LEN}"), call);
    }
}

/// What the last layer and the head do with one row of every sequence.
fn scored_rows(list: &mut List, model: Model, tokens: usize, is_full: bool) {
    let (sequences, width) = (shortest(tokens), model.hidden_size);
    let (rows, size) = (sequences.number, sized(tokens, sequences.len));
    let gather = Call::GatherRows { rows, of: tokens, width, is_full };
    list.push(&format!("gather_rows/{}", model.name), &size, gather);
    list.push(&format!("row_dot/{}", model.name), &size, Call::RowDot { rows, width });
}

/// The tokens cut into the shortest sequences, of which there are the most.
fn shortest(tokens: usize) -> Sequences {
    let len = LENGTHS[0].min(tokens);
    Sequences { number: tokens / len, len, is_ragged: false }
}

/// Up to three parts of names that have the most pairs of letters in common with `filter`.
fn nearest(filter: &str, rows: &[Row]) -> Vec<String> {
    fn pairs(text: &str) -> Vec<&[u8]> {
        text.as_bytes().windows(2).collect()
    }
    let wanted = pairs(filter);
    let in_common = |part: &&str| {
        let there = pairs(part);
        std::cmp::Reverse(wanted.iter().filter(|pair| there.contains(*pair)).count())
    };
    let mut parts: Vec<&str> = rows.iter().map(|row| row.part.as_str()).collect();
    parts.dedup();
    parts.sort_by_key(in_common);
    parts.into_iter().take(3).map(str::to_owned).collect()
}
