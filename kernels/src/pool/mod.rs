//! One vector per span: the mean of the rows of its queries.
//!
//! | operand | shape                         | dtype                     | layout                 |
//! |---------|-------------------------------|---------------------------|------------------------|
//! | `out`   | `[num_spans, hidden_size]`    | f32                       | row-major, overwritten |
//! | `x`     | `[num_rows, hidden_size]`     | f32; CUDA: operand type   | row-major, packed      |
//! | `spans` | `[num_spans]`                 |                           | their `queries`        |
//!
//! Pooling over all tokens takes the spans of the batch, pooling by the first token those of the first rows, gathered.
//! Every span must have a query. Rounding: rows are added in ascending order in f32, then multiplied by `1 / n`.
//! Error bound of a mean of n rows: `(n + 1) * 2^-24 * mean |x|`; tests use it. A single row is exact.
//! Cost: one read of the rows. Errors: [`Error::Length`]; [`Error::Parameter`], on CUDA also unless `hidden_size` is a
//! multiple of 8.
//! Source: Reimers and Gurevych 2019, section 3 (CLS and MEAN strategies).

mod cpu;
mod cuda;
#[cfg(test)]
pub(crate) mod cuda_tests;
#[cfg(test)]
mod tests;

pub(crate) use self::cuda::instances;

use crate::error::check_length;
use crate::{Buffer, Cost, Error, Spans, Stream};

/// Pools each span.
pub fn pool(
    stream: &Stream,
    out: &mut Buffer,
    x: &Buffer,
    spans: Spans<'_>,
    hidden_size: usize,
) -> Result<(), Error> {
    let host = spans.host();
    let num_rows = host.iter().map(|span| span.queries.end).max().unwrap_or(0);
    check_length("pool", "out", out.len(), host.len() * hidden_size)?;
    check_length("pool", "x", x.len(), num_rows * hidden_size)?;
    if let Some(span) = host.iter().position(|span| span.queries.is_empty()) {
        let expected = "a row in every span; none in this one";
        return Err(Error::Parameter { kernel: "pool", parameter: "spans", expected, found: span });
    }
    if hidden_size == 0 {
        return Ok(());
    }
    let _timed =
        stream.timed("pool", || (String::new(), cost(num_rows, host.len(), hidden_size, x.element_bytes())));
    match stream {
        Stream::Cpu(cpu) => {
            cpu::pool(cpu, out.host_mut()?, x.host()?, host, hidden_size);
            Ok(())
        }
        Stream::Cuda(cuda) => cuda::pool(cuda, out, x, spans, hidden_size),
    }
}

/// Work of one call on rows of elements of `operand_bytes`.
pub fn cost(num_rows: usize, num_spans: usize, hidden_size: usize, operand_bytes: usize) -> Cost {
    Cost::new(num_rows * hidden_size, hidden_size * (operand_bytes * num_rows + 4 * num_spans))
}
