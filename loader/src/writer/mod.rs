//! Writing weights: safetensors files, sharded where they grow large, complete or not there at all.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::checkpoint::{INDEX, WEIGHTS};
use crate::{Dtype, Error};

#[cfg(test)]
mod tests;

/// What is held in memory of a tensor at a time.
const BUFFER_BYTES: usize = 16 << 20;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name in the file.
    pub name: String,
    /// The type in which it is stored.
    pub dtype: Dtype,
    /// The dimensions, slowest first.
    pub shape: Vec<usize>,
}

/// What [`write()`] has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The weight files in the order of their tensors, and after them the index if there are several.
    pub files: Vec<PathBuf>,
    /// The length of all files together.
    pub bytes: u64,
}

impl TensorSpec {
    /// The number of elements, saturated if it has no `usize`.
    pub fn elems(&self) -> usize {
        self.shape.iter().fold(1, |elems: usize, &dim| elems.saturating_mul(dim))
    }

    /// The length in the file, saturated if it has no `usize`.
    pub fn bytes(&self) -> usize {
        self.checked_bytes().unwrap_or(usize::MAX)
    }

    /// The length in the file; `None` if it is no number of whole bytes, or none that can be counted.
    fn checked_bytes(&self) -> Option<usize> {
        let bits = self.shape.iter().try_fold(self.dtype.bitsize(), |bits, &dim| bits.checked_mul(dim))?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

/// Writes `tensors` into the directory `dir`, in this order: as `model.safetensors` if together they have at most
/// `max_shard_bytes`, else as shards of at most that and an index. A larger tensor has a shard of its own.
///
/// `fill` gives the elements: it gets a tensor's index in `tensors`, the position of the first byte within the
/// tensor, and the bytes to fill from there on, little-endian. It is called in order and never for no bytes at all. A
/// piece begins at a multiple of 8 bytes, in memory as well as in the tensor, and holds nothing of meaning before.
///
/// The files get their names when all of them are complete: until then each is called `<name>.part`, and none is left
/// behind on an error.
///
/// # Errors
///
/// [`Error::TensorName`], [`Error::TensorSize`], [`Error::StaleWeights`], [`Error::Write`]; and the error of `fill`.
pub fn write<E: From<Error>>(
    dir: &Path,
    tensors: &[TensorSpec],
    max_shard_bytes: u64,
    mut fill: impl FnMut(usize, usize, &mut [u8]) -> Result<(), E>,
) -> Result<Written, E> {
    check_names(dir, tensors)?;
    let shards = shards(dir, tensors, max_shard_bytes)?;
    let names = shard_names(shards.len());
    if shards.len() > 1 && dir.join(WEIGHTS).exists() {
        return Err(Error::StaleWeights { path: dir.join(WEIGHTS) }.into());
    }

    let largest = tensors.iter().map(TensorSpec::bytes).max().unwrap_or(0);
    let mut words = vec![0_u64; largest.min(BUFFER_BYTES).div_ceil(8)];
    let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut words);

    let mut parts = Vec::new();
    let mut bytes = 0;
    for (name, shard) in names.iter().zip(&shards) {
        let part = Part::new(dir.join(name));
        bytes += write_shard(&part, tensors, shard.clone(), buffer, &mut fill)?;
        parts.push(part);
    }
    if shards.len() > 1 {
        let part = Part::new(dir.join(INDEX));
        let index = index(tensors, &shards, &names);
        fs::write(&part.temporary, &index).map_err(|source| part.error(source))?;
        bytes += index.len() as u64;
        parts.push(part);
    }
    for part in &parts {
        fs::rename(&part.temporary, &part.path).map_err(|source| part.error(source))?;
    }
    Ok(Written { files: parts.iter().map(|part| part.path.clone()).collect(), bytes })
}

/// A file on its way to its name. Dropped before it is renamed, it is removed.
struct Part {
    path: PathBuf,
    temporary: PathBuf,
}

impl Part {
    fn new(path: PathBuf) -> Part {
        let mut temporary = path.clone().into_os_string();
        temporary.push(".part");
        Part { path, temporary: PathBuf::from(temporary) }
    }

