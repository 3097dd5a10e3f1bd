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
}
