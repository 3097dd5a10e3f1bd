//! Every kernel at the shapes of the published models; throughput is FLOP/s for products, bytes/s for the rest.
//!
//! `cargo bench -p outcrop-benches --bench kernels -- [filter]`. Read these as ratios between runs on a quiet machine.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outcrop_kernels::add_layer_norm::{self, LayerNorm, add_layer_norm};
use outcrop_kernels::attention::{self, AttentionParams, Mask, Rows, Span, attention};
use outcrop_kernels::embed::{self, embed};
use outcrop_kernels::embed_layer_norm::{self, EmbeddingTables, embed_layer_norm};
use outcrop_kernels::gather_rows::{self, gather_rows};
use outcrop_kernels::gemm::{self, Activation, Epilogue, Matrix, Part, gemm};
use outcrop_kernels::l2_normalize::{self, l2_normalize};
use outcrop_kernels::layout::{Before, Bounds, Layout, LayoutBuffer, ScoredRow, Segment, Segments};
use outcrop_kernels::pool::{self, pool};
use outcrop_kernels::rms_norm::{self, RmsNorm, rms_norm};
use outcrop_kernels::rope::RopeTable;
use outcrop_kernels::row_dot::{self, row_dot};
use outcrop_kernels::sandwich_norm::{self, sandwich_norm};
use outcrop_kernels::token_compress::{self, Compress, token_compress};
use outcrop_kernels::{Buffer, Cost, Elements, HostBuffer, Stream, Table};

/// Rows of a usual packed batch, and of the scored rows of its last layer.
const TOKENS: usize = 1024;
const SCORED: usize = 6;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn buffer(n: usize) -> Buffer {
    let mut buffer = HostBuffer::zeros(n);
    buffer.as_mut_slice().copy_from_slice(&values(n));
    Buffer::Host(buffer)
}

fn zeros(n: usize) -> Buffer {
    Buffer::Host(HostBuffer::zeros(n))
}

/// A matrix of one part.
fn matrix(stream: &Stream, n: usize, k: usize, rotary_head_dim: Option<usize>) -> Matrix {
    let part = Part { weights: Elements::F32(&values(n * k)), rows: n, rotary_head_dim };
    Matrix::pack(stream, &[part], k, None).expect("shapes agree")
}

fn stream() -> Stream {
    Stream::cpu(None).expect("a thread pool starts")
}

fn operations(cost: Cost) -> Throughput {
    Throughput::Elements(cost.flops)
}

fn bytes(cost: Cost) -> Throughput {
    Throughput::Bytes(cost.bytes)
}

fn bench_gemm(c: &mut Criterion) {
    let stream = stream();
    let mut group = c.benchmark_group("gemm");
    for (name, n, k) in [
        ("base/qkv", 2304, 768),
        ("base/output", 768, 768),
        ("base/intermediate", 3072, 768),
        ("base/mlp_output", 768, 3072),
        ("large/qkv", 3072, 1024),
        ("large/intermediate", 4096, 1024),
        ("large/mlp_output", 1024, 4096),
    ] {
        let (matrix, bias) = (matrix(&stream, n, k, None), buffer(n));
        for m in [SCORED, 64, TOKENS] {
            let (a, mut d) = (buffer(m * k), zeros(m * n));
            group.throughput(operations(gemm::cost(m, n, k, [4, 4], 4 * m * n)));
            group.bench_function(BenchmarkId::new(name, m), |b| {
                b.iter(|| gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::Bias(&bias)));
            });
        }
    }
    let (n, k) = (3072, 768);
    let (matrix, bias) = (matrix(&stream, n, k, Some(64)), buffer(n));
    let table = RopeTable::new(&stream, 10_000.0, 64, 512).expect("the head is even");
    let position_ids: Vec<u32> = (0..1024).map(|i| i % 512).collect();
    let (a, mut d) = (buffer(TOKENS * k), zeros(TOKENS * n));
    group.throughput(operations(gemm::cost(TOKENS, n, k, [4, 4], 4 * TOKENS * n)));
    for name in ["none", "bias", "bias_gelu_erf", "bias_tanh", "add_scaled", "rope"] {
        let epilogue = || match name {
            "bias" => Epilogue::Bias(&bias),
            "bias_gelu_erf" => Epilogue::BiasGeluErf(&bias),
            "bias_tanh" => Epilogue::BiasTanh(&bias),
            // A factor of 0 keeps what is summed over all runs finite; the work is the same.
            "add_scaled" => Epilogue::AddScaled(0.0, None),
            "rope" => Epilogue::Rope(&table, (&position_ids[..]).into(), None),
            _ => Epilogue::None,
        };
        group.bench_function(BenchmarkId::new("epilogue", name), |b| {
            b.iter(|| gemm(&stream, &mut d, &a, &matrix, 0..1, TOKENS.into(), epilogue()));
        });
    }
    group.finish();
}

