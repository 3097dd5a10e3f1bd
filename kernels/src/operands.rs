//! What launch code makes sure of before an operand's address goes to a kernel: that it is on the stream's
//! device, in the type that the kernel reads, in rows that begin where the kernel can access them.

use crate::buffer::DeviceBuffer;
use crate::error::DeviceError;
use crate::gemm::Matrix;
use crate::stream::CudaStream;
use crate::{Buffer, ElementType, Error, Indices, Spans, Table};

/// The types of operands, for which kernels are compiled.
pub(crate) const OPERAND_TYPES: [ElementType; 2] = [ElementType::F16, ElementType::BF16];

/// Operands of one launch.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) stream: &'a CudaStream,
    /// For errors.
    pub(crate) kernel: &'static str,
}

impl Operands<'_> {
    /// The address of a buffer of the stream's operand type.
    pub(crate) fn operand(self, name: &'static str, buffer: &Buffer) -> Result<u64, Error> {
        let buffer = self.any(name, buffer)?;
        self.check_type(name, buffer, self.stream.operand_type())?;
        Ok(buffer.address())
    }

    /// The address of a buffer of f32.
    pub(crate) fn full(self, name: &'static str, buffer: &Buffer) -> Result<u64, Error> {
        let buffer = self.any(name, buffer)?;
        self.check_type(name, buffer, ElementType::F32)?;
        Ok(buffer.address())
    }

    /// A buffer of either type.
    pub(crate) fn any<'a>(self, name: &'static str, buffer: &'a Buffer) -> Result<&'a DeviceBuffer, Error> {
        buffer.on(self.stream.device()).map_err(|_| elsewhere(name))
    }

    /// The weights of a product.
    pub(crate) fn matrix<'a>(
        self,
        name: &'static str,
        matrix: &'a Matrix,
    ) -> Result<&'a DeviceBuffer, Error> {
        let weights = matrix.device_rows().filter(|rows| rows.is_on(self.stream.device()));
        let weights = weights.ok_or_else(|| elsewhere(name))?;
        self.check_type(name, weights, self.stream.operand_type())?;
        Ok(weights)
    }

    /// A table of any type.
    pub(crate) fn table<'a>(self, name: &'static str, table: Table<'a>) -> Result<&'a DeviceBuffer, Error> {
        let elements = table.resident().map_err(|_| elsewhere(name))?.elements();
        if elements.is_on(self.stream.device()) { Ok(elements) } else { Err(elsewhere(name)) }
    }

    /// The address of a table of the operand type.
    pub(crate) fn operand_table(self, name: &'static str, table: Table<'_>) -> Result<u64, Error> {
        let elements = self.table(name, table)?;
        self.check_type(name, elements, self.stream.operand_type())?;
        Ok(elements.address())
    }

    /// The address of a list of indices: in device memory, but a list does not know of which device.
    pub(crate) fn indices(self, name: &'static str, indices: Indices<'_>) -> Result<u64, Error> {
        if indices.address() == 0 { Err(elsewhere(name)) } else { Ok(indices.address()) }
    }

    /// The address of a list of spans, likewise.
    pub(crate) fn spans(self, name: &'static str, spans: Spans<'_>) -> Result<u64, Error> {
        if spans.address() == 0 { Err(elsewhere(name)) } else { Ok(spans.address()) }
    }

    /// Checks that rows of `width` elements begin at multiples of 16 bytes in either type.
    pub(crate) fn check_width(self, parameter: &'static str, width: usize) -> Result<(), Error> {
        if width.is_multiple_of(8) {
            return Ok(());
        }
        Err(Error::Parameter { kernel: self.kernel, parameter, expected: "a multiple of 8", found: width })
    }

    pub(crate) fn check_type(
        self,
        name: &'static str,
        buffer: &DeviceBuffer,
        expected: ElementType,
    ) -> Result<(), Error> {
        if buffer.element_type() == expected {
            return Ok(());
        }
        let expected = match expected {
            ElementType::F32 => "4 bytes an element, f32",
            ElementType::F16 => "2 bytes an element, f16",
            ElementType::BF16 => "2 bytes an element, bf16",
        };
        let found = buffer.element_type().bytes();
        Err(Error::Parameter { kernel: self.kernel, parameter: name, expected, found })
    }
}

fn elsewhere(operand: &'static str) -> Error {
    DeviceError::OtherDevice { operand }.into()
}
