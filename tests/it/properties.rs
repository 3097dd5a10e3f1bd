//! What holds for the decoder families whatever the shape: a score has the same bits alone and in any batch, in any order and with
//! any number of threads, with its query shared or not, with other cutoffs beside its own, with a compression of ratio 1 or
//! none. Random networks of random shapes, random texts.

use crate::fixtures::on_cpu;
use outcrop::loader::Dtype as StoredType;
use outcrop::{Compression, Engine, EngineOptions, HeadRule, ScoreOptions};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::random_network::RandomNetwork;

/// A network and texts for it.
#[derive(Debug, Clone)]
struct Case {
    config: Value,
    tokenizer: &'static str,
    stored_type: StoredType,
    seed: u64,
    /// Queries are drawn from few, so that some are shared.
    pairs: Vec<(usize, usize)>,
    query_words: Vec<usize>,
    batch_tokens: usize,
    threads: usize,
    max_length: usize,
}

const FAMILIES: &[&str] = &["gemma", "minicpm", "gemma2"];
const LAYERWISE: &[&str] = &["minicpm", "gemma2"];
const COMPRESSING: &[&str] = &["gemma2"];

/// Networks of one of `families`.
fn cases(families: &'static [&'static str]) -> impl Strategy<Value = Case> {
    let heads = select(vec![(1, 1), (2, 1), (2, 2), (4, 2), (3, 3), (6, 2)]);
    let shape = (heads, select(vec![16, 32, 48, 64, 128, 256]), 1..=3_usize, 8..=200_usize, 1..=5_usize);
    let details = (any::<bool>(), select(vec![4096, 24, 1]), select(vec![None, Some(30.0)]), 1..=2_usize);
    let texts = (
        prop::collection::vec((0..4_usize, 0..90_usize), 1..9),
        prop::collection::vec(0..60_usize, 4),
        select(vec![1_usize, 40, 150, 400, 5000]),
        1..=3_usize,
        select(vec![12_usize, 64, 512]),
    );
    let stored = select(vec![StoredType::F32, StoredType::BF16, StoredType::F16]);
    (select(families), shape, details, stored, any::<u64>(), texts).prop_map(
        |(family, shape, details, stored_type, seed, texts)| {
            let (pairs, query_words, batch_tokens, threads, max_length) = texts;
            let (config, tokenizer) = config(family, shape, details);
            Case {
                config,
                tokenizer,
                stored_type,
                seed,
                pairs,
                query_words,
                batch_tokens,
                threads,
                max_length,
            }
        },
    )
}

fn config(
    family: &str,
    ((heads, kv_heads), head_dim, width, intermediate_size, layers): (
        (usize, usize),
        usize,
        usize,
        usize,
        usize,
    ),
    (flag, window, final_softcap, layer_sep): (bool, usize, Option<f64>, usize),
) -> (Value, &'static str) {
    let start_layer = 1 + layers / 3;
    let hidden_size = if family == "minicpm" { heads * head_dim } else { 40 * width };
    let mut config = json!({
        "hidden_size": hidden_size, "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "start_layer": start_layer,
    });
    let (own, tokenizer) = match family {
        "gemma" => (
            json!({ "architectures": ["GemmaForCausalLM"], "vocab_size": 1100,
                "hidden_activation": if flag { Value::from("gelu") } else { Value::Null } }),
            "gemma",
        ),
        "minicpm" => (
            json!({ "architectures": ["LayerWiseMiniCPMForCausalLM"], "vocab_size": 1000, "hidden_act": "silu",
                "scale_emb": 12, "scale_depth": 1.4, "head_multi": flag }),
            "minicpm",
        ),
        _ => (
            json!({ "architectures": ["CostWiseGemmaForCausalLM"], "vocab_size": 1100, "layer_wise": true,
                "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 200, "sliding_window": window,
                "attn_logit_softcapping": if flag { Value::from(50.0) } else { Value::Null },
                "final_logit_softcapping": final_softcap, "layer_sep": layer_sep }),
            "gemma",
        ),
    };
    config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    (config, tokenizer)
}

impl Case {
    /// Writes the network into a new directory.
    fn write(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let network = RandomNetwork { config: &self.config, stored_type: self.stored_type, seed: self.seed };
        network.write(dir.path(), self.tokenizer, u64::MAX);
        dir
    }

    fn texts(&self) -> Vec<(String, String)> {
        const WORDS: &[&str] =
            &["panda", "what", "is", "the", "bear", "熊猫", "Paris", "in", "4711", "tool,", "Москва"];
        let text = |words: usize, salt: usize| -> String {
            let word = |i: usize| WORDS[(i * 7 + salt * 5 + i * i) % WORDS.len()];
            (0..words).map(word).collect::<Vec<_>>().join(" ")
        };
        let query = |i: usize| text(self.query_words[i], i);
        self.pairs.iter().enumerate().map(|(i, (q, words))| (query(*q), text(*words, i + 9))).collect()
    }

    fn options(&self) -> ScoreOptions {
        ScoreOptions { max_length: Some(self.max_length), ..Default::default() }
    }

    fn engine_options(&self) -> EngineOptions {
        EngineOptions { threads: Some(self.threads), batch_tokens: Some(self.batch_tokens), ..on_cpu() }
    }
}

