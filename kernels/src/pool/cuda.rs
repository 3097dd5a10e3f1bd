//! Launch of pool.cu.

use crate::device::cpp_name;
use crate::operands::{OPERAND_TYPES, Operands};
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, ElementType, Error, Spans};

parameter_block! {
    /// Of every instance.
    PoolParams {
        num_spans: DeviceSize,
        hidden_size: u32,
        unused: u32,
    }
}

static SOURCE: Source =
    Source { path: "pool/pool.cu", text: include_str!("pool.cu"), assertions: PoolParams::assertions };

/// Columns of a span that one block takes.
const COLUMNS: usize = 128;

fn instance(operand_type: ElementType) -> Instance {
    Instance {
        source: &SOURCE,
        name: format!("pool<{}>", cpp_name(operand_type)),
        threads: 32,
        cluster: 1,
        shared_bytes: 0,
        blocks_per_sm: 16,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    OPERAND_TYPES.map(instance).to_vec()
}

pub(super) fn pool(
    stream: &CudaStream,
    out: &mut Buffer,
    x: &Buffer,
    spans: Spans<'_>,
    hidden_size: usize,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "pool" };
    on.check_width("hidden_size", hidden_size)?;
    let pointers = [on.full("out", out)?, on.operand("x", x)?, on.spans("spans", spans)?];
    let params =
        PoolParams { num_spans: spans.num_spans().on_device(), hidden_size: narrow(hidden_size), unused: 0 };
    let items = spans.num_spans().bound() * hidden_size.div_ceil(COLUMNS);
    instance(stream.operand_type()).launch(stream.device(), items, &pointers, &params)
}
