//! Launch of pack_weights.cu, a piece of the mapped file at a time.

use super::Placement;
use crate::buffer::DeviceBuffer;
use crate::device::cpp_name;
use crate::operands::{OPERAND_TYPES, Operands};
use crate::params::{Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{ElementType, Elements, Error};

parameter_block! {
    /// Of every instance.
    PackWeightsParams {
        num_rows: u32,
        k: u32,
        mode: u32,
        head_dim: u32,
        first_row: u32,
    }
}

static SOURCE: Source = Source {
    path: "pack_weights/pack_weights.cu",
    text: include_str!("pack_weights.cu"),
    assertions: PackWeightsParams::assertions,
};

const KERNEL: &str = "pack_weights";
/// Stored weights on the device at a time: enough that a copy runs at the bus's rate, little beside the rest.
const PIECE_BYTES: usize = 4 << 20;

fn instance(out_type: ElementType, stored_type: ElementType) -> Instance {
    Instance {
        source: &SOURCE,
        name: format!("pack_weights<{}, {}>", cpp_name(out_type), cpp_name(stored_type)),
        threads: 128,
        cluster: 1,
        shared_bytes: 0,
        blocks_per_sm: 16,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    const STORED_TYPES: [ElementType; 3] = [ElementType::F32, ElementType::F16, ElementType::BF16];
    let of_type = |out_type| STORED_TYPES.map(|stored_type| instance(out_type, stored_type));
    OPERAND_TYPES.into_iter().flat_map(of_type).collect()
}

/// Puts `rows`, of `k` elements each, into `out` from row `first_row` on.
///
/// `k` is a multiple of 8, and so is the number of gate and up rows; that of rotary rows is one of `head_dim`,
/// which is even.
pub(crate) fn pack_weights(
    stream: &CudaStream,
    out: &DeviceBuffer,
    rows: Elements<'_>,
    k: usize,
    first_row: usize,
    placement: Placement,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: KERNEL };
    on.check_width("k", k)?;
    on.check_type("out", out, stream.operand_type())?;
    if rows.is_empty() || k == 0 {
        return Ok(());
    }
    let num_rows = rows.len() / k;
    // Modes as pack_weights.cu numbers them. Rows go in groups that a piece does not cut; a row's share of `out`
    // is `spread` rows.
    let (mode, group, head_dim, spread) = match placement {
        Placement::Plain => (0, 1, 0, 1),
        Placement::Rotary { head_dim } => (1, head_dim, head_dim, 1),
        Placement::Gate => (2, 8, 0, 2),
        Placement::Up => (3, 8, 0, 2),
    };
    if group == 0 || !num_rows.is_multiple_of(group) || !head_dim.is_multiple_of(2) {
        let expected = "whole groups: heads of an even number of rows, or eight rows of a gate";
        return Err(Error::Parameter { kernel: KERNEL, parameter: "num_rows", expected, found: num_rows });
    }
    crate::error::check_length(KERNEL, "out", out.len(), (first_row + spread * num_rows) * k)?;

    let row_bytes = k * rows.element_bytes();
    let piece_rows = (PIECE_BYTES / row_bytes / group).max(1) * group;
    // One piece of memory does: the stream runs a copy into it after the launch that reads what was there.
    let piece = DeviceBuffer::allocate(stream, rows.element_type(), piece_rows.min(num_rows) * k)?;
    for start in (0..num_rows).step_by(piece_rows) {
        let len = piece_rows.min(num_rows - start);
        stream.device().upload(piece.address(), rows.slice(start * k, len * k).as_bytes())?;
        let params = PackWeightsParams {
            num_rows: narrow(len),
            k: narrow(k),
            mode,
            head_dim: narrow(head_dim),
            first_row: narrow(first_row + spread * start),
        };
        let pointers = [out.address(), piece.address()];
        instance(out.element_type(), rows.element_type()).launch(stream.device(), len, &pointers, &params)?;
    }
    Ok(())
}
