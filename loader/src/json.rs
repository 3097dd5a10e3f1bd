//! Reading the JSON files of a model directory, and checking their fields with messages that name file and field.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;

/// The longest configuration or index file that is read. The index of a 500-billion-parameter model has 10 MB.
pub(crate) const MAX_JSON_BYTES: u64 = 64 << 20;

/// The first bytes of the file that Git puts where a large file has not been fetched.
const GIT_LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Reads a file of at most `limit` bytes; `None` if there is none.
pub(crate) fn read_if_present(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(read(source)),
    };
    let found = file.metadata().map_err(read)?.len();
    if found > limit {
        return Err(Error::FileTooLarge { path: path.to_owned(), found, limit });
    }
    // The length may be wrong for a file that is no regular one, so the reader is bounded as well.
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(read)?;
    refuse_git_lfs_pointer(path, &bytes)?;
    Ok(Some(bytes))
}

/// Fails if `bytes`, the start of the file at `path`, belong to a Git LFS pointer.
pub(crate) fn refuse_git_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if bytes.starts_with(GIT_LFS_POINTER) {
        return Err(Error::GitLfsPointer { path: path.to_owned() });
    }
    Ok(())
}

/// Joins a path found in a file of the model to the model directory, if it stays inside.
///
/// `source` is the file that names the path, for the message.
pub(crate) fn join_inside(dir: &Path, name: &str, source: &Path) -> Result<PathBuf, Error> {
    let inside = Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !inside || name.contains('\0') {
        return Err(Error::UnsafePath { path: source.to_owned(), name: name.to_owned() });
    }
    Ok(dir.join(name))
}

/// A path as one word of a shell command.
pub(crate) fn shell_quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Parses the bytes of a JSON file.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Reads and parses a JSON file; `None` if there is none.
pub(crate) fn read_value_if_present(path: &Path) -> Result<Option<Value>, Error> {
    match read_if_present(path, MAX_JSON_BYTES)? {
        Some(bytes) => parse(path, &bytes).map(Some),
        None => Ok(None),
    }
}

/// A JSON object and the file that it is from. A field that is `null` counts as missing, as in transformers.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, value: &'a Value) -> Result<Fields<'a>, Error> {
        match value {
            Value::Object(map) => Ok(Fields { path, map }),
            other => Err(field_error(path, "the top level", "an object", Some(other))),
        }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The error that `field` is not what it must be.
    pub(crate) fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        field_error(self.path, field, expected, self.map.get(field))
    }

    /// A count within `range`; `None` if the field is missing.
    pub(crate) fn count(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        match count.filter(|count| range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(self.error(field, whole_number(&range))),
        }
    }

    /// A count within `range` that has no default.
    pub(crate) fn required_count(&self, field: &str, range: RangeInclusive<usize>) -> Result<usize, Error> {
        let expected = whole_number(&range);
        self.count(field, range)?.ok_or_else(|| self.error(field, expected))
    }

    /// A number greater than zero that also is one once rounded to 32 bits, the type that models compute in.
    pub(crate) fn positive(&self, field: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let range = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.error(field, "a positive number")),
        }
    }

    /// Whether `field` is there and `null`, for the few fields in which that does not mean the default.
    pub(crate) fn is_null(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(Value::is_null)
    }

    /// The nested object `field`. Its own errors name the field without the outer name.
    pub(crate) fn object(&self, field: &str) -> Result<Fields<'a>, Error> {
        match self.get(field) {
            Some(Value::Object(map)) => Ok(Fields { path: self.path, map }),
            _ => Err(self.error(field, "an object")),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    pub(crate) fn bool(&self, field: &str) -> Result<Option<bool>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(field, "true or false"))
    }

    pub(crate) fn str(&self, field: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(field, "a string"))
    }

    pub(crate) fn required_str(&self, field: &str) -> Result<&'a str, Error> {
        self.str(field)?.ok_or_else(|| self.error(field, "a string"))
    }
}

/// The error that `field` of the file at `path` is not what it must be.
pub(crate) fn field_error(
    path: &Path,
    field: &str,
    expected: impl Into<String>,
    found: Option<&Value>,
) -> Error {
    Error::Field {
        path: path.to_owned(),
        field: field.to_owned(),
        expected: expected.into(),
        found: found.map_or_else(|| "nothing".to_owned(), describe),
    }
}

fn whole_number(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// A value as an error message shows it: whole if short, else its kind and size.
fn describe(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        Value::Array(items) if items.len() > 4 => format!("a list of {}", items.len()),
        Value::Object(map) if map.len() > 4 => format!("an object of {} fields", map.len()),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(LONGEST) {
                Some((cut, _)) => format!("{}...", &text[..cut]),
                None => text,
            }
        }
    }
}
