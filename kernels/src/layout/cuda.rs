//! The layout's arrays in device memory, and the launch of layout.cu, which fills them.

use std::sync::Arc;

use super::{Before, Layout, ScoredRow, Segments, TILE_ROWS, tiles_bound};
use crate::Error;
use crate::device::Allocation;
use crate::error::DeviceError;
use crate::params::{Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;

parameter_block! {
    /// Of the one instance.
    LayoutParams {
        ratio: u32,
        scores_first_row: u32,
    }
}

static SOURCE: Source = Source {
    path: "layout/layout.cu",
    text: include_str!("layout.cu"),
    assertions: || LayoutParams::assertions() + &assertions(),
};

/// Words of the structs of layout.cu and packed.cuh.
const HEADER_WORDS: usize = 3;
const SEGMENT_WORDS: usize = 5;
const COUNT_WORDS: usize = 6;
const SPAN_WORDS: usize = 6;
pub(super) const TILE_WORDS: usize = 3;

/// C++ assertions that the structs have as many words as there is room for, and tiles as many rows.
fn assertions() -> String {
    let structs = [
        ("Header", HEADER_WORDS),
        ("Segment", SEGMENT_WORDS),
        ("Counts", COUNT_WORDS),
        ("Span", SPAN_WORDS),
        ("Tile", TILE_WORDS),
    ];
    let assertion = |(name, words): (&str, usize)| {
        format!("static_assert(sizeof({name}) == {}, \"{name}: size\");\n", 4 * words)
    };
    structs.map(assertion).concat()
        + &format!("static_assert(TILE_ROWS == {TILE_ROWS}, \"rows of a tile\");\n")
}

fn instance() -> Instance {
    Instance {
        source: &SOURCE,
        name: "layout".to_owned(),
        threads: 1024,
        cluster: 1,
        shared_bytes: 128,
        blocks_per_sm: 1,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    vec![instance()]
}

/// A ratio as kernels take it: at least 1, and so small that a passage's length and it have a sum of 32 bits.
/// Passages are shorter, so that a greater one does the same.
pub(crate) fn device_ratio(ratio: usize) -> u32 {
    narrow(ratio.clamp(1, 1 << 31))
}

/// `before` of a segment that stands behind nothing.
const NOTHING: u32 = u32::MAX;
/// `before` of a segment that stands behind the carried prefix.
const CARRIED: u32 = u32::MAX - 1;

/// Addresses of the arrays of a layout, all in one allocation. `C` rows are the capacity; entries are u32.
pub(crate) struct DeviceLayout {
    allocation: Arc<Allocation>,
    /// `num_segments, carried_rows, kept_segment or 2^32 - 1`: what the host says of a batch, `[3]`.
    pub(super) header: u64,
    /// `query, passage, prompt, before, is_scored` each, `[C, 5]`.
    pub(crate) segments: u64,
    /// See [`Count`], `[6]`.
    pub(super) counts: u64,
    /// `[C + 1]`
    pub(crate) cu_seqlens: u64,
    /// `[C]`
    pub(super) position_ids: u64,
    /// Spans as in packed.cuh, `[C, 6]`.
    pub(super) spans: u64,
    /// `span, block, work_before` each and one more, as in packed.cuh, `[tiles_bound(C) + 1, 3]`.
    pub(super) tiles: u64,
    /// `[C]`
    pub(super) scored_rows: u64,
    /// `[C]`
    pub(super) scored_position_ids: u64,
    /// `[C, 6]`
    pub(super) scored_spans: u64,
}

/// The numbers that the layout kernel counts, in the order in which they stand in device memory.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(super) enum Count {
    Tokens,
    Seqs,
    Tiles,
    KeptStart,
    KeptRows,
    CarriedRows,
}

impl DeviceLayout {
    pub(super) fn new(stream: &CudaStream, capacity: usize) -> Result<Self, Error> {
        let words = [
            HEADER_WORDS,
            SEGMENT_WORDS * capacity,
            COUNT_WORDS,
            capacity + 1,
            capacity,
            SPAN_WORDS * capacity,
            TILE_WORDS * (tiles_bound(capacity) + 1),
            capacity,
            capacity,
            SPAN_WORDS * capacity,
        ];
        let (allocation, at) = stream.device().allocate(&words.map(|words| 4 * words))?;
        Ok(Self {
            allocation,
            header: at[0],
            segments: at[1],
            counts: at[2],
            cu_seqlens: at[3],
            position_ids: at[4],
            spans: at[5],
            tiles: at[6],
            scored_rows: at[7],
            scored_position_ids: at[8],
            scored_spans: at[9],
        })
    }

    /// Whether the arrays are in memory of the stream's device.
    pub(crate) fn is_of(&self, stream: &CudaStream) -> bool {
        Arc::ptr_eq(self.allocation.device(), stream.device())
    }

    /// Works out everything from the header and the segments of `from`, perhaps itself, once every `ratio`
    /// passage rows have become one; header and segments too.
    pub(super) fn derive(
        &self,
        stream: &CudaStream,
        from: &Self,
        ratio: usize,
        scored_row: ScoredRow,
    ) -> Result<(), Error> {
        if !self.is_of(stream) || !from.is_of(stream) {
            return Err(DeviceError::OtherDevice { operand: "layout" }.into());
        }
        let pointers = [
            self.header,
            self.segments,
            self.counts,
            self.cu_seqlens,
            self.position_ids,
            self.spans,
            self.tiles,
            self.scored_rows,
            self.scored_position_ids,
            self.scored_spans,
            from.header,
            from.segments,
        ];
        let params = LayoutParams {
            ratio: device_ratio(ratio),
            scores_first_row: (scored_row == ScoredRow::First).into(),
        };
        instance().launch(stream.device(), 1, &pointers, &params)
    }

    /// Everything that follows from the segments of `layout`, array by array, as far as it is of the batch.
    pub(super) fn words(&self, layout: &Layout) -> Result<Vec<u32>, Error> {
        let (rows, segments, seqs) = (layout.num_tokens(), layout.spans.len(), layout.num_seqs());
        let num_tiles: usize = layout.spans.iter().map(|span| span.queries.len().div_ceil(TILE_ROWS)).sum();
        let mut words = Vec::new();
        for (address, len) in [
            (self.counts, 6),
            (self.cu_seqlens, segments + 1),
            (self.position_ids, rows),
            (self.spans, 6 * segments),
            (self.tiles, TILE_WORDS * (num_tiles + 1)),
            (self.scored_rows, seqs),
            (self.scored_position_ids, seqs),
            (self.scored_spans, 6 * seqs),
        ] {
            let mut bytes = vec![0u8; 4 * len];
            self.allocation.device().download(address, &mut bytes)?;
            words.extend(bytemuck::pod_collect_to_vec::<u8, u32>(&bytes));
        }
        Ok(words)
    }

    /// Sends what the host says of a batch.
    pub(super) fn send(&self, segments: &Segments) -> Result<(), Error> {
        let device = self.allocation.device();
        let kept = segments.kept_segment.map_or(u32::MAX, narrow);
        let header = [narrow(segments.segments.len()), narrow(segments.carried_rows), kept];
        device.upload(self.header, bytemuck::cast_slice(&header))?;
        let words: Vec<u32> = segments
            .segments
            .iter()
            .flat_map(|segment| {
                let before = match segment.before {
                    Before::Nothing => NOTHING,
                    Before::Carried => CARRIED,
                    Before::Segment(i) => narrow(i),
                };
                let parts = segment.parts;
                let [query, passage, prompt] = [parts.query, parts.passage, parts.prompt].map(narrow);
                [query, passage, prompt, before, segment.is_scored.into()]
            })
            .collect();
        device.upload(self.segments, bytemuck::cast_slice(&words))
    }
}
