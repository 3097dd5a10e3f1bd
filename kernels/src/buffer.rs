//! Memory for activations and small parameters, on the host or on a device.

use std::sync::Arc;

use bytemuck::Zeroable;
use half::{bf16, f16};

use crate::device::{Allocation, Device};
use crate::error::DeviceError;
use crate::staging::Download;
use crate::stream::CudaStream;
use crate::{ElementType, Error, Stream};

/// What a buffer is for, which decides the type of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An operand of matrix products: f32 on the CPU, the stream's 16-bit type on CUDA.
    Operand,
    /// What is summed over layers, and everything small: f32.
    Full,
}

/// A fixed-size run of elements in the memory of one stream.
pub enum Buffer {
    /// On the host: f32.
    Host(HostBuffer),
    /// On a device.
    Device(DeviceBuffer),
}

/// One cache line. Buffers are made of these so that every row of a multiple of 16 floats starts on a line.
#[derive(Clone, Copy, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

// SAFETY: `Line` is `repr(C)`, holds only `f32` (Pod), and its size equals its alignment, so it has no padding.
unsafe impl bytemuck::Pod for Line {}

/// f32 values in host memory, zeroed when made.
pub struct HostBuffer {
    lines: Vec<Line>,
    len: usize,
}

/// Elements in device memory, undefined when made; part of an allocation.
pub struct DeviceBuffer {
    allocation: Arc<Allocation>,
    address: u64,
    len: usize,
    element_type: ElementType,
}

/// Elements on their way to the host.
pub struct Reading(Source);

enum Source {
    Host(Vec<f32>),
    Device(Download, ElementType),
}

impl Reading {
    /// Waits until they have come. An error may be that of any work submitted before.
    pub fn wait(self) -> Result<Vec<f32>, Error> {
        match self.0 {
            Source::Host(values) => Ok(values),
            Source::Device(download, element_type) => download.wait(|bytes| from_bytes(bytes, element_type)),
        }
    }
}

fn from_bytes(bytes: &[u8], element_type: ElementType) -> Vec<f32> {
    match element_type {
        ElementType::F32 => bytemuck::pod_collect_to_vec(bytes),
        ElementType::F16 => {
            let values: Vec<f16> = bytemuck::pod_collect_to_vec(bytes);
            values.iter().map(|x| x.to_f32()).collect()
        }
        ElementType::BF16 => {
            let values: Vec<bf16> = bytemuck::pod_collect_to_vec(bytes);
            values.iter().map(|x| x.to_f32()).collect()
        }
    }
}

impl Buffer {
    /// A buffer for each role and length: of a device all in one allocation, made here once and for all.
    ///
    /// On the host they are zeroed, in fresh pages: memory that no batch reaches is never resident. On a device their contents are
    /// undefined.
    pub fn allocate<const N: usize>(stream: &Stream, wanted: [(Role, usize); N]) -> Result<[Self; N], Error> {
        let Stream::Cuda(cuda) = stream else {
            return Ok(wanted.map(|(_, len)| Self::Host(HostBuffer::zeros(len))));
        };
        let element_type = |role| match role {
            Role::Operand => cuda.operand_type(),
            Role::Full => ElementType::F32,
        };
        let bytes = wanted.map(|(role, len)| len * element_type(role).bytes());
        let (allocation, addresses) = cuda.device().allocate(&bytes)?;
        let mut addresses = addresses.into_iter();
        Ok(wanted.map(|(role, len)| {
            Self::Device(DeviceBuffer {
                allocation: Arc::clone(&allocation),
                address: addresses.next().unwrap_or(0),
                len,
                element_type: element_type(role),
            })
        }))
    }

    /// A buffer of f32 with these values: biases, norms, heads.
    pub fn upload(stream: &Stream, values: &[f32]) -> Result<Self, Error> {
        let [mut buffer] = Self::allocate(stream, [(Role::Full, values.len())])?;
        buffer.write(values)?;
        Ok(buffer)
    }

