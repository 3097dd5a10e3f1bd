//! Lists that a batch brings: token ids, positions, rows, spans.

use std::sync::Arc;

use crate::attention::Span;
use crate::device::Allocation;
use crate::error::check_length;
use crate::params::Size;
use crate::{Error, Stream};

/// A list of 32-bit indices: on the host, and on CUDA in device memory as well.
#[derive(Clone, Copy)]
pub struct Indices<'a> {
    host: &'a [u32],
    address: u64,
    len: Size,
}

/// Some queries and all keys they may see, span by span: on the host, and on CUDA in device memory as well.
#[derive(Clone, Copy)]
pub struct Spans<'a> {
    host: &'a [Span],
    address: u64,
    num_spans: Size,
    /// The pieces of 64 queries that attention works through; where every span has one query, the spans themselves.
    tiles: Option<Tiles>,
}

#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) address: u64,
    pub(crate) num_tiles: Size,
}

impl<'a> Indices<'a> {
    pub(crate) fn new(host: &'a [u32], address: u64, len: Size) -> Self {
        Self { host, address, len }
    }

    /// On the host.
    pub fn host(&self) -> &'a [u32] {
        self.host
    }

    /// How many.
    pub fn len(&self) -> Size {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// Where they are in device memory.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

/// A list for a CPU stream.
impl<'a> From<&'a [u32]> for Indices<'a> {
    fn from(host: &'a [u32]) -> Self {
        Self { host, address: 0, len: host.len().into() }
    }
}

impl<'a> Spans<'a> {
    /// Spans of any number of queries, cut into tiles.
    pub(crate) fn tiled(
        host: &'a [Span],
        address: u64,
        num_spans: Size,
        tiles: u64,
        num_tiles: Size,
    ) -> Self {
        Self { host, address, num_spans, tiles: Some(Tiles { address: tiles, num_tiles }) }
    }

    /// Spans of one query each.
    pub(crate) fn single(host: &'a [Span], address: u64, num_spans: Size) -> Self {
        Self { host, address, num_spans, tiles: None }
    }

    /// On the host.
    pub fn host(&self) -> &'a [Span] {
        self.host
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn num_spans(&self) -> Size {
        self.num_spans
    }

    pub(crate) fn tiles(&self) -> Option<Tiles> {
        self.tiles
    }
}

/// A list for a CPU stream.
impl<'a> From<&'a [Span]> for Spans<'a> {
    fn from(host: &'a [Span]) -> Self {
        Self { host, address: 0, num_spans: host.len().into(), tiles: None }
    }
}

/// Indices that the host writes for every batch.
pub struct IndexBuffer {
    host: Vec<u32>,
    capacity: usize,
    device: Option<(Arc<Allocation>, u64)>,
}

impl IndexBuffer {
    /// Room for `capacity` indices.
    pub fn new(stream: &Stream, capacity: usize) -> Result<Self, Error> {
        let device = match stream {
            Stream::Cpu(_) => None,
            Stream::Cuda(cuda) => {
                let (allocation, addresses) = cuda.device().allocate(&[4 * capacity])?;
                Some((allocation, addresses[0]))
            }
        };
        Ok(Self { host: Vec::new(), capacity, device })
    }

    /// Replaces the list.
    pub fn write(&mut self, indices: &[u32]) -> Result<(), Error> {
        check_length("index buffer", "capacity", self.capacity, indices.len())?;
        self.host.clear();
        self.host.extend_from_slice(indices);
        match &self.device {
            None => Ok(()),
            Some((allocation, address)) => {
                allocation.device().upload(*address, bytemuck::cast_slice(indices))
            }
        }
    }

    /// The list, whose length kernels learn from `len`.
    pub fn view(&self, len: Size) -> Indices<'_> {
        Indices::new(&self.host, self.device.as_ref().map_or(0, |(_, address)| *address), len)
    }
}
