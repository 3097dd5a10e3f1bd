//! Disjoint writes to one output from several tasks.

use std::marker::PhantomData;

/// An output slice whose parts are handed to tasks that write disjoint places.
///
/// Rust's slices split along one axis only; tiles of a row-major matrix are strided, so tasks get raw pointers and promise
/// disjointness instead.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a> {
    pointer: *mut f32,
    len: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only used through `slice` and `pointer_at`, whose callers promise that no two tasks touch the same
// element; `f32` itself may be written from any thread.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { pointer: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// No other live reference, in any task, may overlap them.
    #[inline(always)]
    pub(crate) unsafe fn slice(self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start + len <= self.len, "a task reaches beyond its output");
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }

    /// A pointer to element `start`, for strided tiles.
    #[inline(always)]
    pub(crate) fn pointer_at(self, start: usize) -> *mut f32 {
        assert!(start <= self.len, "a task starts beyond its output");
        // SAFETY: `start <= len` stays within or one past the allocation.
        unsafe { self.pointer.add(start) }
    }
}
