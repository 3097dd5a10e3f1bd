//! Operands of every call: buffers of noise, and around them what the kernel needs besides.

use std::sync::Arc;

use super::calls::{Call, Fused, Sequences};
use super::noise::below;
use super::{Bench, Noise};
use crate::add_layer_norm::{LayerNorm, add_layer_norm};
use crate::attention::{AttentionParams, Rows, attention};
use crate::copy_block::{Block, copy_block};
use crate::embed::embed;
use crate::embed_layer_norm::{EmbeddingTables, embed_layer_norm};
use crate::gather_rows::gather_rows;
use crate::gemm::{Activation, DeferredNorm, DeferredRows, Epilogue, Matrix, Part, gemm, squares_of};
use crate::l2_normalize::l2_normalize;
use crate::layout::{Bounds, Layout, LayoutBuffer, ScoredRow, Segments};
use crate::pool::pool;
use crate::rms_norm::{RmsNorm, rms_norm};
use crate::rope::RopeTable;
use crate::row_dot::row_dot;
use crate::sandwich_norm::sandwich_norm;
use crate::token_compress::token_compress;
use crate::{Buffer, Elements, Error, IndexBuffer, ResidentTable, Role, Size, Stream, Table};

/// A call on one set of operands.
pub(super) trait Launch: Send {
    /// Launches the kernel, and nothing else.
    fn launch(&mut self, stream: &Stream) -> Result<(), Error>;

    /// What it has written, each result whole.
    fn outputs(&self) -> Result<Vec<Vec<f32>>, Error>;
}

/// Buffers, results first, and the call on them.
struct Operands<const N: usize, F> {
    buffers: [Buffer; N],
    num_outputs: usize,
    call: F,
}

impl<const N: usize, F> Launch for Operands<N, F>
where
    F: Fn(&Stream, &mut [Buffer; N]) -> Result<(), Error> + Send,
{
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        (self.call)(stream, &mut self.buffers)
    }

    fn outputs(&self) -> Result<Vec<Vec<f32>>, Error> {
        self.buffers[..self.num_outputs].iter().map(|buffer| buffer.read(buffer.len())).collect()
    }
}

/// A layout is no buffer.
struct LaidOut {
    segments: Segments,
    layout: LayoutBuffer,
}

impl Launch for LaidOut {
    fn launch(&mut self, stream: &Stream) -> Result<(), Error> {
        match stream {
            // On the CPU a layout is worked out as it is taken in.
            Stream::Cpu(_) => {
                let bounds = self.layout.bounds();
                self.layout.load(Layout::new(self.segments.clone()), bounds)
            }
            Stream::Cuda(_) => self.layout.lay_out(stream),
        }
    }

    fn outputs(&self) -> Result<Vec<Vec<f32>>, Error> {
        Ok(vec![self.layout.words()?.into_iter().map(|word| word as f32).collect()])
    }
}

type Boxed = Result<Box<dyn Launch>, Error>;

/// Shape and seed of one set of operands under construction.
#[derive(Clone, Copy)]
struct Maker<'a> {
    stream: &'a Stream,
    noise: &'a Noise,
    seed: u64,
}

