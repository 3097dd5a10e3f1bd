//! Every kernel at the shapes of the published models; throughput is FLOP/s for products, bytes/s for the rest.
//!
//! `cargo bench -p outcrop-benches --bench kernels -- [filter]`. Read these as ratios between runs on a quiet machine.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outcrop_kernels::add_layer_norm::{self, LayerNorm, add_layer_norm};
use outcrop_kernels::add_rms_norm::{self, add_rms_norm};
use outcrop_kernels::attention::{self, AttentionParams, Mask, Rows, Span, attention};
use outcrop_kernels::embed::{self, embed};
use outcrop_kernels::embed_layer_norm::{self, EmbeddingTables, embed_layer_norm};
use outcrop_kernels::gather_rows::{self, gather_rows};
use outcrop_kernels::gemm::{self, Activation, Epilogue, Matrix, Part, gemm};
use outcrop_kernels::l2_normalize::{self, l2_normalize};
use outcrop_kernels::pool::{self, Pooling, pool};
use outcrop_kernels::rms_norm::{self, RmsNorm, rms_norm};
use outcrop_kernels::rope::{self, RopeHeads, RopeTable, rope};
use outcrop_kernels::row_dot::{self, row_dot};
use outcrop_kernels::sandwich_norm::{self, sandwich_norm};
use outcrop_kernels::token_compress::{self, Compress, token_compress};
use outcrop_kernels::{Buffer, Cost, Elements, Segments, Stream};

