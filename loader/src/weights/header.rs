//! The header of a safetensors file: eight bytes of length, then JSON that maps names to types, shapes and offsets.
//!
//! The entries are parsed by the safetensors crate; the rules between them are checked here, because its own check
//! overflows on hostile offsets, keeps the last of two tensors with one name, and does not name the tensor.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo as RawEntry;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::Error;

/// Bytes before the header: its length as a little-endian `u64`.
const LENGTH_BYTES: usize = 8;

/// The longest header that is read; also the limit of the safetensors crate.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// One tensor as the header describes it, checked: the range lies in the file and fits type and shape.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file, counted from its first one.
    pub(crate) range: Range<usize>,
}

/// Reads and checks the header of the safetensors file whose bytes are `file`. The entries come in file order.
///
/// Touches the header's pages only. `path` is for messages.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Vec<Entry>, Error> {
    crate::json::refuse_git_lfs_pointer(path, file)?;
    let file_bytes = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(Error::NoHeader { path: path.to_owned(), file_bytes });
    };
    let header_bytes = u64::from_le_bytes(*length);
    let header = usize::try_from(header_bytes)
        .ok()
        .filter(|n| *n <= MAX_HEADER_BYTES)
        .and_then(|n| rest.get(..n))
        .ok_or_else(|| Error::HeaderLength {
            path: path.to_owned(),
            header_bytes,
            file_bytes,
            limit: MAX_HEADER_BYTES as u64,
        })?;
    let header_json = |source| Error::HeaderJson { path: path.to_owned(), source };
    let RawHeader(mut raw) = serde_json::from_slice(header).map_err(header_json)?;
    raw.sort_by_key(|(_, entry)| entry.data_offsets);

    let data_start = LENGTH_BYTES + header.len();
    let mut data_end = 0;
    for (name, entry) in &raw {
        check_entry(path, name, entry, data_end)?;
        data_end = entry.data_offsets.1;
    }
    if data_start.checked_add(data_end) != Some(file.len()) {
        let expected = (data_start as u64).saturating_add(data_end as u64);
        return Err(Error::FileLength { path: path.to_owned(), expected, found: file_bytes });
    }
    let entry = |(name, RawEntry { dtype, shape, data_offsets: (start, end) })| {
        // Both ends are at most the file's length less `data_start`, checked above.
        Entry { name, dtype, shape, range: data_start + start..data_start + end }
    };
    Ok(raw.into_iter().map(entry).collect())
}

/// Checks that a tensor starts where its predecessor ended, and that its bytes fit its type and shape.
fn check_entry(path: &Path, tensor: &str, entry: &RawEntry, expected_start: usize) -> Result<(), Error> {
    let (start, end) = entry.data_offsets;
    if start != expected_start || end < start {
        let (path, tensor) = (path.to_owned(), tensor.to_owned());
        return Err(Error::TensorOffsets { path, tensor, start, end, expected_start });
    }
    let bits = entry.shape.iter().try_fold(entry.dtype.bitsize(), |bits, &dim| bits.checked_mul(dim));
    if bits != (end - start).checked_mul(8) || bits.is_none() {
        return Err(Error::TensorBytes {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            found: end - start,
        });
    }
    Ok(())
}

/// The header's JSON object, without the free-form `__metadata__`.
struct RawHeader(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut seen = HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format_args!("{name} occurs twice")));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(RawHeader(entries))
    }
}
