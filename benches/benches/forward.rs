//! The whole forward pass, texts to scores, of a model directory.
//!
//! `OUTCROP_BENCH_MODEL=DIR cargo bench -p outcrop-benches --bench forward`; make one with `outcrop synth`. Without the variable
//! the tiny model of the tests is taken, which measures overhead rather than arithmetic. Throughput is in tokens.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outcrop::{Engine, EngineOptions, ScoreOptions};

fn bench_forward(c: &mut Criterion) {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/xlmr_base");
    let model = std::env::var("OUTCROP_BENCH_MODEL").unwrap_or_else(|_| tiny.to_owned());
    let engine = Engine::open(&model, &EngineOptions::default())
        .expect("OUTCROP_BENCH_MODEL is a reranker's directory");
    let options = ScoreOptions::default();
    let mut group = c.benchmark_group("forward");
    group.sample_size(10);
    let passage = |words: usize| "the river runs past the old bridge ".repeat(words.div_ceil(7));
    for (name, query, passages) in [
        ("one_pair_of_60_words", "where is the bridge?", vec![passage(60)]),
        ("8_passages_of_40_words", "where is the bridge?", vec![passage(40); 8]),
        ("mixed_lengths", "where is the bridge?", (1..=24).map(|i| passage(i * 10)).collect()),
    ] {
        let ranking = engine.rerank(query, &passages, &options).expect("the model is a reranker");
        let tokens: usize = ranking.results.iter().map(|ranked| ranked.tokens).sum();
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(name, |b| b.iter(|| engine.rerank(query, &passages, &options)));
    }
    group.finish();
}

criterion_group!(benches, bench_forward);
criterion_main!(benches);