/// The bits of every cutoff's score, then of the score itself, for every pair.
fn bits(engine: &Engine, pairs: &[(String, String)], options: &ScoreOptions) -> Vec<Vec<u64>> {
    let scores = engine.score(pairs, options).unwrap().into_iter().map(Result::unwrap);
    scores
        .map(|score| {
            let layers = score.layer_scores.iter().map(|layer| layer.score.to_bits());
            layers.chain([score.score.to_bits()]).collect()
        })
        .collect()
}

/// All that the model allows; nothing for a model without cutoffs.
fn all_cutoffs(engine: &Engine) -> Vec<usize> {
    engine.allowed_cutoffs().map_or(Vec::new(), |allowed| allowed.iter().collect())
}

fn with_all_cutoffs(engine: &Engine, options: ScoreOptions) -> ScoreOptions {
    let layers = all_cutoffs(engine);
    let cutoff_layers = (!layers.is_empty()).then(|| engine.cutoffs(&layers).unwrap());
    ScoreOptions { cutoff_layers, ..options }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn alone_in_any_batch_in_any_order_and_with_any_threads(case in cases(FAMILIES), ratio in 1..5_usize) {
        let dir = case.write();
        let pairs = case.texts();
        let engine = Engine::open(dir.path(), &case.engine_options()).unwrap();
        let mut options = with_all_cutoffs(&engine, case.options());
        if case.config["layer_wise"] == true {
            options.compression = Some(Compression::new(ratio, &[1, 2]).unwrap());
        }
        let together = bits(&engine, &pairs, &options);
        for (i, pair) in pairs.iter().enumerate() {
            prop_assert_eq!(&bits(&engine, std::slice::from_ref(pair), &options)[0], &together[i], "pair {} alone", i);
        }
        let other = EngineOptions { threads: Some(case.threads % 3 + 1), batch_tokens: Some(777), ..on_cpu() };
        let other = Engine::open(dir.path(), &other).unwrap();
        let reversed: Vec<_> = pairs.iter().rev().cloned().collect();
        let mut got = bits(&other, &reversed, &options);
        got.reverse();
        prop_assert_eq!(got, together);
    }

    #[test]
    fn with_and_without_prefix_sharing(case in cases(FAMILIES), ratio in 1..5_usize) {
        let dir = case.write();
        let pairs = case.texts();
        let shared = Engine::open(dir.path(), &case.engine_options()).unwrap();
        let options = EngineOptions { prefix_sharing: false, ..case.engine_options() };
        let apart = Engine::open(dir.path(), &options).unwrap();
        let mut options = with_all_cutoffs(&shared, case.options());
        if case.config["layer_wise"] == true {
            options.compression = Some(Compression::new(ratio, &[1, 3]).unwrap());
        }
        prop_assert_eq!(bits(&shared, &pairs, &options), bits(&apart, &pairs, &options));
        // One query for all of the passages, as a ranking.
        let query = &pairs[0].0;
        let passages: Vec<&str> = pairs.iter().map(|(_, passage)| passage.as_str()).collect();
        let ranked = |engine: &Engine| -> Vec<(usize, u64)> {
            let results = engine.rerank(query, &passages, &options).unwrap().results;
            results.iter().map(|ranked| (ranked.index, ranked.score.to_bits())).collect()
        };
        prop_assert_eq!(ranked(&shared), ranked(&apart));
    }

    #[test]
    fn a_cutoff_alone_and_beside_others(case in cases(LAYERWISE)) {
        let dir = case.write();
        let pairs = case.texts();
        let options = EngineOptions { heads: Some(HeadRule::ByLayer), ..case.engine_options() };
        let engine = Engine::open(dir.path(), &options).unwrap();
        let layers = all_cutoffs(&engine);
        let together = bits(&engine, &pairs, &with_all_cutoffs(&engine, case.options()));
        for (nth, layer) in layers.iter().enumerate() {
            let alone = ScoreOptions { cutoff_layers: Some(engine.cutoffs(&[*layer]).unwrap()), ..case.options() };
            for (i, got) in bits(&engine, &pairs, &alone).iter().enumerate() {
                prop_assert_eq!(got[0], together[i][nth], "pair {} behind layer {}", i, layer);
            }
        }
        // By the reference's rule the head goes by the place in the list, so the first is the one that stays the same.
        let engine = Engine::open(dir.path(), &case.engine_options()).unwrap();
        let together = bits(&engine, &pairs, &with_all_cutoffs(&engine, case.options()));
        let alone = ScoreOptions { cutoff_layers: Some(engine.cutoffs(&layers[..1]).unwrap()), ..case.options() };
        for (got, together) in bits(&engine, &pairs, &alone).iter().zip(&together) {
            prop_assert_eq!(got[0], together[0]);
        }
    }

    #[test]
    fn a_compression_of_ratio_one_and_none(case in cases(COMPRESSING)) {
        let dir = case.write();
        let pairs = case.texts();
        let engine = Engine::open(dir.path(), &case.engine_options()).unwrap();
        let none = with_all_cutoffs(&engine, case.options());
        let one = ScoreOptions { compression: Some(Compression::new(1, &[1, 2]).unwrap()), ..none.clone() };
        prop_assert_eq!(bits(&engine, &pairs, &one), bits(&engine, &pairs, &none));
        // And a compression before a layer that is not reached.
        let beyond = ScoreOptions { compression: Some(Compression::new(4, &[99]).unwrap()), ..none.clone() };
        prop_assert_eq!(bits(&engine, &pairs, &beyond), bits(&engine, &pairs, &none));
        prop_assert_eq!(engine.check(&beyond).unwrap().len(), 1);
    }
}