    fn error(&self, source: std::io::Error) -> Error {
        Error::Write { path: self.temporary.clone(), source }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After the renaming there is none, and if it cannot be removed there is an error already.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes the tensors of one shard, and returns the length of the file.
fn write_shard<E: From<Error>>(
    part: &Part,
    tensors: &[TensorSpec],
    shard: Range<usize>,
    buffer: &mut [u8],
    fill: &mut impl FnMut(usize, usize, &mut [u8]) -> Result<(), E>,
) -> Result<u64, E> {
    let failed = |source| part.error(source);
    let file = File::create(&part.temporary).map_err(failed)?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let header = header(&tensors[shard.clone()]);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    let mut file_bytes = 8 + header.len() as u64;
    for tensor_idx in shard {
        let tensor_bytes = tensors[tensor_idx].bytes();
        for start in (0..tensor_bytes).step_by(BUFFER_BYTES) {
            let piece = &mut buffer[..BUFFER_BYTES.min(tensor_bytes - start)];
            fill(tensor_idx, start, piece)?;
            file.write_all(piece).map_err(failed)?;
        }
        file_bytes += tensor_bytes as u64;
    }
    file.flush().map_err(failed)?;
    Ok(file_bytes)
}

/// Refuses names that a reader could not tell apart.
fn check_names(dir: &Path, tensors: &[TensorSpec]) -> Result<(), Error> {
    let mut seen = HashSet::from(["__metadata__"]);
    for tensor in tensors {
        if !seen.insert(&tensor.name) {
            return Err(Error::TensorName { dir: dir.to_owned(), tensor: tensor.name.clone() });
        }
    }
    Ok(())
}

/// The tensors of each shard. No tensors make one shard.
fn shards(dir: &Path, tensors: &[TensorSpec], max_shard_bytes: u64) -> Result<Vec<Range<usize>>, Error> {
    let mut shards = Vec::new();
    let mut first = 0;
    // Of the shard so far, which is a part of all and so cannot overflow either.
    let mut shard_bytes = 0;
    let mut total_bytes: usize = 0;
    for (tensor_idx, tensor) in tensors.iter().enumerate() {
        let size = || Error::TensorSize {
            dir: dir.to_owned(),
            tensor: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
        };
        let bytes = tensor.checked_bytes().ok_or_else(size)?;
        total_bytes = total_bytes.checked_add(bytes).ok_or_else(size)?;
        if (shard_bytes + bytes) as u64 > max_shard_bytes && first < tensor_idx {
            shards.push(first..tensor_idx);
            (first, shard_bytes) = (tensor_idx, 0);
        }
        shard_bytes += bytes;
    }
    shards.push(first..tensors.len());
    Ok(shards)
}

fn shard_names(num_shards: usize) -> Vec<String> {
    match num_shards {
        1 => vec![WEIGHTS.to_owned()],
        n => (1..=n).map(|shard| format!("model-{shard:05}-of-{n:05}.safetensors")).collect(),
    }
}

/// The JSON header, padded with spaces so that the first tensor starts at a multiple of 8 bytes.
fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end] });
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// The JSON index of a sharded model: the file of every tensor.
fn index(tensors: &[TensorSpec], shards: &[Range<usize>], names: &[String]) -> Vec<u8> {
    let total_size: u64 = tensors.iter().map(|tensor| tensor.bytes() as u64).sum();
    let mut weight_map = Map::new();
    for (name, shard) in names.iter().zip(shards) {
        for tensor in &tensors[shard.clone()] {
            weight_map.insert(tensor.name.clone(), Value::from(name.as_str()));
        }
    }
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    format!("{index:#}\n").into_bytes()
}
