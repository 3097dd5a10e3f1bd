//! `outcrop inspect`.

use serde_json::{Value, json};

use super::{model, outcrop};

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
