//! Embedding tables, from which a batch takes the rows of its tokens.

use crate::buffer::DeviceBuffer;
use crate::error::DeviceError;
use crate::{Elements, Error, Stream};

/// A table of rows.
#[derive(Clone, Copy)]
pub enum Table<'a> {
    /// A view of a mapped file: of it only the rows asked for are ever read.
    Mapped(Elements<'a>),
    /// In device memory.
    Resident(&'a ResidentTable),
}

/// A table in device memory.
pub struct ResidentTable {
    elements: DeviceBuffer,
}

impl ResidentTable {
    /// A copy of `elements` as they are, for kernels of `stream`; `None` where those read the mapped file.
    pub fn as_stored(stream: &Stream, elements: Elements<'_>) -> Result<Option<Self>, Error> {
        let Stream::Cuda(cuda) = stream else { return Ok(None) };
        let table = DeviceBuffer::allocate(cuda, elements.element_type(), elements.len())?;
        cuda.device().upload(table.address(), elements.as_bytes())?;
        Ok(Some(Self { elements: table }))
    }

    /// The same in the stream's operand type; rows of `row_len`.
    pub fn as_operand(
        stream: &Stream,
        elements: Elements<'_>,
        row_len: usize,
    ) -> Result<Option<Self>, Error> {
        let Stream::Cuda(cuda) = stream else { return Ok(None) };
        Ok(Some(Self { elements: crate::pack_weights::upload(cuda, elements, row_len)? }))
    }

    pub(crate) fn elements(&self) -> &DeviceBuffer {
        &self.elements
    }
}

impl<'a> Table<'a> {
    /// Elements of the table.
    pub fn len(&self) -> usize {
        match self {
            Self::Mapped(elements) => elements.len(),
            Self::Resident(table) => table.elements.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of an element.
    pub(crate) fn element_bytes(&self) -> usize {
        match self {
            Self::Mapped(elements) => elements.element_type().bytes(),
            Self::Resident(table) => table.elements.element_type().bytes(),
        }
    }

    pub(crate) fn mapped(&self) -> Result<Elements<'a>, Error> {
        match self {
            Self::Mapped(elements) => Ok(*elements),
            Self::Resident(_) => Err(DeviceError::OtherDevice { operand: "table" }.into()),
        }
    }

    pub(crate) fn resident(&self) -> Result<&'a ResidentTable, Error> {
        match self {
            Self::Resident(table) => Ok(table),
            Self::Mapped(_) => Err(DeviceError::OtherDevice { operand: "table" }.into()),
        }
    }
}
