//! Launches of attention.cu and attention_row.cu, and on Hopper of attention_hopper.cu in their place.

use super::{AttentionParams as Params, Mask, Rows, hopper, invalid};
use crate::device::cpp_name;
use crate::operands::{OPERAND_TYPES, Operands};
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, ElementType, Error, Spans};

parameter_block! {
    /// Of every instance of both.
    AttentionParams {
        /// Tiles, or spans of one query.
        num_tiles: DeviceSize,
        num_heads: u32,
        num_kv_heads: u32,
        head_dim: u32,
        q_stride: u32,
        kv_stride: u32,
        causal: u32,
        window: u32,
        softmax_scale: f32,
        softcap: f32,
        /// Of attention_hopper.cu alone.
        pack_shift: u32,
    }
}

static TILES: Source = Source {
    path: "attention/attention.cu",
    text: include_str!("attention.cu"),
    assertions: || {
        AttentionParams::assertions() + &shared_bytes_assertions("ATTENTION", &WIDTHS, tile_shared_bytes)
    },
};

static ROWS: Source = Source {
    path: "attention/attention_row.cu",
    text: include_str!("attention_row.cu"),
    assertions: || {
        AttentionParams::assertions() + &shared_bytes_assertions("ATTENTION_ROW", &WIDTHS, row_shared_bytes)
    },
};

/// Head widths that there are instances for; heads in between take the next one, the rest of whose columns are zeros.
const WIDTHS: [u32; 4] = [32, 64, 128, 256];
/// Keys of a block, of which each kernel has some in shared memory.
const BLOCK_KEYS: u32 = 64;
/// Query heads that `attention_row` takes at a time.
const BLOCK_HEADS: usize = 16;
/// The longest window that the kernels' 32-bit positions tell from none.
const WINDOW_MAX: usize = 1 << 31;

/// A tile of queries, and one each of keys and values.
fn tile_shared_bytes(width: u32) -> u32 {
    3 * BLOCK_KEYS * width * 2
}

/// Scores, the query's heads, and a ring of tiles of keys and values: four, or two of the widest heads.
fn row_shared_bytes(width: u32) -> u32 {
    let slots = if width == 256 { 2 } else { 4 };
    16 * BLOCK_KEYS * 4 + (16 + slots * BLOCK_KEYS) * width * 2
}

/// C++ assertions that the kernel's file means the same shared memory.
pub(super) fn shared_bytes_assertions(kernel: &str, widths: &[u32], shared_bytes: fn(u32) -> u32) -> String {
    let assertion = |width: &u32| {
        format!(
            "static_assert({kernel}_SHARED_BYTES<{width}> == {}, \"shared memory\");\n",
            shared_bytes(*width)
        )
    };
    widths.iter().map(assertion).collect()
}

fn instance(
    source: &'static Source,
    kernel: &str,
    operand_type: ElementType,
    width: u32,
    has_softcap: bool,
    shared_bytes: u32,
) -> Instance {
    Instance {
        source,
        name: format!("{kernel}<{}, {width}, {has_softcap}>", cpp_name(operand_type)),
        threads: 128,
        cluster: 1,
        shared_bytes,
        blocks_per_sm: match width {
            ..=64 => 4,
            128 => 3,
            _ => 2,
        },
    }
}

/// The instance that takes tiles of queries.
fn tile_instance(operand_type: ElementType, width: u32, has_softcap: bool) -> Instance {
    instance(&TILES, "attention", operand_type, width, has_softcap, tile_shared_bytes(width))
}

/// The instance that takes spans of one query.
fn row_instance(operand_type: ElementType, width: u32, has_softcap: bool) -> Instance {
    instance(&ROWS, "attention_row", operand_type, width, has_softcap, row_shared_bytes(width))
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    let mut instances = hopper::instances();
    for operand_type in OPERAND_TYPES {
        for width in WIDTHS {
            for has_softcap in [false, true] {
                instances.push(tile_instance(operand_type, width, has_softcap));
                instances.push(row_instance(operand_type, width, has_softcap));
            }
        }
    }
    instances
}

pub(super) fn attention(
    stream: &CudaStream,
    out: &Buffer,
    [q, k, v]: [Rows<'_>; 3],
    spans: Spans<'_>,
    params: Params,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "attention" };
    if k.stride != v.stride {
        invalid("v", "rows of the same stride as those of k", v.stride)?;
    }

    let (causal, window) = match params.mask {
        Mask::Full => (0, 0),
        Mask::Causal => (1, 0),
        Mask::Window(window) => (1, narrow(window.min(WINDOW_MAX))),
    };
    let tiles = spans.tiles();
    let num_tiles = tiles.map_or(spans.num_spans(), |tiles| tiles.num_tiles);
    let block = AttentionParams {
        num_tiles: num_tiles.on_device(),
        num_heads: narrow(params.num_heads),
        num_kv_heads: narrow(params.num_kv_heads),
        head_dim: narrow(params.head_dim),
        q_stride: narrow(q.stride),
        kv_stride: narrow(k.stride),
        causal,
        window,
        softmax_scale: params.softmax_scale,
        softcap: params.softcap.unwrap_or(0.0),
        pack_shift: 0,
    };

    // The contract's limit is the widest instance.
    let width = WIDTHS.into_iter().find(|width| params.head_dim <= *width as usize).unwrap_or(256);
    let (operand_type, has_softcap) = (stream.operand_type(), params.softcap.is_some());
    let device = stream.device();
    let out = on.operand("out", out)?;
    let addresses = [address(on, "q", q)?, address(on, "k", k)?, address(on, "v", v)?];
    let span_list = on.spans("spans", spans)?;
    if device.is_hopper() {
        let operands = hopper::Operands { out, addresses, rows: [q, k, v], spans: span_list };
        return hopper::launch(device, operand_type, &operands, spans, block);
    }
    let mut pointers = [&[out], &addresses[..], &[span_list]].concat();
    match tiles {
        Some(tiles) => {
            pointers.push(tiles.address);
            let items = num_tiles.bound() * params.num_heads;
            tile_instance(operand_type, width, has_softcap).launch(device, items, &pointers, &block)
        }
        None => {
            let group_items = (params.num_heads / params.num_kv_heads).div_ceil(BLOCK_HEADS);
            let items = num_tiles.bound() * params.num_kv_heads * group_items;
            row_instance(operand_type, width, has_softcap).launch(device, items, &pointers, &block)
        }
    }
}

/// Where the first column taken is.
fn address(on: Operands<'_>, name: &'static str, rows: Rows<'_>) -> Result<u64, Error> {
    on.operand(name, rows.buffer)?;
    on.check_width(name, rows.stride)?;
    on.check_width(name, rows.column)?;
    Ok(on.any(name, rows.buffer)?.address_of(rows.column))
}
