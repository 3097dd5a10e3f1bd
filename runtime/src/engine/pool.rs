//! Memory for forward passes that no call is using.

use std::sync::{Mutex, PoisonError};

/// As many as calls have run at the same time.
pub(super) struct Pool<T> {
    idle: Mutex<Vec<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { idle: Mutex::default() }
    }
}

impl<T> Pool<T> {
    /// One that `fits`, or a new one.
    pub(super) fn take(&self, fits: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> T {
        // A poisoned lock guards nothing half-done: the list is only pushed to and popped from.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.iter().position(fits) {
            Some(i) => idle.swap_remove(i),
            None => {
                drop(idle);
                make()
            }
        }
    }

    pub(super) fn keep(&self, item: T) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(item);
    }
}
