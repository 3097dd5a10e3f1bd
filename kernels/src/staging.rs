//! Pinned host memory, which a device reads and writes while the host goes on: all that goes there and back passes through it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::Error;
use crate::device::{Device, Moment};
use crate::driver::{Driver, Event};

/// Memory for uploads.
const RING_BYTES: usize = 32 << 20;
/// An upload goes in pieces of at most this many bytes: while some are on their way, the next is written.
const PIECE_BYTES: usize = 4 << 20;
/// Pieces under way at most.
const PIECES_MAX: usize = 64;
/// Pieces begin at multiples of this.
const ALIGNMENT: usize = 256;
/// The least that is taken for a download: the scores of thousands of pairs.
const DOWNLOAD_BYTES_MIN: usize = 64 << 10;

/// Host memory of the driver's.
pub(crate) struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to nobody else, and is the same for every thread.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(crate) fn new(driver: &Driver, bytes: usize) -> Result<Self, Error> {
        Ok(Self { memory: driver.allocate_pinned(bytes)?, bytes })
    }

    /// Gives it back, once no copy under way uses it.
    pub(crate) fn free(self, driver: &Driver) {
        driver.free_pinned(self.memory, self.bytes);
    }
}

/// Uploads under way, in a ring: a piece's place is free again when its copy is done, so that an upload waits for those long before it
/// at most, and never for the kernels behind them.
pub(crate) struct Ring {
    pinned: Pinned,
    /// Where the next piece goes.
    next: usize,
    /// Pieces that copies may still read, the oldest first.
    under_way: VecDeque<(Range<usize>, Event)>,
}

impl Ring {
    pub(crate) fn new(driver: &Driver) -> Result<Self, Error> {
        Ok(Self { pinned: Pinned::new(driver, RING_BYTES)?, next: 0, under_way: VecDeque::new() })
    }

    /// Copies `bytes` to `address`, in the order of the stream. When this returns they may change.
    pub(crate) fn upload(&mut self, driver: &Driver, address: u64, bytes: &[u8]) -> Result<(), Error> {
        for (i, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            let place = self.make_room(driver, piece.len())?;
            // SAFETY: the place is within the ring's memory.
            let memory = unsafe { self.pinned.memory.add(place.start) };
            // SAFETY: as many bytes are there, and no copy under way uses them.
            copy(unsafe { std::slice::from_raw_parts_mut(memory, piece.len()) }, piece);
            // SAFETY: the place stays as it is until its event has been waited for, or the whole stream.
            unsafe { driver.copy_to_device(address + (i * PIECE_BYTES) as u64, memory, piece.len()) }?;
            let event = driver.mark().inspect_err(|_| {
                let _ = driver.synchronize();
            })?;
            self.under_way.push_back((place, event));
        }
        Ok(())
    }

    /// A place for a piece of `len` bytes, at most [`PIECE_BYTES`], that no copy under way uses.
    fn make_room(&mut self, driver: &Driver, len: usize) -> Result<Range<usize>, Error> {
        let start = if self.next + len <= RING_BYTES { self.next } else { 0 };
        let place = start..start + len;
        let overlaps = |piece: &Range<usize>| piece.start < place.end && place.start < piece.end;
        while self.under_way.len() >= PIECES_MAX || self.under_way.iter().any(|(piece, _)| overlaps(piece)) {
            let Some((_, event)) = self.under_way.front() else { break };
            driver.wait(event)?;
            self.under_way.pop_front();
        }
        self.next = place.end.next_multiple_of(ALIGNMENT);
        Ok(place)
    }

    pub(crate) fn free(self, driver: &Driver) {
        self.pinned.free(driver);
    }
}

/// What one thread copies of a piece: of a mapped file it gets no more than its pages are found for it.
const SHARE_BYTES: usize = PIECE_BYTES / 4;

