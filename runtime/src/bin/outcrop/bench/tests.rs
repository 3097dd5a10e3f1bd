use std::collections::HashSet;

use clap::Parser;

use super::baseline::geometric_mean;
use super::record::utc;
use super::rows::{Family, MODELS, published};
use crate::args::{Args, Command};
use crate::synth;

/// Against the shapes that `synth` makes, which are those of the published files.
#[test]
fn widths_are_the_published_ones() {
    for model in MODELS {
        let (family, size) = match model.family {
            Family::Encoder if model.name == "base" => ("xlmr", "base"),
            Family::Encoder => ("xlmr", "m3"),
            Family::Gemma => ("gemma", "published"),
            Family::Minicpm => ("minicpm", "published"),
            Family::Gemma2 => ("gemma2", "published"),
        };
        let args = ["outcrop", "synth", "--family", family, "--size", size, "dir"];
        let Command::Synth(args) = Args::parse_from(args).command else { panic!("{args:?}") };
        let config = synth::plan(&args, synth::Task::Rerank).unwrap().config;
        let stated = |name: &str| config[name].as_u64().map(|number| usize::try_from(number).unwrap());
        let heads = stated("num_attention_heads").unwrap();
        // Encoders state no more than these.
        let kv_heads = stated("num_key_value_heads").unwrap_or(heads);
        let head_dim = stated("head_dim").unwrap_or(stated("hidden_size").unwrap() / heads);
        assert_eq!(
            (model.hidden_size, model.intermediate_size, model.num_heads, model.num_kv_heads, model.head_dim),
            (stated("hidden_size").unwrap(), stated("intermediate_size").unwrap(), heads, kv_heads, head_dim),
            "{}",
            model.name
        );
        if model.family == Family::Gemma2 {
            assert_eq!(stated("sliding_window"), Some(4096));
        }
    }
}

#[test]
fn rows_have_names_of_their_own_and_stand_by_kernel() {
    let tokens = [64, 512, 4096];
    let rows = published(&tokens);
    let names: HashSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names.len(), rows.len());
    let mut kernels: Vec<&str> = rows.iter().map(|row| row.call.kernel()).collect();
    kernels.dedup();
    assert_eq!(kernels.len(), kernels.iter().collect::<HashSet<_>>().len(), "{kernels:?}");
    // Products of every model at every number of tokens; attention at all lengths that there are.
    let of = |start: &str| rows.iter().filter(|row| row.name.starts_with(start)).count();
    assert_eq!((of("gemm/base/qkv/"), of("gemm/gemma2/down/"), of("attention/large/row/")), (3, 3, 7));
    for row in &rows {
        let cost = row.call.cost(2, 2);
        assert!(cost.bytes > 0, "{}", row.name);
        assert!(row.call.shape().iter().all(|(_, number)| *number > 0), "{}: {:?}", row.name, row.call);
    }
    // Tokens in the order in which they were given.
    assert_eq!(published(&[512, 64])[0].name, "gemm/base/qkv/512");
}

#[test]
fn ratios_have_a_geometric_mean() {
    assert!((geometric_mean(&[2.0, 0.5]) - 1.0).abs() < 1e-12);
    assert!((geometric_mean(&[1.0, 8.0, 1.0]) - 2.0).abs() < 1e-12);
    assert!(geometric_mean(&[]).is_nan());
}

#[test]
fn dates_are_written_as_rfc_3339_has_them() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (951_868_800, "2000-03-01T00:00:00Z"),
        (1_735_689_599, "2024-12-31T23:59:59Z"),
        (1_795_219_200, "2026-11-21T00:00:00Z"),
    ] {
        assert_eq!(utc(seconds), text);
    }
}
