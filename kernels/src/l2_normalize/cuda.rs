//! Launch of l2_normalize.cu.

use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, Error, Size};

parameter_block! {
    /// Of every instance.
    L2NormalizeParams {
        num_rows: DeviceSize,
        hidden_size: u32,
        unused: u32,
    }
}

static SOURCE: Source = Source {
    path: "l2_normalize/l2_normalize.cu",
    text: include_str!("l2_normalize.cu"),
    assertions: L2NormalizeParams::assertions,
};

/// The one instance.
fn instance() -> Instance {
    Instance {
        source: &SOURCE,
        name: "l2_normalize".to_owned(),
        threads: 128,
        cluster: 1,
        shared_bytes: 32,
        blocks_per_sm: 16,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    vec![instance()]
}

pub(super) fn l2_normalize(
    stream: &CudaStream,
    x: &mut Buffer,
    num_rows: Size,
    hidden_size: usize,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "l2_normalize" };
    on.check_width("hidden_size", hidden_size)?;
    let pointers = [on.full("x", x)?];
    let params =
        L2NormalizeParams { num_rows: num_rows.on_device(), hidden_size: narrow(hidden_size), unused: 0 };
    instance().launch(stream.device(), num_rows.bound(), &pointers, &params)
}
