//! The weight files of one directory: which file holds which tensor, and typed slices of the mapped files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::{bf16, f16};
pub use safetensors::Dtype;

use crate::Error;
use crate::json::{self, Fields};
use crate::mmap::MappedFile;

pub(crate) mod header;

// Weights are lent out as they are stored, and safetensors stores little-endian.
const _: () = assert!(cfg!(target_endian = "little"), "outcrop-loader needs a little-endian target");

/// Mapped safetensors files and the tensors in them.
#[derive(Debug)]
pub(crate) struct Weights {
    dir: PathBuf,
    pub(crate) files: Vec<MappedFile>,
    tensors: BTreeMap<String, Location>,
}

/// Where a tensor is.
#[derive(Debug)]
enum Location {
    Stored(Stored),
    /// In a shard that the index names and the directory does not have.
    MissingShard(PathBuf),
}

#[derive(Debug)]
struct Stored {
    /// Index into [`Weights::files`].
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
    /// The bytes at an aligned address, made at the first use of a tensor that is not aligned in the file.
    aligned: OnceLock<Box<[u64]>>,
}

/// One weight: its name, its shape, and its elements in row-major order, borrowed from the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The dimensions, slowest first.
    pub shape: &'a [usize],
    /// The elements.
    pub data: TensorData<'a>,
    file: &'a MappedFile,
    range: (usize, usize),
}

/// The elements of a tensor, as stored.
#[derive(Debug, Clone, Copy)]
pub enum TensorData<'a> {
    /// IEEE 754 binary32.
    F32(&'a [f32]),
    /// IEEE 754 binary16.
    F16(&'a [f16]),
    /// The upper half of a binary32.
    BF16(&'a [bf16]),
}

/// What the header of a weight file says about one tensor, of any type.
#[derive(Debug, Clone, Copy)]
pub struct TensorInfo<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The stored type.
    pub dtype: Dtype,
    /// The dimensions, slowest first.
    pub shape: &'a [usize],
    /// The length in the file.
    pub bytes: usize,
    /// The file.
    pub file: &'a Path,
}

impl Weights {
    /// Maps the one file `name` in `dir`; `None` if it does not exist.
    pub(crate) fn open_single(dir: &Path, name: &str) -> Result<Option<Weights>, Error> {
        let path = dir.join(name);
        let mut weights = Weights { dir: dir.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        let Some(stored) = weights.map(&path)? else { return Ok(None) };
        let located = stored.into_iter().map(|(name, stored)| (name, Location::Stored(stored)));
        weights.tensors = located.collect();
        Ok(Some(weights))
    }

    /// Maps the shards that the index `name` in `dir` lists, as far as they exist; `None` if there is no index.
    pub(crate) fn open_sharded(dir: &Path, name: &str) -> Result<Option<Weights>, Error> {
        let path = dir.join(name);
        let Some(index) = json::read_value_if_present(&path)? else { return Ok(None) };
        let weight_map = Fields::new(&path, &index)?.object("weight_map")?;
        let mut weights = Weights { dir: dir.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        weights.map_shards(weight_map)?;
        Ok(Some(weights))
    }

    /// Whether there is a tensor of this name, whatever its type and whether or not its shard is there.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, borrowed from the mapped file.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let (name, stored) = match self.tensors.get_key_value(name) {
            Some((name, Location::Stored(stored))) => (name, stored),
            Some((name, Location::MissingShard(shard))) => {
                return Err(Error::MissingShard { tensor: name.clone(), shard: shard.clone() });
            }
            None => {
                let (tensor, dir) = (name.to_owned(), self.dir.clone());
                return Err(Error::MissingTensor { tensor, dir, nearest: self.nearest(name) });
            }
        };
        let file = &self.files[stored.file];
        let bytes = &file.bytes()[stored.range.clone()];
        let data = match stored.dtype {
            Dtype::F32 => TensorData::F32(stored.elements(bytes)),
            Dtype::F16 => TensorData::F16(stored.elements(bytes)),
            Dtype::BF16 => TensorData::BF16(stored.elements(bytes)),
            found => {
                let (path, tensor) = (file.path().to_owned(), name.clone());
                return Err(Error::UnsupportedDtype { path, tensor, found });
            }
        };
        Ok(Tensor { name, shape: &stored.shape, data, file, range: (stored.range.start, stored.range.end) })
    }

    /// What the header says about the tensor `name`; `None` if there is none or its shard is not there.
    pub(crate) fn info(&self, name: &str) -> Option<TensorInfo<'_>> {
        let (name, location) = self.tensors.get_key_value(name)?;
        self.located(name, location)
    }

    /// All tensors whose file is there, of any type, sorted by name.
    pub(crate) fn infos(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().filter_map(|(name, location)| self.located(name, location))
    }

    /// The shards that the index names and the directory does not have, sorted by path.
    pub(crate) fn missing_shards(&self) -> Vec<&Path> {
        let mut missing: Vec<&Path> = self
            .tensors
            .values()
            .filter_map(|location| match location {
                Location::Stored(_) => None,
                Location::MissingShard(shard) => Some(shard.as_path()),
            })
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }

    /// The name most like `name`, if any is.
    pub(crate) fn nearest(&self, name: &str) -> Option<String> {
        nearest_name(name, self.tensors.keys().map(String::as_str)).map(str::to_owned)
    }

    fn located<'a>(&'a self, name: &'a str, location: &'a Location) -> Option<TensorInfo<'a>> {
        match location {
            Location::Stored(stored) => Some(TensorInfo {
                name,
                dtype: stored.dtype,
                shape: &stored.shape,
                bytes: stored.range.len(),
                file: self.files[stored.file].path(),
            }),
            Location::MissingShard(_) => None,
        }
    }

    fn map_shards(&mut self, weight_map: Fields<'_>) -> Result<(), Error> {
        // The tensors that each shard has by its own header; `None` for a shard that is not there.
        let mut shards: BTreeMap<&str, Option<BTreeMap<String, Stored>>> = BTreeMap::new();
        for (tensor, _) in weight_map.iter() {
            let shard = weight_map.required_str(tensor)?;
            let path = json::join_inside(&self.dir, shard, weight_map.path())?;
            if !shards.contains_key(shard) {
                shards.insert(shard, self.map(&path)?);
            }
            let location = match shards.get_mut(shard) {
                Some(Some(stored)) => match stored.remove(tensor) {
                    Some(stored) => Location::Stored(stored),
                    // Left out, so that asking for it gives the same error as any other missing tensor.
                    None => continue,
                },
                _ => Location::MissingShard(path),
            };
            self.tensors.insert(tensor.clone(), location);
        }
        Ok(())
    }

    /// Maps one file and returns its tensors by name; `None` if it does not exist.
    fn map(&mut self, path: &Path) -> Result<Option<BTreeMap<String, Stored>>, Error> {
        if !path.exists() {
            return Ok(None);
        }
        let file = MappedFile::open(path)?;
        let entries = header::parse(path, file.bytes())?;
        let file_idx = self.files.len();
        self.files.push(file);
        Ok(Some(entries.into_iter().map(|entry| Stored::new(file_idx, entry)).collect()))
    }
}

