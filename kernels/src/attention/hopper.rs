//! Launch of attention_hopper.cu.

use super::Rows;
use super::cuda::{AttentionParams, shared_bytes_assertions};
use crate::device::{Device, cpp_name};
use crate::driver::{Heads, SWIZZLED_COLUMNS, TensorMap};
use crate::indices::Spans;
use crate::layout::TILE_ROWS;
use crate::operands::OPERAND_TYPES;
use crate::params::{Instance, ParameterBlock, Source, narrow};
use crate::{ElementType, Error};

static SOURCE: Source = Source {
    path: "attention/attention_hopper.cu",
    text: include_str!("attention_hopper.cu"),
    assertions: || {
        AttentionParams::assertions() + &shared_bytes_assertions("ATTENTION_HOPPER", &WIDTHS, shared_bytes)
    },
};

/// Head widths that there are instances for: panels of a swizzled box. Columns beyond a head's own are zeros.
const WIDTHS: [u32; 3] = [64, 128, 256];

/// Warpgroups that have tiles of their own.
fn consumers(width: u32) -> u32 {
    if width == 64 { 3 } else { 2 }
}

/// Blocks of keys or values in shared memory.
fn slots(width: u32) -> u32 {
    match width {
        64 => 22,
        128 => 11,
        _ => 4,
    }
}

/// Queries of each consumer, slots, 2 KiB for the rows that each warp stores, 4 groups; 3 barriers of each slot, 2 of each consumer and
/// group, and where the block's tiles begin and end.
fn shared_bytes(width: u32) -> u32 {
    let (consumers, slots) = (consumers(width), slots(width));
    let tiles = (consumers + slots) * narrow(TILE_ROWS) * width * 2;
    tiles + consumers * 4 * 2048 + 4 * 64 + 8 * (3 * slots + 2 * consumers + 2 * 4) + 16
}

fn instance(operand_type: ElementType, width: u32, has_softcap: bool) -> Instance {
    Instance {
        source: &SOURCE,
        name: format!("attention_hopper<{}, {width}, {has_softcap}>", cpp_name(operand_type)),
        threads: 128 * (1 + consumers(width)),
        cluster: 1,
        shared_bytes: shared_bytes(width),
        blocks_per_sm: 1,
    }
}

/// Every instance, for the catalog.
pub(super) fn instances() -> Vec<Instance> {
    let mut instances = Vec::new();
    for operand_type in OPERAND_TYPES {
        for width in WIDTHS {
            instances.extend([false, true].map(|has_softcap| instance(operand_type, width, has_softcap)));
        }
    }
    instances
}

/// The power of two of a query's heads that a tile takes together: as many as share keys, where that is a power of two.
pub(super) fn pack_shift(num_heads: usize, num_kv_heads: usize) -> u32 {
    (num_heads / num_kv_heads).trailing_zeros().min(TILE_ROWS.trailing_zeros())
}

/// The matrices of a call, as addresses of their first column taken.
pub(super) struct Operands<'a> {
    pub(super) out: u64,
    pub(super) addresses: [u64; 3],
    pub(super) rows: [Rows<'a>; 3],
    pub(super) spans: u64,
}

/// Launches the call; `params` are those of the portable kernels but for `pack_shift`.
pub(super) fn launch(
    device: &Device,
    operand_type: ElementType,
    operands: &Operands<'_>,
    spans: Spans<'_>,
    params: AttentionParams,
) -> Result<(), Error> {
    let (num_heads, num_kv_heads) = (params.num_heads as usize, params.num_kv_heads as usize);
    let params = AttentionParams { pack_shift: pack_shift(num_heads, num_kv_heads), ..params };
    let packed = 1 << params.pack_shift;
    let map = |i: usize, heads, box_heads, box_rows| {
        let Rows { buffer, stride, .. } = operands.rows[i];
        let columns = params.head_dim as usize;
        TensorMap {
            address: operands.addresses[i],
            // A map without rows would be refused; nothing is copied where there are none.
            rows: (buffer.len() / stride).max(1),
            columns,
            stride,
            heads: Some(Heads { count: heads, box_heads }),
            element_type: operand_type,
            box_rows,
            box_columns: SWIZZLED_COLUMNS,
            is_swizzled: true,
        }
    };
    let block_rows = narrow(TILE_ROWS);
    let maps = [
        map(0, num_heads, packed, block_rows >> params.pack_shift),
        map(1, num_kv_heads, 1, block_rows),
        map(2, num_kv_heads, 1, block_rows),
    ];

    // Wider heads than the widest the contract refuses.
    let width = WIDTHS.into_iter().find(|width| params.head_dim <= *width).unwrap_or(256);
    let tiles = spans.tiles();
    let pointers = [operands.out, operands.spans, tiles.map_or(0, |tiles| tiles.address)];
    let items = match tiles {
        Some(tiles) => tiles.num_tiles.bound() * num_heads,
        None => spans.num_spans().bound() * num_heads / packed as usize,
    };
    instance(operand_type, width, params.softcap > 0.0)
        .launch_mapped(device, items, &maps, &pointers, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_fits_a_multiprocessor() {
        for width in WIDTHS {
            assert!(shared_bytes(width) <= 227 << 10, "{width}: {}", shared_bytes(width));
            // Keys and values of one block each for two consumers that are a block apart.
            assert!(slots(width) >= 4);
        }
    }

    #[test]
    fn heads_that_share_keys_share_tiles() {
        let packed = |num_heads, num_kv_heads| 1 << pack_shift(num_heads, num_kv_heads);
        assert_eq!(packed(12, 12), 1);
        assert_eq!(packed(8, 1), 8);
        assert_eq!(packed(16, 8), 2);
        // Not a power of two: packs of what divides.
        assert_eq!(packed(20, 1), 4);
        assert_eq!(packed(9, 3), 1);
        assert_eq!(packed(256, 1), 64);
    }
}
