//! Where the rows of a packed batch are: from the lengths of its segments to everything that the other kernels go by.
//!
//! A batch is a list of [`Segment`]s, one after the other without padding: whole sequences, prefixes that several sequences share,
//! and the rests of those sequences. From it follow, all integers:
//!
//! | result                | length        | value                                                                               |
//! |-----------------------|---------------|-------------------------------------------------------------------------------------|
//! | `cu_seqlens`          | segments + 1  | first row of each segment, then the number of rows                                  |
//! | `position_ids`        | rows          | place in the sequence, rows of the prefix counted                                   |
//! | `spans`               | segments      | queries and keys of a segment: its own rows, behind those of its prefix             |
//! | `scored_rows`         | sequences     | the row of each sequence that is scored: its first or its last                      |
//! | `scored_position_ids` | sequences     | their positions                                                                     |
//! | `scored_spans`        | sequences     | the same rows alone, gathered, each with the keys of its sequence                   |
//! | `kept_rows`           | range         | rows of the segment whose keys and values the next batch wants                      |
//!
//! After a token compression all of it changes: [`LayoutBuffer::compress`] does it again with shorter passages. On CUDA both happen
//! on the device, from the segments alone, so that nothing waits for the host; there also a list of tiles is made, 64 queries of one
//! span each, which attention works through: each with the work of all before it, so that a block finds its share without counting.
//!
//! Exact. Cost: a few words per row. Errors: [`Error::Length`] for a batch beyond the buffer's capacity or its bounds,
//! [`Error::Parameter`] for a scored segment without a row.
//! Source: DESIGN 1 and 3, SPEC 7.3; `cu_seqlens` as in the variable-length attention kernels of the field.

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use self::cuda::{DeviceLayout, device_ratio, instances};

use self::cuda::Count;
use crate::attention::Span;
use crate::error::check_length;
use crate::indices::{Indices, Spans};
use crate::params::Size;
use crate::token_compress::Compress;
use crate::{Cost, Error, Stream};

/// Rows that stand together: a sequence, a prefix, or the rest of a sequence behind a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How many rows, and what a compression does to them.
    pub parts: Compress,
    /// What stands before it.
    pub before: Before,
    /// Whether it is, or ends, a sequence that is scored; then it has a row.
    pub is_scored: bool,
}

/// What stands before a segment: its queries see those rows too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// An earlier segment, by its index.
    Segment(usize),
    /// The prefix that the batch before has kept; its rows are put behind the batch's own.
    Carried,
}

/// Which row of a sequence is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoredRow {
    /// The first: `<s>` of an encoder.
    First,
    /// The last: of a decoder, which has seen everything.
    Last,
}

/// A batch's segments and what links it to its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// In the order of their rows.
    pub segments: Vec<Segment>,
    /// Rows of the prefix that the batch before has kept.
    pub carried_rows: usize,
    /// The segment to keep for the next batch.
    pub kept_segment: Option<usize>,
    /// Which row of each scored segment counts.
    pub scored_row: ScoredRow,
}

/// Everything that follows from [`Segments`], on the host. See the module for each field.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Layout {
    pub segments: Segments,
    pub cu_seqlens: Vec<usize>,
    pub position_ids: Vec<u32>,
    pub spans: Vec<Span>,
    pub scored_rows: Vec<u32>,
    pub scored_position_ids: Vec<u32>,
    pub scored_spans: Vec<Span>,
    pub kept_rows: Range<usize>,
}

impl Segments {
    /// Whole sequences of these lengths, all scored.
    pub fn of_sequences(lengths: impl IntoIterator<Item = usize>, scored_row: ScoredRow) -> Self {
        let segment = |len| Segment {
            parts: Compress { query: 0, passage: len, prompt: 0 },
            before: Before::Nothing,
            is_scored: true,
        };
        let segments = lengths.into_iter().map(segment).collect();
        Self { segments, carried_rows: 0, kept_segment: None, scored_row }
    }

    /// The segments once every `ratio` passage rows have become one.
    pub fn compressed(&self, ratio: usize) -> Self {
        let segments = self.segments.iter();
        let segments = segments.map(|s| Segment { parts: s.parts.compressed(ratio), ..*s }).collect();
        Self { segments, ..*self }
    }

    /// Rows of the batch.
    pub fn num_tokens(&self) -> usize {
        self.segments.iter().map(|segment| segment.parts.len()).sum()
    }

    /// Sequences that are scored.
    pub fn num_seqs(&self) -> usize {
        self.segments.iter().filter(|segment| segment.is_scored).count()
    }

    /// The length of each scored sequence, prefix included.
    pub fn seqlens(&self) -> impl Iterator<Item = usize> + '_ {
        let before = |segment: &Segment| match segment.before {
            Before::Nothing => 0,
            Before::Segment(i) => self.segments[i].parts.len(),
            Before::Carried => self.carried_rows,
        };
        self.segments.iter().filter(|s| s.is_scored).map(move |s| before(s) + s.parts.len())
    }
}