impl Stored {
    fn new(file: usize, entry: header::Entry) -> (String, Stored) {
        let header::Entry { name, dtype, shape, range } = entry;
        (name, Stored { file, dtype, shape, range, aligned: OnceLock::new() })
    }

    /// `bytes` as elements of type `T`, in place if they are aligned.
    fn elements<'a, T: bytemuck::AnyBitPattern>(&'a self, bytes: &'a [u8]) -> &'a [T] {
        if let Ok(elements) = bytemuck::try_cast_slice(bytes) {
            return elements;
        }
        let words = self.aligned.get_or_init(|| {
            let mut words = vec![0_u64; bytes.len().div_ceil(8)].into_boxed_slice();
            bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
            words
        });
        // Cannot fail: eight bytes align every supported type, and the header was checked to hold whole elements.
        bytemuck::cast_slice(&bytemuck::cast_slice::<u64, u8>(words)[..bytes.len()])
    }
}

impl Tensor<'_> {
    /// The tensor itself, if it has the shape `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`].
    pub fn expect_shape(self, expected: &[usize]) -> Result<Self, Error> {
        if self.shape == expected {
            return Ok(self);
        }
        Err(Error::Shape {
            path: self.file.path().to_owned(),
            tensor: self.name.to_owned(),
            expected: expected.to_owned(),
            found: self.shape.to_owned(),
        })
    }

    /// The file that holds the tensor.
    pub fn file(&self) -> &Path {
        self.file.path()
    }

    /// Takes the tensor's pages out of the resident set, after its elements have been copied or packed elsewhere.
    ///
    /// The tensor stays usable: a later read brings the pages back from the file.
    pub fn release(&self) {
        self.file.release(self.range.0..self.range.1);
    }
}

impl TensorData<'_> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(data) => data.len(),
            TensorData::F16(data) => data.len(),
            TensorData::BF16(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stored type.
    pub fn dtype(&self) -> Dtype {
        match self {
            TensorData::F32(_) => Dtype::F32,
            TensorData::F16(_) => Dtype::F16,
            TensorData::BF16(_) => Dtype::BF16,
        }
    }
}

/// The name that shares the most leading and trailing bytes with `wanted`, if these are at least half of it.
///
/// Catches the usual cases: a prefix such as `roberta.` too much or too little, and a misspelt component.
fn nearest_name<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let common = |name: &&str| {
        let equal = |(a, b): &(u8, u8)| a == b;
        let prefix = wanted.bytes().zip(name.bytes()).take_while(equal).count();
        let suffix = wanted.bytes().rev().zip(name.bytes().rev()).take_while(equal).count();
        (prefix + suffix).min(wanted.len())
    };
    let nearest = names.max_by_key(common)?;
    (2 * common(&nearest) >= wanted.len()).then_some(nearest)
}

/// Fails if `dir` has the pickle of that name, with the command that makes the file `wanted` of it.
pub(crate) fn refuse_pickle(dir: &Path, pickle: &str, wanted: &'static str) -> Result<(), Error> {
    if !dir.join(pickle).exists() {
        return Ok(());
    }
    // Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    let command = format!(
        "python3 -c \"import sys, torch, safetensors.torch as s; d = sys.argv[1]; \
         w = torch.load(d + '/{pickle}', map_location='cpu', weights_only=True); \
         s.save_file({{k: v.contiguous().clone() for k, v in w.items()}}, d + '/{wanted}', {{'format': 'pt'}})\" {}",
        json::shell_quoted(dir)
    );
    Err(Error::PickledWeights { path: dir.join(pickle), wanted, command })
}