fn bench_gated_gemm(c: &mut Criterion) {
    let stream = stream();
    let mut group = c.benchmark_group("gemm");
    for (name, n, k, activation) in [
        ("gemma/gate_up", 16_384, 2048, Activation::GeluTanh),
        ("minicpm/gate_up", 5760, 2304, Activation::Silu),
        ("gemma2/gate_up", 14_336, 3584, Activation::GeluTanh),
    ] {
        let weights = values(n * k);
        let gate_up = Elements::F32(&weights);
        let matrix = Matrix::pack_gated(&stream, gate_up, gate_up, n, k, None).expect("shapes agree");
        for m in [SCORED, TOKENS] {
            let (a, mut d) = (buffer(m * k), zeros(m * n));
            group.throughput(operations(gemm::cost(m, 2 * n, k, [4, 4], 4 * m * n)));
            group.bench_function(BenchmarkId::new(name, m), |b| {
                b.iter(|| {
                    gemm(&stream, &mut d, &a, &matrix, 0..1, m.into(), Epilogue::Gated(activation, None))
                });
            });
        }
    }
    group.finish();
}

fn bench_attention(c: &mut Criterion) {
    let stream = stream();
    let mut group = c.benchmark_group("attention");
    for (name, num_heads, num_kv_heads, head_dim, mask) in [
        ("minilm", 12, 12, 32, Mask::Full),
        ("base", 12, 12, 64, Mask::Full),
        ("large", 16, 16, 64, Mask::Full),
        ("gemma", 8, 1, 256, Mask::Causal),
        ("minicpm", 36, 36, 64, Mask::Causal),
        ("gemma2", 16, 8, 256, Mask::Window(4096)),
    ] {
        let softmax_scale = (head_dim as f32).powf(-0.5);
        let params =
            AttentionParams { num_heads, num_kv_heads, head_dim, softmax_scale, mask, softcap: None };
        for length in [32, 128, 512] {
            let (q_size, kv_size) = (num_heads * head_dim, num_kv_heads * head_dim);
            let stride = q_size + 2 * kv_size;
            let spans: Vec<Span> =
                (0..TOKENS / length).map(|i| Span::whole(i * length..(i + 1) * length)).collect();
            let (qkv, mut out) = (buffer(TOKENS * stride), zeros(TOKENS * q_size));
            let [q, k, v] = [0, q_size, q_size + kv_size].map(|column| Rows { buffer: &qkv, stride, column });
            group.throughput(operations(attention::cost(&spans, params, 4)));
            group.bench_function(BenchmarkId::new(name, length), |b| {
                b.iter(|| attention(&stream, &mut out, q, k, v, (&spans[..]).into(), params));
            });
        }
    }
    group.finish();
}

/// Sequences of 256 tokens, 200 of them passage, before and after a compression by 2.
fn compressed_layouts(stream: &Stream) -> [LayoutBuffer; 2] {
    let parts = Compress { query: 20, passage: 200, prompt: 36 };
    let segments = vec![Segment { parts, before: Before::Nothing, is_scored: true }; TOKENS / 256];
    let scored_row = ScoredRow::Last;
    let layout = Layout::new(Segments { segments, carried_rows: 0, kept_segment: None, scored_row });
    let bounds = Bounds { tokens: layout.num_tokens(), seqs: layout.num_seqs() };
    let [mut before, mut after] =
        [(); 2].map(|()| LayoutBuffer::new(stream, TOKENS).expect("memory of the host"));
    before.load(layout, bounds).expect("the batch fits");
    after.compress(stream, &before, 2).expect("a compressed batch fits");
    [before, after]
}

