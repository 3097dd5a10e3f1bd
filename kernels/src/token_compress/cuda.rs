//! Launch of token_compress.cu.

use crate::error::DeviceError;
use crate::layout::LayoutBuffer;
use crate::operands::Operands;
use crate::params::{DeviceSize, Instance, ParameterBlock, Source, narrow, parameter_block};
use crate::stream::CudaStream;
use crate::{Buffer, Error};

parameter_block! {
    /// Of the one instance.
    TokenCompressParams {
        num_rows: DeviceSize,
        num_segments: DeviceSize,
        ratio: u32,
        hidden_size: u32,
    }
}

static SOURCE: Source = Source {
    path: "token_compress/token_compress.cu",
    text: include_str!("token_compress.cu"),
    assertions: TokenCompressParams::assertions,
};

fn instance() -> Instance {
    Instance {
        source: &SOURCE,
        name: "token_compress".to_owned(),
        threads: 128,
        cluster: 1,
        shared_bytes: 0,
        blocks_per_sm: 8,
    }
}

/// Every instance, for the catalog.
pub(crate) fn instances() -> Vec<Instance> {
    vec![instance()]
}

pub(super) fn token_compress(
    stream: &CudaStream,
    out: &mut Buffer,
    x: &Buffer,
    before: &LayoutBuffer,
    after: &LayoutBuffer,
    ratio: usize,
    hidden_size: usize,
) -> Result<(), Error> {
    let on = Operands { stream, kernel: "token_compress" };
    on.check_width("hidden_size", hidden_size)?;
    let layout = |layout: &LayoutBuffer| {
        let found = layout.on_device().filter(|layout| layout.is_of(stream));
        found.map(|layout| (layout.segments, layout.cu_seqlens))
    };
    let (Some((segments, cu_seqlens)), Some((_, out_cu_seqlens))) = (layout(before), layout(after)) else {
        return Err(DeviceError::OtherDevice { operand: "layout" }.into());
    };
    let pointers = [on.full("out", out)?, on.full("x", x)?, segments, cu_seqlens, out_cu_seqlens];
    let params = TokenCompressParams {
        num_rows: after.tokens().on_device(),
        num_segments: before.num_segments().on_device(),
        ratio: crate::layout::device_ratio(ratio),
        hidden_size: narrow(hidden_size),
    };
    instance().launch(stream.device(), after.tokens().bound(), &pointers, &params)
}
