//! What holds for every `config.json`; the families have files of their own.

use proptest::prelude::*;
use serde_json::json;

use super::*;

mod decoder;
mod encoder;

/// Any JSON value, for a field or a whole file.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,10}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("\\PC{0,5}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Config::parse(Path::new("config.json"), &bytes).is_err());
    }

    #[test]
    fn arbitrary_json_never_panics(value in any_json()) {
        prop_assert!(Config::parse(Path::new("config.json"), value.to_string().as_bytes()).is_err());
    }
}