impl Layout {
    /// What follows from `segments`.
    pub fn new(segments: Segments) -> Self {
        cpu::layout(segments)
    }

    /// Rows of the batch.
    pub fn num_tokens(&self) -> usize {
        self.position_ids.len()
    }

    /// Sequences that are scored.
    pub fn num_seqs(&self) -> usize {
        self.scored_rows.len()
    }
}

/// The largest batch that launches are laid out for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Rows.
    pub tokens: usize,
    /// Scored sequences.
    pub seqs: usize,
}

impl Bounds {
    /// Of the class that `layout` falls in, where batches have up to `capacity` rows.
    ///
    /// Few classes, so that few recordings serve all batches; the first are small enough for kernels that are made for few rows: a pair
    /// alone is in one of them (KERNELS 2.6).
    pub fn of(layout: &Layout, capacity: usize) -> Self {
        let class = |n: usize, classes: &[usize], largest: usize| {
            classes.iter().copied().find(|class| n <= *class && *class <= largest).unwrap_or(largest)
        };
        let tokens = class(layout.num_tokens(), &[256, 512, 1024, 4096], capacity);
        Self { tokens, seqs: class(layout.num_seqs(), &[64, 512], tokens) }
    }
}

/// A layout where kernels find it: on CUDA in device memory, made once for the largest batch.
pub struct LayoutBuffer {
    layout: Layout,
    bounds: Bounds,
    capacity: usize,
    device: Option<DeviceLayout>,
}

impl LayoutBuffer {
    /// Room for batches of up to `capacity` rows.
    pub fn new(stream: &Stream, capacity: usize) -> Result<Self, Error> {
        let empty = Layout::new(Segments::of_sequences([], ScoredRow::First));
        let device = match stream {
            Stream::Cpu(_) => None,
            Stream::Cuda(cuda) => Some(DeviceLayout::new(cuda, capacity)?),
        };
        Ok(Self { layout: empty, bounds: Bounds { tokens: capacity, seqs: capacity }, capacity, device })
    }

    /// Takes in a batch of at most `bounds`. On CUDA only its segments are sent; what follows from them is for
    /// [`LayoutBuffer::lay_out`] to work out, once they are there.
    pub fn load(&mut self, layout: Layout, bounds: Bounds) -> Result<(), Error> {
        check_length("layout", "capacity", self.capacity, layout.num_tokens().max(bounds.tokens))?;
        check_length("layout", "capacity", self.capacity, layout.segments.segments.len())?;
        check_length("layout", "bounds.tokens", bounds.tokens, layout.num_tokens())?;
        check_length("layout", "bounds.seqs", bounds.seqs, layout.num_seqs())?;
        let is_empty = |segment: &Segment| segment.is_scored && segment.parts.is_empty();
        if let Some(found) = layout.segments.segments.iter().position(is_empty) {
            let expected = "a row in every scored segment; none in this one";
            return Err(Error::Parameter { kernel: "layout", parameter: "segments", expected, found });
        }
        if let Some(device) = &self.device {
            device.send(&layout.segments)?;
        }
        self.layout = layout;
        self.bounds = bounds;
        Ok(())
    }

    /// On CUDA, works out the layout from the segments in device memory. On the CPU it has been done.
    pub fn lay_out(&mut self, stream: &Stream) -> Result<(), Error> {
        match (stream, &self.device) {
            (Stream::Cuda(cuda), Some(device)) => {
                let _timed = stream.timed("layout", || (String::new(), self.cost()));
                device.derive(cuda, device, 1, self.layout.segments.scored_row)
            }
            _ => Ok(()),
        }
    }

    /// Makes this the layout of `from` once every `ratio` passage rows have become one. It has room for whatever `from` has room
    /// for: a recorded compression serves other batches, of any number of segments.
    pub fn compress(&mut self, stream: &Stream, from: &Self, ratio: usize) -> Result<(), Error> {
        check_length("layout", "capacity", self.capacity, from.capacity)?;
        self.layout = Layout::new(from.layout.segments.compressed(ratio));
        self.bounds = from.bounds;
        match (stream, &self.device, &from.device) {
            (Stream::Cuda(cuda), Some(device), Some(from)) => {
                let _timed = stream.timed("layout", || (String::new(), self.cost()));
                device.derive(cuda, from, ratio, self.layout.segments.scored_row)
            }
            _ => Ok(()),
        }
    }

    /// The layout on the host. After a replay of recorded launches it is that of the batch as it was loaded.
    pub fn host(&self) -> &Layout {
        &self.layout
    }