fn copy(target: &mut [u8], source: &[u8]) {
    if source.len() <= SHARE_BYTES {
        return target.copy_from_slice(source);
    }
    std::thread::scope(|scope| {
        for (target, source) in target.chunks_mut(SHARE_BYTES).zip(source.chunks(SHARE_BYTES)) {
            scope.spawn(move || target.copy_from_slice(source));
        }
    });
}

/// Memory for downloads that none uses. As many take place at the same time as callers begin before they wait.
#[derive(Default)]
pub(crate) struct Pool {
    idle: Vec<Pinned>,
}

impl Pool {
    /// The smallest that has room for `bytes`, or new memory.
    fn take(&mut self, driver: &Driver, bytes: usize) -> Result<Pinned, Error> {
        let fitting = self.idle.iter().enumerate().filter(|(_, pinned)| pinned.bytes >= bytes);
        match fitting.min_by_key(|(_, pinned)| pinned.bytes) {
            Some((i, _)) => Ok(self.idle.swap_remove(i)),
            None => Pinned::new(driver, bytes.max(DOWNLOAD_BYTES_MIN).next_power_of_two()),
        }
    }

    pub(crate) fn free(self, driver: &Driver) {
        self.idle.into_iter().for_each(|pinned| pinned.free(driver));
    }
}

/// A copy to the host under way.
pub(crate) struct Download {
    device: Arc<Device>,
    /// Until this is dropped.
    pinned: Option<Pinned>,
    bytes: usize,
    done: Event,
    moment: Moment,
}

impl Download {
    /// Begins to copy `bytes` bytes from `address`, as they are when all work submitted so far is done.
    pub(crate) fn begin(device: &Arc<Device>, address: u64, bytes: usize) -> Result<Self, Error> {
        let driver = device.driver();
        let pinned = device.pool().take(driver, bytes)?;
        // SAFETY: there is room, and nobody touches it before `Self::wait` or `Self::drop` has waited for the copy.
        let copied = unsafe { driver.copy_to_host(pinned.memory, address, bytes) };
        let marked = copied.and_then(|()| driver.mark());
        match marked {
            Ok(done) => {
                let device = Arc::clone(device);
                Ok(Self { moment: device.moment(), device, pinned: Some(pinned), bytes, done })
            }
            Err(error) => {
                // The copy may be under way without a mark.
                let _ = driver.synchronize();
                device.pool().idle.push(pinned);
                Err(device.name_under_way(error))
            }
        }
    }

    /// Waits for the copy and gives `read` what has come.
    pub(crate) fn wait<T>(self, read: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        self.device.wait(&self.done, self.moment)?;
        let memory = self.pinned.as_ref().map_or(std::ptr::null(), |pinned| pinned.memory.cast_const());
        if self.bytes == 0 || memory.is_null() {
            return Ok(read(&[]));
        }
        // SAFETY: the copy has written as many bytes, and nothing else writes there while `self` lives.
        Ok(read(unsafe { std::slice::from_raw_parts(memory, self.bytes) }))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Of a copy that nobody has waited for as well: its memory is the next one's.
        let _ = self.device.driver().wait(&self.done);
        self.device.pool().idle.extend(self.pinned.take());
    }
}