/// What the decoder families add.
fn bench_decoder_rows(c: &mut Criterion) {
    let stream = stream();
    for hidden in [2048, 2304, 3584] {
        let weight = buffer(hidden);
        let norm = RmsNorm { weight: &weight, eps: 1e-6 };
        let (mut x, y, mut out) = (buffer(TOKENS * hidden), buffer(TOKENS * hidden), buffer(TOKENS * hidden));
        let mut group = c.benchmark_group("rows");
        group.throughput(bytes(rms_norm::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("rms_norm", hidden), |b| {
            b.iter(|| rms_norm(&stream, &mut out, &x, norm, TOKENS.into()));
        });
        group.throughput(bytes(sandwich_norm::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("sandwich_norm", hidden), |b| {
            b.iter(|| sandwich_norm(&stream, &mut x, &mut out, &y, norm, norm, TOKENS.into()));
        });
        let embeddings = values(20_000 * hidden);
        let table = Table::Mapped(Elements::F32(&embeddings));
        let input_ids: Vec<u32> = (0..1024).map(|i| i * 7919 % 20_000).collect();
        group.throughput(bytes(embed::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("embed", hidden), |b| {
            b.iter(|| embed(&stream, &mut out, table, (&input_ids[..]).into(), hidden, 45.25));
        });
        let [before, after] = compressed_layouts(&stream);
        let (rows, left) = (before.tokens().get(), after.tokens().get());
        // Twice as many passage rows are merged as there are fewer afterwards.
        group.throughput(bytes(token_compress::cost(rows, 2 * (rows - left), left, hidden)));
        group.bench_function(BenchmarkId::new("token_compress", hidden), |b| {
            b.iter(|| token_compress(&stream, &mut out, &y, &before, &after, 2, hidden));
        });
        group.finish();
    }
}

fn bench_rows(c: &mut Criterion) {
    let stream = stream();
    for hidden in [384, 768, 1024] {
        let (weight, bias) = (buffer(hidden), buffer(hidden));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
        let (mut x, y) = (buffer(TOKENS * hidden), buffer(TOKENS * hidden));
        let layout = Layout::new(Segments::of_sequences([TOKENS / 4; 4], ScoredRow::First));

        let mut group = c.benchmark_group("rows");
        group.throughput(bytes(add_layer_norm::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("add_layer_norm", hidden), |b| {
            b.iter(|| add_layer_norm(&stream, &mut x, &y, norm, TOKENS.into()));
        });
        group.throughput(bytes(l2_normalize::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("l2_normalize", hidden), |b| {
            b.iter(|| l2_normalize(&stream, &mut x, TOKENS.into(), hidden));
        });
        let mut out = zeros(TOKENS * hidden);
        group.throughput(bytes(pool::cost(TOKENS, layout.spans.len(), hidden, 4)));
        group.bench_function(BenchmarkId::new("pool_mean", hidden), |b| {
            b.iter(|| pool(&stream, &mut out, &x, (&layout.spans[..]).into(), hidden));
        });
        let rows: Vec<u32> = (0..1024).rev().collect();
        group.throughput(bytes(gather_rows::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("gather_rows", hidden), |b| {
            b.iter(|| gather_rows(&stream, &mut out, &x, (&rows[..]).into(), hidden));
        });
        let mut scores = zeros(TOKENS);
        group.throughput(bytes(row_dot::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("row_dot", hidden), |b| {
            b.iter(|| row_dot(&stream, &mut scores, 0, &x, &weight, 0.5, None, TOKENS.into()));
        });
        let (word, position) = (values(20_000 * hidden), values(514 * hidden));
        let tables = EmbeddingTables {
            word: Table::Mapped(Elements::F32(&word)),
            position: Table::Mapped(Elements::F32(&position)),
            token_type: &bias,
        };
        let input_ids: Vec<u32> = (0..1024).map(|i| i * 7919 % 20_000).collect();
        let position_ids: Vec<u32> = (0..1024).map(|i| 2 + i % 512).collect();
        let (input_ids, position_ids) = ((&input_ids[..]).into(), (&position_ids[..]).into());
        group.throughput(bytes(embed_layer_norm::cost(TOKENS, hidden, 4, 4)));
        group.bench_function(BenchmarkId::new("embed_layer_norm", hidden), |b| {
            b.iter(|| embed_layer_norm(&stream, &mut out, tables, input_ids, position_ids, norm));
        });
        group.finish();
    }
}

criterion_group!(benches, bench_gemm, bench_gated_gemm, bench_attention, bench_rows, bench_decoder_rows);
criterion_main!(benches);