    /// Replaces the leading elements by `values`, rounded to the buffer's type.
    pub fn write(&mut self, values: &[f32]) -> Result<(), Error> {
        crate::error::check_length("buffer", "values", self.len(), values.len())?;
        match self {
            Self::Host(host) => host.as_mut_slice()[..values.len()].copy_from_slice(values),
            Self::Device(buffer) => {
                let device = buffer.device();
                match buffer.element_type {
                    ElementType::F32 => device.upload(buffer.address, bytemuck::cast_slice(values))?,
                    ElementType::F16 => {
                        let values: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
                        device.upload(buffer.address, bytemuck::cast_slice(&values))?;
                    }
                    ElementType::BF16 => {
                        let values: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
                        device.upload(buffer.address, bytemuck::cast_slice(&values))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The first `len` elements as f32, once all work before is done.
    pub fn read(&self, len: usize) -> Result<Vec<f32>, Error> {
        crate::error::check_length("buffer", "elements", self.len(), len)?;
        match self {
            Self::Host(host) => Ok(host.as_slice()[..len].to_vec()),
            Self::Device(buffer) => {
                let mut bytes = vec![0u8; len * buffer.element_type.bytes()];
                buffer.device().download(buffer.address, &mut bytes)?;
                Ok(from_bytes(&bytes, buffer.element_type))
            }
        }
    }

    /// Begins to read the first `len` elements: as they are behind all work submitted so far, whatever is submitted later.
    pub fn read_later(&self, len: usize) -> Result<Reading, Error> {
        crate::error::check_length("buffer", "elements", self.len(), len)?;
        Ok(Reading(match self {
            Self::Host(host) => Source::Host(host.as_slice()[..len].to_vec()),
            Self::Device(buffer) => {
                let bytes = len * buffer.element_type.bytes();
                Source::Device(Download::begin(buffer.device(), buffer.address, bytes)?, buffer.element_type)
            }
        }))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(host) => host.len(),
            Self::Device(device) => device.len,
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of an element.
    pub(crate) fn element_bytes(&self) -> usize {
        match self {
            Self::Host(_) => size_of::<f32>(),
            Self::Device(device) => device.element_type.bytes(),
        }
    }

    /// The elements, if they are on the host.
    pub fn host(&self) -> Result<&[f32], Error> {
        match self {
            Self::Host(host) => Ok(host.as_slice()),
            Self::Device(_) => Err(DeviceError::OtherDevice { operand: "buffer" }.into()),
        }
    }

    /// The elements, writable, if they are on the host.
    pub fn host_mut(&mut self) -> Result<&mut [f32], Error> {
        match self {
            Self::Host(host) => Ok(host.as_mut_slice()),
            Self::Device(_) => Err(DeviceError::OtherDevice { operand: "buffer" }.into()),
        }
    }

    /// The buffer, if it is on `device`.
    pub(crate) fn on(&self, device: &Arc<Device>) -> Result<&DeviceBuffer, Error> {
        match self {
            Self::Device(buffer) if buffer.is_on(device) => Ok(buffer),
            _ => Err(DeviceError::OtherDevice { operand: "buffer" }.into()),
        }
    }
}

impl HostBuffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        // Fresh zeroed pages from the system: memory that a batch never reaches is never resident.
        Self { lines: bytemuck::zeroed_vec(len.div_ceil(16)), len }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The elements, writable.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl DeviceBuffer {
    /// `len` elements in an allocation of their own.
    pub(crate) fn allocate(
        stream: &CudaStream,
        element_type: ElementType,
        len: usize,
    ) -> Result<Self, Error> {
        let (allocation, addresses) = stream.device().allocate(&[len * element_type.bytes()])?;
        Ok(Self { allocation, address: addresses[0], len, element_type })
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn device(&self) -> &Arc<Device> {
        self.allocation.device()
    }

    pub(crate) fn is_on(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(self.device(), device)
    }

    /// Where the elements are.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Where element `index` is.
    pub(crate) fn address_of(&self, index: usize) -> u64 {
        self.address + (index * self.element_type.bytes()) as u64
    }

    pub(crate) fn element_type(&self) -> ElementType {
        self.element_type
    }
}