impl Bench<'_> {
    /// A set of operands for every seed; equal seeds give equal operands.
    pub(super) fn operands(&self, call: Call, seeds: &[u64]) -> Result<Vec<Box<dyn Launch>>, Error> {
        let table = Arc::new(match call {
            Call::Embed { width, .. } | Call::EmbedLayerNorm { width, .. } => self.table(width)?,
            _ => EmbeddingRows::default(),
        });
        let make = |seed: &u64| {
            let maker = Maker { stream: self.stream, noise: &self.noise, seed: *seed };
            let table = Arc::clone(&table);
            match call {
                Call::Gemm { m, n, k, fused } => self.gemm(maker, [m, n, k], fused),
                Call::Attention { sequences, params } => maker.attention(sequences, params),
                Call::AttentionRow { sequences, params } => maker.attention_row(sequences, params),
                Call::AddLayerNorm { rows, width } => maker.add_layer_norm(rows, width),
                Call::RmsNorm { rows, width } => maker.rms_norm(rows, width),
                Call::SandwichNorm { rows, width } => maker.sandwich_norm(rows, width),
                Call::EmbedLayerNorm { rows, width } => maker.embed_layer_norm(table, rows, width),
                Call::Embed { rows, width } => maker.embed(table, rows, width),
                Call::GatherRows { rows, of, width, is_full } => {
                    maker.gather_rows([rows, of, width], is_full)
                }
                Call::RowDot { rows, width } => maker.row_dot(rows, width),
                Call::Pool { sequences, width } => maker.pool(sequences, width),
                Call::L2Normalize { rows, width } => maker.l2_normalize(rows, width),
                Call::TokenCompress { sequences, width } => maker.token_compress(sequences, width),
                Call::Layout { sequences } => maker.layout(sequences),
                Call::CopyBlock { rows, width, stride } => maker.copy_block([rows, width, stride]),
            }
        };
        seeds.iter().map(make).collect()
    }

    fn gemm(&self, maker: Maker<'_>, [m, n, k]: [usize; 3], fused: Fused) -> Boxed {
        let Maker { stream, noise, seed } = maker;
        // Outputs of about the size of the inputs, so that no type overflows.
        let weights = noise.values(seed, n * k, (k as f32).sqrt().recip());
        let elements = Elements::F32(&weights);
        let element_type = Some(self.weight_type);
        let part =
            |rows, rotary_head_dim| Part { weights: elements.slice(0, rows * k), rows, rotary_head_dim };
        let matrix = match fused {
            Fused::Rope { head_dim, columns } | Fused::RopeDeferred { head_dim, columns } if columns < n => {
                let parts = [part(columns, Some(head_dim)), part(n - columns, None)];
                Matrix::pack(stream, &parts, k, element_type)?
            }
            Fused::Rope { head_dim, .. } | Fused::RopeDeferred { head_dim, .. } => {
                Matrix::pack(stream, &[part(n, Some(head_dim))], k, element_type)?
            }
            _ if fused.is_gated() => Matrix::pack_gated(stream, elements, elements, n, k, element_type)?,
            _ => Matrix::pack(stream, &[part(n, None)], k, element_type)?,
        };
        let bias = Buffer::upload(stream, &noise.values(seed + 1, n, 1.0))?;
        let rope = match fused {
            Fused::Rope { head_dim, .. } | Fused::RopeDeferred { head_dim, .. } => {
                let position_ids = maker.indices((0..m).map(|i| i % POSITIONS))?;
                Some((RopeTable::new(stream, 10_000.0, head_dim, POSITIONS)?, position_ids))
            }
            _ => None,
        };
        // Rows of a root mean square of one.
        let squares = if fused.takes_deferred() { m * squares_of(k) } else { 0 };
        let squares = Buffer::upload(stream, &vec![(k as f32) / squares_of(k) as f32; squares])?;
        let role = if fused.is_residual() { Role::Full } else { Role::Operand };
        let (outputs, rows) = if fused == Fused::AddScaledDeferred { (3, m) } else { (1, 0) };
        let deferred = [(Role::Operand, rows * n), (Role::Full, rows * squares_of(n))];
        let wanted = [(role, m * n), deferred[0], deferred[1], (Role::Operand, m * k)];
        maker.operands(outputs, wanted, move |stream, [d, rows, sums, a]| {
            let norm = fused.takes_deferred().then_some(DeferredNorm { squares: &squares, eps: 1e-6 });
            let epilogue = match (fused, &rope) {
                (Fused::Bias, _) => Epilogue::Bias(&bias),
                (Fused::BiasGeluErf, _) => Epilogue::BiasGeluErf(&bias),
                (Fused::BiasTanh, _) => Epilogue::BiasTanh(&bias),
                (Fused::AddScaled, _) => Epilogue::AddScaled(1.0, None),
                (Fused::AddScaledDeferred, _) => {
                    Epilogue::AddScaled(1.0, Some(DeferredRows { rows, squares: sums }))
                }
                (Fused::GatedGeluTanh | Fused::GatedGeluTanhDeferred, _) => {
                    Epilogue::Gated(Activation::GeluTanh, norm)
                }
                (Fused::GatedGeluErf, _) => Epilogue::Gated(Activation::GeluErf, None),
                (Fused::GatedSilu | Fused::GatedSiluDeferred, _) => Epilogue::Gated(Activation::Silu, norm),
                (Fused::Rope { .. } | Fused::RopeDeferred { .. }, Some((table, ids))) => {
                    Epilogue::Rope(table, ids.view(m.into()), norm)
                }
                (Fused::None | Fused::Rope { .. } | Fused::RopeDeferred { .. }, _) => Epilogue::None,
            };
            gemm(stream, d, a, &matrix, 0..matrix.num_parts(), m.into(), epilogue)
        })
    }

    /// A table of more bytes than the cache holds, with rows of `width`.
    fn table(&self, width: usize) -> Result<EmbeddingRows, Error> {
        let row_bytes = width * self.stream.operand_type().bytes();
        let rows = self.rotation_bytes().div_ceil(row_bytes.max(1));
        let host = self.noise.values(0, rows * width, 1.0);
        let resident = ResidentTable::as_operand(self.stream, Elements::F32(&host), width)?;
        let host = if resident.is_some() { Vec::new() } else { host };
        Ok(EmbeddingRows { host, resident, rows })
    }
}