    /// What launches are laid out for.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Rows of the batch.
    pub fn tokens(&self) -> Size {
        self.size(Count::Tokens, self.layout.num_tokens(), self.bounds.tokens)
    }

    /// Segments of the batch.
    pub(crate) fn num_segments(&self) -> Size {
        let value = self.layout.spans.len();
        match &self.device {
            None => Size::from(value),
            Some(device) => Size::in_device_memory(value, self.bounds.tokens, device.header),
        }
    }

    /// Scored sequences.
    pub fn seqs(&self) -> Size {
        self.size(Count::Seqs, self.layout.num_seqs(), self.bounds.seqs)
    }

    /// First row that the next batch wants.
    pub fn kept_start(&self) -> Size {
        self.size(Count::KeptStart, self.layout.kept_rows.start, self.bounds.tokens)
    }

    /// Rows that the next batch wants.
    pub fn kept_rows(&self) -> Size {
        self.size(Count::KeptRows, self.layout.kept_rows.len(), self.bounds.tokens)
    }

    /// Rows that the batch before has kept.
    pub fn carried_rows(&self) -> Size {
        self.size(Count::CarriedRows, self.layout.segments.carried_rows, self.bounds.tokens)
    }

    /// Positions of all rows.
    pub fn position_ids(&self) -> Indices<'_> {
        let address = self.device.as_ref().map_or(0, |device| device.position_ids);
        Indices::new(&self.layout.position_ids, address, self.tokens())
    }

    /// The scored rows.
    pub fn scored_rows(&self) -> Indices<'_> {
        let address = self.device.as_ref().map_or(0, |device| device.scored_rows);
        Indices::new(&self.layout.scored_rows, address, self.seqs())
    }

    /// Positions of the scored rows.
    pub fn scored_position_ids(&self) -> Indices<'_> {
        let address = self.device.as_ref().map_or(0, |device| device.scored_position_ids);
        Indices::new(&self.layout.scored_position_ids, address, self.seqs())
    }

    /// Spans of all rows.
    pub fn spans(&self) -> Spans<'_> {
        let addresses = self.device.as_ref().map_or((0, 0), |device| (device.spans, device.tiles));
        // A span has a tile for every 64 queries and one for what remains.
        let num_tiles: usize =
            self.layout.spans.iter().map(|span| span.queries.len().div_ceil(TILE_ROWS)).sum();
        let tiles = self.size(Count::Tiles, num_tiles, tiles_bound(self.bounds.tokens));
        Spans::tiled(&self.layout.spans, addresses.0, self.num_segments(), addresses.1, tiles)
    }

    /// Spans of the scored rows, gathered.
    pub fn scored_spans(&self) -> Spans<'_> {
        let address = self.device.as_ref().map_or(0, |device| device.scored_spans);
        Spans::single(&self.layout.scored_spans, address, self.seqs())
    }

    fn cost(&self) -> Cost {
        cost(self.layout.num_tokens(), self.layout.segments.segments.len())
    }

    /// What a GPU has worked out of the batch, in 32-bit words; nothing on the CPU.
    pub(crate) fn words(&self) -> Result<Vec<u32>, Error> {
        match &self.device {
            Some(device) => device.words(&self.layout),
            None => Ok(Vec::new()),
        }
    }

    pub(crate) fn on_device(&self) -> Option<&DeviceLayout> {
        self.device.as_ref()
    }

    fn size(&self, count: Count, value: usize, bound: usize) -> Size {
        match &self.device {
            None => Size::from(value),
            Some(device) => Size::in_device_memory(value, bound, device.counts + 4 * count as u64),
        }
    }
}

/// Work of laying out `tokens` rows of `segments` segments: the segments read, everything else written.
pub fn cost(tokens: usize, segments: usize) -> Cost {
    Cost::new(0, 4 * (tokens + segments * (5 + 1 + 6 + 2 + 8)))
}

/// Queries of one tile.
pub(crate) const TILE_ROWS: usize = 64;

/// The list of tiles, in 32-bit words, that layout.cu makes of spans whose queries are their last keys.
#[cfg(test)]
pub(crate) fn tiles(spans: &[Span], is_causal: bool) -> Vec<u32> {
    let (mut words, mut work) = (Vec::new(), 0);
    for (i, span) in spans.iter().enumerate() {
        let blocks = span.queries.len().div_ceil(TILE_ROWS);
        for block in 0..blocks {
            words.extend([i, block, work].map(crate::params::narrow));
            work += 1 + span.prefix.len().div_ceil(TILE_ROWS) + if is_causal { block + 1 } else { blocks };
        }
    }
    words.extend([0, 0, crate::params::narrow(work)]);
    words
}

/// Tiles of a batch of `tokens` rows at most: every segment may leave one that is not full.
fn tiles_bound(tokens: usize) -> usize {
    tokens + tokens.div_ceil(TILE_ROWS)
}
