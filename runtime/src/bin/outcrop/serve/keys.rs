//! Who may ask.

use std::io;

use axum::http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq};

use super::args::ServeArgs;
use crate::error::Error;

/// The keys that requests may carry; with none, everybody may ask.
pub(crate) struct Keys(Vec<Vec<u8>>);

impl Keys {
    /// Those on the command line and those in the file.
    pub(crate) fn read(args: &ServeArgs) -> Result<Self, Error> {
        let mut keys: Vec<String> = args.api_key.clone();
        if let Some(path) = &args.api_key_file {
            let from = || path.display().to_string();
            let text =
                std::fs::read_to_string(path).map_err(|source| Error::Read { from: from(), source })?;
            let before = keys.len();
            keys.extend(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned));
            if keys.len() == before {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, "it holds no key; write one per line");
                return Err(Error::Read { from: from(), source });
            }
        }
        if keys.iter().any(String::is_empty) {
            let reason = "an empty key lets everybody in; leave the flag out for that".to_owned();
            return Err(Error::Flag { flag: "--api-key", value: String::new(), reason });
        }
        Ok(Self(keys.into_iter().map(String::into_bytes).collect()))
    }

    /// Whether a request with these headers may be answered. Takes equally long for every wrong key of a length.
    pub(crate) fn allow(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let value = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let given = match value.split_at_checked(7) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key,
            _ => return false,
        };
        // Every key is compared, so that the time does not tell which one came near.
        let found = self.0.iter().fold(Choice::from(0), |found, key| found | key.as_slice().ct_eq(given));
        found.into()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_whole_keys_open() {
        let keys = Keys(vec![b"secret".to_vec(), b"other".to_vec()]);
        let allow = |value: &'static str| {
            keys.allow(&HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]))
        };
        assert!(allow("Bearer secret") && allow("bearer other"));
        for wrong in [
            "",
            "secret",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secrets",
            "Basic secret",
            "Bearer  secret",
        ] {
            assert!(!allow(wrong), "{wrong:?}");
        }
        assert!(!keys.allow(&HeaderMap::new()));
        assert!(Keys(Vec::new()).allow(&HeaderMap::new()));
    }
}