/// Copies from `address`, once all work submitted so far is done.
pub(crate) fn download(device: &Arc<Device>, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
    for (i, part) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
        let copy = Download::begin(device, address + (i * PIECE_BYTES) as u64, part.len())?;
        copy.wait(|found| part.copy_from_slice(found))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{DeviceSize, Instance, Size, parameter_block};
    use crate::test_devices::device;
    use crate::{Buffer, ElementType, Role, Stream};

    parameter_block! {
        /// As the kernel's own.
        L2NormalizeParams {
            num_rows: DeviceSize,
            hidden_size: u32,
            unused: u32,
        }
    }

    /// Values that differ everywhere.
    fn values(len: usize, first: usize) -> Vec<f32> {
        #[expect(clippy::cast_precision_loss, reason = "whole numbers below 2^24")]
        let value = |i: usize| ((first + i * 7919) % 9_999_991) as f32;
        (0..len).map(value).collect()
    }

    /// More than the ring holds, in one upload and in many, with nothing waited for in between.
    #[test]
    fn uploads_beyond_the_ring_arrive_as_they_were() {
        let Some(stream) = device(ElementType::F16) else { return };
        let len = RING_BYTES / 4 * 2 + 12_345;
        let [mut large] = Buffer::allocate(&stream, [(Role::Full, len)]).unwrap();
        large.write(&values(len, 1)).unwrap();
        // Of odd sizes, so that pieces end where they will around the ring; and small ones beyond their number.
        let sizes: Vec<usize> = (0..40).map(|i| 100_003 * (i % 9 + 1)).chain([3; 200]).collect();
        let buffers: Vec<Buffer> = sizes
            .iter()
            .enumerate()
            .map(|(i, len)| Buffer::upload(&stream, &values(*len, i)).unwrap())
            .collect();
        assert!(large.read(len).unwrap() == values(len, 1), "the large one");
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.read(sizes[i]).unwrap() == values(sizes[i], i), "the {i}-th");
        }
    }

    /// A fault is that of whoever waits behind it; what came before can be had.
    #[test]
    fn faults_come_to_those_who_wait_behind_them() {
        let Some(stream) = device(ElementType::F16) else { return };
        let Stream::Cuda(cuda) = &stream else { return };
        if !cuda.device().properties().is_emulated() {
            return;
        }
        let buffer = Buffer::upload(&stream, &[1.0; 64]).unwrap();
        let before = buffer.read_later(64).unwrap();
        // Without the shared memory that it needs.
        let instance = crate::catalog::instances().into_iter().find(|i| i.name == "l2_normalize").unwrap();
        let instance = Instance { shared_bytes: 0, ..instance };
        let row = buffer.on(cuda.device()).unwrap().address();
        let params = L2NormalizeParams { num_rows: Size::from(1).on_device(), hidden_size: 64, unused: 0 };
        instance.launch(cuda.device(), 1, &[row], &params).unwrap();
        let behind = buffer.read_later(64).unwrap();
        let further = buffer.read_later(64).unwrap();
        drop(further);
        assert_eq!(before.wait().unwrap(), [1.0; 64]);
        let error = behind.wait().err().unwrap().to_string();
        assert!(error.contains("l2_normalize"), "{error}");
        assert!(buffer.read(1).is_err(), "what is lost stays so");
    }

    /// What is read is what stood there when the reading began, whatever is submitted later and whoever is waited for first.
    #[test]
    fn readings_are_of_their_moment() {
        let Some(stream) = device(ElementType::F16) else { return };
        let [mut buffer] = Buffer::allocate(&stream, [(Role::Full, 70_000)]).unwrap();
        let mut readings = Vec::new();
        for i in 0..20 {
            buffer.write(&values(70_000, i)).unwrap();
            let len = if i % 3 == 0 { 70_000 } else { 5 };
            readings.push((i, len, buffer.read_later(len).unwrap()));
        }
        // Some are never waited for, and their memory is used again.
        readings.retain(|(i, ..)| i % 5 != 1);
        for (i, len, reading) in readings.into_iter().rev() {
            assert!(reading.wait().unwrap() == values(len, i), "the {i}-th");
        }
        buffer.write(&values(70_000, 77)).unwrap();
        assert!(buffer.read(70_000).unwrap() == values(70_000, 77));
        assert_eq!(buffer.read_later(0).unwrap().wait().unwrap(), []);
        // A host's are there at once.
        let host = Buffer::upload(&Stream::cpu(Some(1)).unwrap(), &[1.0, 2.0]).unwrap();
        assert_eq!(host.read_later(1).unwrap().wait().unwrap(), [1.0]);
    }
}