/// Rows of a usual packed batch, and of the scored rows of its last layer.
const TOKENS: usize = 1024;
const SCORED: usize = 6;

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn buffer(n: usize) -> Buffer {
    Buffer::from_slice(&values(n))
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
        let weights = values(n * k);
        let bias = values(n);
        let part = Part { weights: Elements::F32(&weights), rows: n };
        let matrix = Matrix::pack(&stream, &[part], k, None).expect("shapes agree");
        for m in [SCORED, 64, TOKENS] {
            let (a, mut d) = (buffer(m * k), Buffer::zeros(m * n));
            group.throughput(operations(gemm::cost(m, n, k, 4)));
            group.bench_function(BenchmarkId::new(name, m), |b| {
                b.iter(|| gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::Bias(&bias)));
            });
        }
    }
    let (n, k) = (3072, 768);
    let (weights, bias) = (values(n * k), values(n));
    let part = Part { weights: Elements::F32(&weights), rows: n };
    let matrix = Matrix::pack(&stream, &[part], k, None).expect("shapes agree");
    let (a, residual, mut d) = (buffer(TOKENS * k), buffer(TOKENS * n), Buffer::zeros(TOKENS * n));
    group.throughput(operations(gemm::cost(TOKENS, n, k, 4)));
    for (name, epilogue) in [
        ("none", Epilogue::None),
        ("bias", Epilogue::Bias(&bias)),
        ("bias_gelu_erf", Epilogue::BiasGeluErf(&bias)),
        ("bias_tanh", Epilogue::BiasTanh(&bias)),
        ("bias_residual", Epilogue::BiasResidual(&bias, &residual)),
    ] {
        group.bench_function(BenchmarkId::new("epilogue", name), |b| {
            b.iter(|| gemm(&stream, &mut d, &a, &matrix, 0..1, TOKENS, epilogue));
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
            let (a, mut d) = (buffer(m * k), Buffer::zeros(m * n));
            group.throughput(operations(gemm::cost(m, 2 * n, k, 4)));
            group.bench_function(BenchmarkId::new(name, m), |b| {
                b.iter(|| gemm(&stream, &mut d, &a, &matrix, 0..1, m, Epilogue::Gated(activation)));
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
            let (qkv, mut out) = (buffer(TOKENS * stride), Buffer::zeros(TOKENS * q_size));
            let [q, k, v] = [0, q_size, q_size + kv_size].map(|column| Rows { buffer: &qkv, stride, column });
            group.throughput(operations(attention::cost(&spans, params)));
            group.bench_function(BenchmarkId::new(name, length), |b| {
                b.iter(|| attention(&stream, &mut out, q, k, v, &spans, params));
            });
        }
    }
    group.finish();
}

/// What the decoder families add.
fn bench_decoder_rows(c: &mut Criterion) {
    let stream = stream();
    for hidden in [2048, 2304, 3584] {
        let weight = values(hidden);
        let norm = RmsNorm { weight: &weight, eps: 1e-6 };
        let (mut x, y, mut out) = (buffer(TOKENS * hidden), buffer(TOKENS * hidden), buffer(TOKENS * hidden));
        let mut group = c.benchmark_group("rows");
        group.throughput(bytes(rms_norm::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("rms_norm", hidden), |b| {
            b.iter(|| rms_norm(&stream, &mut out, &x, norm, TOKENS));
        });
        group.throughput(bytes(add_rms_norm::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("add_rms_norm", hidden), |b| {
            b.iter(|| add_rms_norm(&stream, &mut x, &mut out, &y, 0.0, norm, TOKENS));
        });
        group.throughput(bytes(sandwich_norm::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("sandwich_norm", hidden), |b| {
            b.iter(|| sandwich_norm(&stream, &mut x, &mut out, &y, norm, norm, TOKENS));
        });
        let table = RopeTable::new(10_000.0, 64, 512).expect("the head is even");
        let position_ids: Vec<u32> = (0..1024).map(|i| i % 512).collect();
        let heads = RopeHeads { stride: hidden, column: 0, num_heads: hidden / 64 };
        group.throughput(bytes(rope::cost(TOKENS, hidden / 64, 64)));
        group.bench_function(BenchmarkId::new("rope", hidden), |b| {
            b.iter(|| rope(&stream, &mut x, heads, &position_ids, &table));
        });
        let embeddings = values(20_000 * hidden);
        let input_ids: Vec<u32> = (0..1024).map(|i| i * 7919 % 20_000).collect();
        group.throughput(bytes(embed::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("embed", hidden), |b| {
            b.iter(|| embed(&stream, &mut out, Elements::F32(&embeddings), &input_ids, hidden, 45.25));
        });
        let sequences = [Compress { query: 20, passage: 200, prompt: 36 }; TOKENS / 256];
        group.throughput(bytes(token_compress::cost(&sequences, 2, hidden)));
        group.bench_function(BenchmarkId::new("token_compress", hidden), |b| {
            b.iter(|| token_compress(&stream, &mut out, &y, &sequences, 2, hidden));
        });
        group.finish();
    }
}

fn bench_rows(c: &mut Criterion) {
    let stream = stream();
    for hidden in [384, 768, 1024] {
        let (weight, bias) = (values(hidden), values(hidden));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
        let (mut x, y) = (buffer(TOKENS * hidden), buffer(TOKENS * hidden));
        let segments = Segments::from_lengths([TOKENS / 4; 4]);

        let mut group = c.benchmark_group("rows");
        group.throughput(bytes(add_layer_norm::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("add_layer_norm", hidden), |b| {
            b.iter(|| add_layer_norm(&stream, &mut x, &y, norm, TOKENS));
        });
        group.throughput(bytes(l2_normalize::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("l2_normalize", hidden), |b| {
            b.iter(|| l2_normalize(&stream, &mut x, TOKENS, hidden));
        });
        let mut out = Buffer::zeros(TOKENS * hidden);
        group.throughput(bytes(pool::cost(&segments, hidden, Pooling::Mean)));
        group.bench_function(BenchmarkId::new("pool_mean", hidden), |b| {
            b.iter(|| pool(&stream, &mut out, &x, &segments, hidden, Pooling::Mean));
        });
        let rows: Vec<usize> = (0..TOKENS).rev().collect();
        group.throughput(bytes(gather_rows::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("gather_rows", hidden), |b| {
            b.iter(|| gather_rows(&stream, &mut out, &x, &rows, hidden));
        });
        let mut scores = vec![0.0; TOKENS];
        group.throughput(bytes(row_dot::cost(TOKENS, hidden)));
        group.bench_function(BenchmarkId::new("row_dot", hidden), |b| {
            b.iter(|| row_dot(&stream, &mut scores, &x, &weight, 0.5, None));
        });
        let (word, position) = (values(20_000 * hidden), values(514 * hidden));
        let tables = EmbeddingTables {
            word: Elements::F32(&word),
            position: Elements::F32(&position),
            token_type: &bias,
        };
        let input_ids: Vec<u32> = (0..1024).map(|i| i * 7919 % 20_000).collect();
        let position_ids: Vec<u32> = (0..1024).map(|i| 2 + i % 512).collect();
        group.throughput(bytes(embed_layer_norm::cost(TOKENS, hidden, 4)));
        group.bench_function(BenchmarkId::new("embed_layer_norm", hidden), |b| {
            b.iter(|| embed_layer_norm(&stream, &mut out, tables, &input_ids, &position_ids, norm));
        });
        group.finish();
    }
}

criterion_group!(benches, bench_gemm, bench_gated_gemm, bench_attention, bench_rows, bench_decoder_rows);
criterion_main!(benches);
