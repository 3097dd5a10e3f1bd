//! A real checkpoint: sentence-transformers/all-MiniLM-L6-v2, whose directory `OUTCROP_MINILM_DIR` names.
//!
//! `tests/run` fetches it. Without it these tests say so and pass, unless `REQUIRE` lists `minilm`.

use std::ffi::OsString;

use outcrop::loader::Checkpoint;
use outcrop::{EmbedOptions, Engine, ScoreOptions};
use serde_json::Value;

use crate::fixtures::{engine, json, path, required};

pub(crate) fn minilm_dir() -> Option<OsString> {
    let dir = std::env::var_os("OUTCROP_MINILM_DIR");
    if dir.is_none() {
        assert!(!required("minilm"), "REQUIRE lists minilm, but OUTCROP_MINILM_DIR is not set");
        eprintln!("SKIPPED: OUTCROP_MINILM_DIR is not set; tests/run fetches the model");
    }
    dir
}

fn minilm() -> Option<Engine> {
    minilm_dir().map(engine)
}

#[test]
fn vectors_equal_those_of_sentence_transformers() {
    let Some(engine) = minilm() else { return };
    let texts: Vec<String> = json(path("minilm/texts.json"))
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(texts.len(), 50);
    // The loader opens models only, so the file is read with its own library.
    let bytes = std::fs::read(path("minilm/vectors.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let vectors = file.tensor("vectors").unwrap();
    assert_eq!(vectors.shape(), [50, 384]);
    let expected: Vec<f32> =
        vectors.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let num_tokens: Vec<i64> = file
        .tensor("num_tokens")
        .unwrap()
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
        .collect();

    let embeddings = engine.embed(&texts, &EmbedOptions::default()).unwrap();
    for (i, embedding) in embeddings.into_iter().enumerate() {
        let embedding = embedding.unwrap();
        assert_eq!(embedding.tokens as i64, num_tokens[i], "tokens of text {i}");
        for (j, (got, expected)) in embedding.vector.iter().zip(&expected[i * 384..(i + 1) * 384]).enumerate()
        {
            assert!((got - expected).abs() <= 1e-5, "text {i} element {j}: {got}, expected {expected}");
        }
    }
}

#[test]
fn the_right_passage_comes_first_in_thirty_real_lists() {
    let Some(engine) = minilm() else { return };
    let lists = std::fs::read_to_string(path("rankings.jsonl")).unwrap();
    let lists: Vec<Value> = lists.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lists.len(), 30);
    for list in &lists {
        let query = list["query"].as_str().unwrap();
        let passages: Vec<&str> =
            list["passages"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        let ranking = engine.rerank(query, &passages, &ScoreOptions::default()).unwrap();
        assert!(ranking.failed.is_empty());
        assert_eq!(ranking.results.len(), passages.len());
        let best = ranking.results[0].index;
        let relevant = list["relevant"].as_u64().unwrap() as usize;
        assert_eq!(best, relevant, "{query}: {} before {}", passages[best], passages[relevant]);
    }
}

#[test]
fn its_files_are_read_as_they_are() {
    let Some(dir) = minilm_dir() else { return };
    let checkpoint = Checkpoint::open(dir).unwrap();
    let parameters: usize = checkpoint.tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    // 22.7 million, as the model's page says; the I64 position ids are the 512 beyond.
    assert_eq!(parameters, 22_713_216 + 512);
    let sentence_transformers = checkpoint.sentence_transformers().unwrap().unwrap();
    assert_eq!(sentence_transformers.max_seq_length, Some(256));
    assert!(sentence_transformers.normalize);
}
