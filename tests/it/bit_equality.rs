//! The same pair gives the same bits: alone, in any batch, in any order, with any number of threads, from many callers.

use outcrop::{EmbedOptions, Engine, EngineOptions, ScoreOptions};

use crate::fixtures::{on_cpu, pair_cases, path, text_cases};

fn open(model: &str, threads: usize, batch_tokens: usize) -> Engine {
    let options = EngineOptions { threads: Some(threads), batch_tokens: Some(batch_tokens), ..on_cpu() };
    Engine::open(path(model), &options).unwrap()
}

fn bits(engine: &Engine, pairs: &[(String, String)]) -> Vec<u64> {
    let scores = engine.score(pairs, &ScoreOptions::default()).unwrap();
    scores.into_iter().map(|score| score.unwrap().score.to_bits()).collect()
}

/// Every query with every passage: 196 pairs from 4 to 512 tokens.
fn pairs() -> Vec<(String, String)> {
    let cases = pair_cases(&path("xlmr_base"));
    let pairs = &cases.iter().find(|case| case.name == "default").unwrap().pairs;
    let passages = || pairs.iter().map(|(_, passage)| passage.clone());
    pairs.iter().flat_map(|(query, _)| passages().map(|passage| (query.clone(), passage))).collect()
}

#[test]
fn alone_and_in_any_batch() {
    let pairs = pairs();
    let engine = open("xlmr_base", 2, 1024);
    let together = bits(&engine, &pairs);
    for (i, pair) in pairs.iter().enumerate() {
        assert_eq!(bits(&engine, std::slice::from_ref(pair)), together[i..=i], "pair {i} alone");
    }
    for batch_tokens in [1, 100, 517, 2048, 100_000] {
        assert_eq!(
            bits(&open("xlmr_base", 2, batch_tokens), &pairs),
            together,
            "batches of {batch_tokens} tokens"
        );
    }
}

#[test]
fn in_any_order() {
    let pairs = pairs();
    let engine = open("xlmr_base", 2, 700);
    let expected = bits(&engine, &pairs);
    // Steps coprime to 196 visit every pair.
    for step in [195, 27, 55] {
        let order: Vec<usize> = (0..pairs.len()).map(|i| i * step % pairs.len()).collect();
        let shuffled: Vec<_> = order.iter().map(|i| pairs[*i].clone()).collect();
        let got = bits(&engine, &shuffled);
        for (got, i) in got.iter().zip(order) {
            assert_eq!(*got, expected[i], "pair {i} in order of step {step}");
        }
    }
}

#[test]
fn with_any_number_of_threads() {
    let pairs = pairs();
    let expected = bits(&open("xlmr_base", 1, 1024), &pairs);
    for threads in [2, 3, 8] {
        assert_eq!(bits(&open("xlmr_base", threads, 1024), &pairs), expected, "{threads} threads");
    }
}

#[test]
fn from_many_callers_at_once() {
    let pairs = pairs();
    let engine = open("xlmr_base", 2, 600);
    let expected = bits(&engine, &pairs);
    std::thread::scope(|scope| {
        for caller in 0..6 {
            let (engine, pairs, expected) = (&engine, &pairs, &expected);
            scope.spawn(move || {
                for round in 0..3 {
                    let start = (caller * 31 + round * 17) % 100;
                    assert_eq!(bits(engine, &pairs[start..start + 60]), expected[start..start + 60]);
                }
            });
        }
    });
}

#[test]
fn vectors_too() {
    for model in ["embed_minilm", "embed_m3"] {
        let texts = text_cases(&path(model)).remove(0).texts;
        let options = EmbedOptions::default();
        let vectors = |engine: &Engine, texts: &[String]| -> Vec<Vec<u32>> {
            let embeddings = engine.embed(texts, &options).unwrap().into_iter().map(Result::unwrap);
            embeddings.map(|e| e.vector.iter().map(|x| x.to_bits()).collect()).collect()
        };
        let expected = vectors(&open(model, 1, 1024), &texts);
        let engine = open(model, 3, 300);
        assert_eq!(vectors(&engine, &texts), expected, "{model} together");
        for (text, expected) in texts.iter().zip(expected) {
            assert_eq!(vectors(&engine, std::slice::from_ref(text)), [expected], "{model} alone: {text:?}");
        }
    }
}
