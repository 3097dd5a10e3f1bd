//! Every kernel at the shapes of the published encoders; throughput is FLOP/s for products, bytes/s for the rest.
//!
//! `cargo bench -p outcrop-benches --bench kernels -- [filter]`. Read these as ratios between runs on a quiet machine.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outcrop_kernels::add_layer_norm::{self, LayerNorm, add_layer_norm};
use outcrop_kernels::attention::{self, AttentionParams, Rows, attention};
use outcrop_kernels::embed_layer_norm::{self, EmbeddingTables, embed_layer_norm};
use outcrop_kernels::gather_rows::{self, gather_rows};
use outcrop_kernels::gemm::{self, Epilogue, Matrix, Part, gemm};
use outcrop_kernels::l2_normalize::{self, l2_normalize};
use outcrop_kernels::pool::{self, Pooling, pool};
use outcrop_kernels::row_dot::{self, row_dot};
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
        let matrix = Matrix::pack(&stream, &[part], k).expect("shapes agree");
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
    let matrix = Matrix::pack(&stream, &[part], k).expect("shapes agree");
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

fn bench_attention(c: &mut Criterion) {
    let stream = stream();
    let mut group = c.benchmark_group("attention");
    for (name, num_heads, head_dim) in
        [("minilm", 12, 32), ("base", 12, 64), ("large", 16, 64), ("wide", 8, 128)]
    {
        for length in [32, 128, 512] {
            let hidden = num_heads * head_dim;
            let segments = Segments::from_lengths((0..TOKENS / length).map(|_| length));
            let params = AttentionParams { num_heads, head_dim, softmax_scale: (head_dim as f32).powf(-0.5) };
            let (qkv, mut out) = (buffer(TOKENS * 3 * hidden), Buffer::zeros(TOKENS * hidden));
            let [q, k, v] =
                [0, hidden, 2 * hidden].map(|column| Rows { buffer: &qkv, stride: 3 * hidden, column });
            group.throughput(operations(attention::cost(&segments, &segments, params)));
            group.bench_function(BenchmarkId::new(name, length), |b| {
                b.iter(|| attention(&stream, &mut out, q, k, v, &segments, &segments, params));
            });
        }
    }
    group.finish();
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
            b.iter(|| row_dot(&stream, &mut scores, &x, &weight, 0.5));
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

criterion_group!(benches, bench_gemm, bench_attention, bench_rows);
criterion_main!(benches);
