//! `outcrop inspect`.

use serde_json::{Value, json};

use super::{made, model, outcrop};

#[test]
fn a_reranker_is_described() {
    let model = model("xlmr_base");
    let ran = outcrop(["inspect", &model, "--json"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let facts: Value = serde_json::from_str(&ran.stdout).unwrap();
    for (name, value) in [
        ("architecture", json!("XLMRobertaForSequenceClassification")),
        ("family", json!("xlm-roberta")),
        ("task", json!("rerank")),
        ("num_hidden_layers", json!(3)),
        ("hidden_size", json!(128)),
        ("num_attention_heads", json!(2)),
        ("head_dim", json!(64)),
        ("intermediate_size", json!(256)),
        ("vocab_size", json!(492)),
        ("max_tokens", json!(512)),
        ("tokenizer", json!("Unigram")),
        ("tokenizer_vocab_size", json!(492)),
        ("files", json!(["model.safetensors"])),
    ] {
        assert_eq!(facts[name], value, "{name}");
    }
    // (492 + 514 + 1 + 2) * 128, three layers of 132480, and a head of 16641.
    let parameters = 1009 * 128 + 3 * 132_480 + 16_641;
    assert_eq!(facts["parameters"], parameters);
    assert_eq!(facts["weight_bytes"], 4 * parameters);
    assert_eq!(facts["stored_types"].as_object().unwrap().keys().collect::<Vec<_>>(), ["F32"]);

    let table = outcrop(["inspect", &model]).stdout;
    for line in [
        "hidden size             128\n",
        "tokenizer               Unigram\n",
        "max tokens              512\n",
    ] {
        assert!(table.contains(line), "{table}");
    }
}

#[test]
fn an_embedder_is_described() {
    let model = model("embed_minilm");
    let facts: Value = serde_json::from_str(&outcrop(["inspect", &model, "--json"]).stdout).unwrap();
    assert_eq!(facts["family"], "bert");
    assert_eq!(facts["task"], "embed");
    assert_eq!(facts["tokenizer"], "WordPiece");
    assert_eq!(facts["pooling"], "mean");
    assert_eq!(facts["normalize"], true);
    assert!(facts["max_seq_length"].is_u64());
    // A model without sentence-transformers files: what the runtime does then.
    let model = super::model("embed_bge_en");
    let facts: Value = serde_json::from_str(&outcrop(["inspect", &model, "--json"]).stdout).unwrap();
    assert_eq!((&facts["pooling"], &facts["normalize"]), (&json!("cls"), &json!(true)));
}

#[test]
fn decoders_are_described() {
    let facts = |family: &str, path: &str| -> Value {
        let ran = outcrop(["inspect", path, "--json"]);
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        let facts: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((&facts["task"], &facts["family"]), (&json!("rerank"), &json!(family)));
        facts
    };
    let all_have = [
        ("num_hidden_layers", json!(8)),
        ("hidden_size", json!(64)),
        ("num_attention_heads", json!(4)),
        ("head_dim", json!(16)),
        ("intermediate_size", json!(128)),
        ("vocab_size", json!(8192)),
        ("rope_theta", json!(10_000.0)),
        ("tokenizer", json!("BPE")),
    ];
    let gemma = [
        ("architecture", json!("GemmaForCausalLM")),
        ("num_key_value_heads", json!(1)),
        ("rms_norm_eps", json!(1e-6)),
        ("activation", json!("gelu tanh")),
        ("tie_word_embeddings", json!(true)),
        ("allowed_cutoffs", Value::Null),
        ("heads", json!(1)),
        ("compression", json!(false)),
    ];
    let minicpm = [
        ("architecture", json!("LayerWiseMiniCPMForCausalLM")),
        ("num_key_value_heads", json!(4)),
        ("rms_norm_eps", json!(1e-5)),
        ("activation", json!("silu")),
        ("scale_emb", json!(12.0)),
        ("scale_depth", json!(1.4)),
        ("allowed_cutoffs", json!("2 to 8")),
        ("heads", json!(7)),
        ("compression", json!(false)),
    ];
    let gemma2 = [
        ("architecture", json!("CostWiseGemmaForCausalLM")),
        ("num_key_value_heads", json!(2)),
        ("query_pre_attn_scalar", json!(16.0)),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("sliding_window", json!(4096)),
        ("allowed_cutoffs", json!("2 to 8")),
        ("heads", json!(7)),
        ("compression", json!(true)),
        ("compress_layers", json!([8])),
    ];
    for (family, its_own) in [("gemma", &gemma[..]), ("minicpm", &minicpm), ("gemma2", &gemma2)] {
        let made = made(family);
        let path = made.model.to_str().unwrap();
        let found = facts(family, path);
        for (name, value) in all_have.iter().chain(its_own) {
            assert_eq!(found[name], *value, "{family}: {name}");
        }
        assert_eq!(found["memory_per_cutoff"].is_null(), family == "gemma");
    }
}

/// The weights of a run to each cutoff: table, layers, norm, one head. Files that are missing count as if they were there.
#[test]
fn memory_grows_by_a_layer_with_every_cutoff() {
    let made = made("minicpm");
    let sharded = made.model.with_file_name("sharded");
    let (path, sharded_path) = (made.model.to_str().unwrap(), sharded.to_str().unwrap());
    let ran = outcrop(["convert", path, sharded_path, "--dtype", "bf16", "--max-shard-bytes", "100000"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let last = std::fs::read_dir(&sharded).unwrap().map(|entry| entry.unwrap().path());
    let last = last.filter(|path| path.extension().is_some_and(|x| x == "safetensors")).max().unwrap();
    std::fs::remove_file(last).unwrap();
    for (path, bytes) in [(path, 4), (sharded_path, 2)] {
        let facts: Value = serde_json::from_str(&outcrop(["inspect", path, "--json"]).stdout).unwrap();
        let memory = facts["memory_per_cutoff"].as_object().unwrap();
        assert_eq!(memory.keys().collect::<Vec<_>>(), ["2", "3", "4", "5", "6", "7", "8"]);
        let layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64;
        for (cutoff, found) in memory {
            let expected = 8192 * 64 + cutoff.parse::<usize>().unwrap() * layer + 2 * 64;
            assert_eq!(*found, json!(bytes * expected), "{path} at {cutoff}");
        }
    }
    assert!(outcrop(["inspect", sharded_path]).stdout.contains("missing files "));
    let table = outcrop(["inspect", path]).stdout;
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("memory at cutoff")).collect();
    assert_eq!(rows.len(), 5, "{table}");
    assert!(rows[0].starts_with("memory at cutoff 2      2"), "{table}");
    assert!(rows[4].starts_with("memory at cutoff 8      3"), "{table}");
}