/// Positions of the longest sequence that is timed.
const POSITIONS: usize = 512;

/// An embedding table, where the stream reads it.
#[derive(Default)]
struct EmbeddingRows {
    host: Vec<f32>,
    resident: Option<ResidentTable>,
    rows: usize,
}

impl EmbeddingRows {
    fn get(&self) -> Table<'_> {
        match &self.resident {
            Some(table) => Table::Resident(table),
            None => Table::Mapped(Elements::F32(&self.host)),
        }
    }
}

impl Maker<'_> {
    fn operands<const N: usize, F>(self, num_outputs: usize, wanted: [(Role, usize); N], call: F) -> Boxed
    where
        F: Fn(&Stream, &mut [Buffer; N]) -> Result<(), Error> + Send + 'static,
    {
        let mut buffers = Buffer::allocate(self.stream, wanted)?;
        for (i, (buffer, (role, _))) in buffers.iter_mut().zip(wanted).enumerate() {
            self.noise.fill(self.stream, buffer, role, N as u64 * self.seed + i as u64)?;
        }
        Ok(Box::new(Operands { buffers, num_outputs, call }))
    }

    /// Factors of a norm, or a head.
    fn vector(self, width: usize) -> Result<Buffer, Error> {
        Buffer::upload(self.stream, &self.noise.values(self.seed, width, 1.0))
    }

    fn indices(self, indices: impl Iterator<Item = usize>) -> Result<IndexBuffer, Error> {
        let indices: Vec<u32> = indices.map(crate::params::narrow).collect();
        let mut buffer = IndexBuffer::new(self.stream, indices.len())?;
        buffer.write(&indices)?;
        Ok(buffer)
    }

    /// Rows of a table, at random.
    fn token_ids(self, tokens: usize, rows: usize) -> Result<IndexBuffer, Error> {
        let first = self.seed * tokens as u64;
        self.indices((0..tokens as u64).map(|i| below(first + i, rows)))
    }

    fn loaded(self, segments: Segments) -> Result<LayoutBuffer, Error> {
        let layout = Layout::new(segments);
        let bounds = Bounds { tokens: layout.num_tokens(), seqs: layout.num_seqs() };
        let mut buffer = LayoutBuffer::new(self.stream, bounds.tokens)?;
        buffer.load(layout, bounds)?;
        buffer.lay_out(self.stream)?;
        Ok(buffer)
    }

    fn attention(self, sequences: Sequences, params: AttentionParams) -> Boxed {
        let layout = self.loaded(sequences.segments(ScoredRow::Last))?;
        let (q_len, kv_len) = widths(params);
        let (tokens, stride) = (sequences.tokens(), q_len + 2 * kv_len);
        let wanted = [(Role::Operand, tokens * q_len), (Role::Operand, tokens * stride)];
        self.operands(1, wanted, move |stream, [out, qkv]| {
            let [q, k, v] = [0, q_len, q_len + kv_len].map(|column| Rows { buffer: qkv, stride, column });
            attention(stream, out, q, k, v, layout.spans(), params)
        })
    }

    /// As the last layer leaves them: the scored rows' queries, and all rows' keys and values.
    fn attention_row(self, sequences: Sequences, params: AttentionParams) -> Boxed {
        let layout = self.loaded(sequences.segments(ScoredRow::Last))?;
        let (q_len, kv_len) = widths(params);
        let queries = (Role::Operand, sequences.number * q_len);
        let wanted = [queries, queries, (Role::Operand, sequences.tokens() * 2 * kv_len)];
        self.operands(1, wanted, move |stream, [out, q, kv]| {
            let q = Rows { buffer: q, stride: q_len, column: 0 };
            let [k, v] = [0, kv_len].map(|column| Rows { buffer: kv, stride: 2 * kv_len, column });
            attention(stream, out, q, k, v, layout.scored_spans(), params)
        })
    }

    fn add_layer_norm(self, rows: usize, width: usize) -> Boxed {
        let weight = self.vector(width)?;
        self.operands(1, [(Role::Operand, rows * width); 2], move |stream, [x, y]| {
            let norm = LayerNorm { weight: &weight, bias: &weight, eps: 1e-5 };
            add_layer_norm(stream, x, y, norm, rows.into())
        })
    }

    fn rms_norm(self, rows: usize, width: usize) -> Boxed {
        let weight = self.vector(width)?;
        let wanted = [(Role::Operand, rows * width), (Role::Full, rows * width)];
        self.operands(1, wanted, move |stream, [out, x]| {
            rms_norm(stream, out, x, RmsNorm { weight: &weight, eps: 1e-6 }, rows.into())
        })
    }

    fn sandwich_norm(self, rows: usize, width: usize) -> Boxed {
        let weight = self.vector(width)?;
        let operand = (Role::Operand, rows * width);
        self.operands(2, [(Role::Full, rows * width), operand, operand], move |stream, [x, out, y]| {
            let norm = RmsNorm { weight: &weight, eps: 1e-6 };
            sandwich_norm(stream, x, out, y, norm, norm, rows.into())
        })
    }

    fn embed(self, table: Arc<EmbeddingRows>, rows: usize, width: usize) -> Boxed {
        let ids = self.token_ids(rows, table.rows)?;
        self.operands(1, [(Role::Full, rows * width)], move |stream, [out]| {
            embed(stream, out, table.get(), ids.view(rows.into()), width, 2.0)
        })
    }

    fn embed_layer_norm(self, table: Arc<EmbeddingRows>, rows: usize, width: usize) -> Boxed {
        let ids = self.token_ids(rows, table.rows)?;
        let position_ids = self.indices((0..rows).map(|i| i % POSITIONS.min(table.rows)))?;
        let weight = self.vector(width)?;
        self.operands(1, [(Role::Operand, rows * width)], move |stream, [out]| {
            let tables = EmbeddingTables { word: table.get(), position: table.get(), token_type: &weight };
            let norm = LayerNorm { weight: &weight, bias: &weight, eps: 1e-5 };
            let [ids, position_ids] = [&ids, &position_ids].map(|ids| ids.view(rows.into()));
            embed_layer_norm(stream, out, tables, ids, position_ids, norm)
        })
    }

    /// The last of every `of / rows` rows.
    fn gather_rows(self, [rows, of, width]: [usize; 3], is_full: bool) -> Boxed {
        let ids = self.indices((0..rows).map(|i| (i + 1) * of / rows - 1))?;
        let role = if is_full { Role::Full } else { Role::Operand };
        self.operands(1, [(role, rows * width), (role, of * width)], move |stream, [out, x]| {
            gather_rows(stream, out, x, ids.view(rows.into()), width)
        })
    }

    fn row_dot(self, rows: usize, width: usize) -> Boxed {
        let weight = self.vector(width)?;
        self.operands(1, [(Role::Full, rows), (Role::Operand, rows * width)], move |stream, [out, x]| {
            row_dot(stream, out, 0, x, &weight, 0.5, None, rows.into())
        })
    }

    fn pool(self, sequences: Sequences, width: usize) -> Boxed {
        let layout = self.loaded(sequences.segments(ScoredRow::First))?;
        let (out, x) = (sequences.number * width, sequences.tokens() * width);
        self.operands(1, [(Role::Full, out), (Role::Operand, x)], move |stream, [out, x]| {
            pool(stream, out, x, layout.spans(), width)
        })
    }

    fn l2_normalize(self, rows: usize, width: usize) -> Boxed {
        self.operands(1, [(Role::Full, rows * width)], move |stream, [x]| {
            l2_normalize(stream, x, rows.into(), width)
        })
    }

    fn token_compress(self, sequences: Sequences, width: usize) -> Boxed {
        let before = self.loaded(sequences.with_passages())?;
        let mut after = LayoutBuffer::new(self.stream, sequences.tokens())?;
        after.compress(self.stream, &before, 2)?;
        let [rows, left] = [&before, &after].map(|layout| layout.tokens().get());
        self.operands(1, [(Role::Full, left * width), (Role::Full, rows * width)], move |stream, [out, x]| {
            token_compress(stream, out, x, &before, &after, 2, width)
        })
    }

    fn layout(self, sequences: Sequences) -> Boxed {
        let segments = sequences.segments(ScoredRow::Last);
        Ok(Box::new(LaidOut { layout: self.loaded(segments.clone())?, segments }))
    }

    fn copy_block(self, [rows, width, stride]: [usize; 3]) -> Boxed {
        self.operands(
            1,
            [(Role::Operand, rows * width), (Role::Operand, rows * stride)],
            move |stream, [out, x]| {
                let block = |stride| Block { stride, row: Size::from(0), column: 0 };
                copy_block(stream, out, block(width), x, block(stride), rows.into(), width)
            },
        )
    }
}

/// Columns of all queries' heads, and of all keys'.
fn widths(params: AttentionParams) -> (usize, usize) {
    (params.num_heads * params.head_dim, params.num_kv_heads * params.head_dim)
}
