//! A request's JSON object, taken apart field by field: each error names its field, and what nobody has asked for is left over.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::problem::{Kind, Problem};

/// The fields of a request that have not been taken yet.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Fields {
    /// # Errors
    ///
    /// The body is no JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Problem> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(Problem::new(Kind::Malformed, "the body is JSON, but no object")),
            Err(error) => Err(Problem::new(Kind::Malformed, format!("the body is no JSON: {error}"))),
        }
    }

    /// A field that need not be there; `null` is as good as absent.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        match self.0.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|error| Problem::field(name, error))
            }
        }
    }

    /// Whether there is such a field.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A field that must be there.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Problem> {
        self.optional(name)?.ok_or_else(|| Problem::field(name, "missing; this field is required"))
    }

    /// The one of several names that is there.
    pub(crate) fn one_of<T: DeserializeOwned>(&mut self, names: &[&str]) -> Result<T, Problem> {
        for name in names {
            if let Some(value) = self.optional(name)? {
                return Ok(value);
            }
        }
        Err(Problem::field(names[0], "missing; this field is required"))
    }

    /// Takes fields that other servers know and that have no meaning here.
    pub(crate) fn accept(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.0.shift_remove(*name)));
    }

    /// The names of the fields that nobody has taken.
    pub(crate) fn left(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

/// A value, or a list of them.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::call::Extras;
    use super::*;

    #[test]
    fn errors_name_their_field() {
        let mut fields = Fields::parse(br#"{"a": 1, "b": "x", "c": null, "d": [1, "2"], "e": 0}"#).unwrap();
        assert_eq!(fields.required::<u32>("a").unwrap(), 1);
        assert_eq!(fields.optional::<u32>("c").unwrap(), None);
        assert_eq!(fields.one_of::<u32>(&["z", "e"]).unwrap(), 0);
        for (name, told) in [("b", "invalid type: string \"x\""), ("c", "missing"), ("d", "string \"2\"")] {
            let problem = match name {
                "d" => fields.required::<Vec<u32>>(name).unwrap_err(),
                _ => fields.required::<u32>(name).unwrap_err(),
            };
            assert!(problem.message.starts_with(&format!("{name}: ")), "{problem:?}");
            assert!(problem.message.contains(told), "{problem:?}");
            assert_eq!(problem.field.as_deref(), Some(name));
        }
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        for body in ["", "[]", "{", "{\"a\": NaN}", "{\"a\": \"\\ud800\"}", "\u{0}"] {
            assert_eq!(Fields::parse(body.as_bytes()).unwrap_err().kind, Kind::Malformed, "{body}");
        }
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(Fields::parse(format!("{{\"a\": {deep}}}").as_bytes()).unwrap_err().kind, Kind::Malformed);
        assert_eq!(Fields::parse(b"{\"a\": \"\xff\"}").unwrap_err().kind, Kind::Malformed);
    }

    #[test]
    fn what_nobody_takes_is_left() {
        let mut fields = Fields::parse(br#"{"user": "u", "cutof_layers": [8], "query": "q"}"#).unwrap();
        fields.accept(&["user", "priority"]);
        fields.required::<String>("query").unwrap();
        assert_eq!(fields.left(), ["cutof_layers"]);
    }

    /// The fields of `Extras`.
    const EXTRAS: [&str; 12] = [
        "cutoff_layers",
        "compress_layers",
        "compress_ratio",
        "prompt",
        "query_instruction",
        "passage_instruction",
        "max_length",
        "query_max_length",
        "normalize",
        "raw_scores",
        "truncate",
        "deadline_ms",
    ];

    const REQUEST: &[u8] = br#"{"query": "q\u00e9", "cutoff_layers": [8, 16], "compress_ratio": 2, "max_length": 512, "texts": ["a", "b"],
        "normalize": true, "deadline_ms": 1000, "prompt": "p", "compress_layers": 4}"#;

    /// A request with some of its bytes changed, added or lost.
    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:0-.eE\\ntf".to_vec())];
        let edit = (any::<prop::sample::Index>(), 0..2_usize, prop::option::of(byte));
        prop::collection::vec(edit, 0..5).prop_map(|edits| {
            let mut body = REQUEST.to_vec();
            for (place, removed, byte) in edits {
                let at = place.index(body.len() - 1);
                body.splice(at..at + removed, byte);
            }
            body
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        /// A body is refused, for a field that it has, or taken apart, and nothing else of it is touched.
        #[test]
        fn any_body_is_refused_or_taken_apart(body in bodies()) {
            let mut fields = match Fields::parse(&body) {
                Ok(fields) => fields,
                Err(problem) => {
                    prop_assert_eq!(problem.kind, Kind::Malformed);
                    return Ok(());
                }
            };
            let before = fields.left();
            match Extras::take(&mut fields) {
                Ok(_) => {
                    let is_ours = |name: &String| EXTRAS.contains(&name.as_str());
                    let others: Vec<_> = before.into_iter().filter(|name| !is_ours(name)).collect();
                    prop_assert_eq!(fields.left(), others);
                }
                Err(problem) => {
                    let field = problem.field.unwrap();
                    prop_assert!(EXTRAS.contains(&field.as_str()) && before.contains(&field), "{}", field);
                    prop_assert!(problem.message.starts_with(&field), "{}", problem.message);
                }
            }
        }
    }

    #[test]
    fn messages_do_not_repeat_what_is_long() {
        let body = format!("{{\"a\": \"{}\"}}", "é".repeat(1 << 20));
        let problem = Fields::parse(body.as_bytes()).unwrap().required::<u32>("a").unwrap_err();
        let len = problem.message.len();
        assert!((Problem::MAX_MESSAGE_BYTES - 4..=Problem::MAX_MESSAGE_BYTES).contains(&len), "{len}");
        assert!(
            problem.message.starts_with("a: invalid type: string \"éé") && problem.message.ends_with('…')
        );
    }
}
