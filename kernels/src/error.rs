//! What a kernel can refuse.

/// Why a kernel did not run. Each variant names the kernel and the operand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has fewer elements than its shape needs.
    #[error("{kernel}: operand `{operand}` holds {found} elements, expected {expected}")]
    Length {
        /// Kernel folder name.
        kernel: &'static str,
        /// Operand name as in the contract.
        operand: &'static str,
        /// Elements the shape needs.
        expected: usize,
        /// Elements the operand holds.
        found: usize,
    },
    /// A parameter lies outside what the kernel is written for.
    #[error("{kernel}: {parameter} is {found}, expected {expected}")]
    Parameter {
        /// Kernel folder name.
        kernel: &'static str,
        /// Parameter name as in the contract.
        parameter: &'static str,
        /// The allowed values.
        expected: &'static str,
        /// The value given.
        found: usize,
    },
    /// An index points outside the table it selects from.
    #[error("{kernel}: {table} index {index} at position {position}, but the table has {rows} rows")]
    IndexOutOfRange {
        /// Kernel folder name.
        kernel: &'static str,
        /// Which table.
        table: &'static str,
        /// The index found.
        index: u32,
        /// Where in the index list it stands.
        position: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// The thread pool of a CPU stream could not be started.
    #[error("cannot start {threads} compute threads: lower `threads`, or raise the process limit")]
    ThreadPool {
        /// Threads asked for.
        threads: usize,
        /// The operating system's answer.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

/// Checks one operand's length against the contract.
pub(crate) fn check_length(
    kernel: &'static str,
    operand: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), Error> {
    if found < expected { Err(Error::Length { kernel, operand, expected, found }) } else { Ok(()) }
}
