//! Copies of a model, one per device, and how the work of a call is shared out among them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use outcrop_models::Stream;

use crate::Error;

/// A model on one device, with memory for forward passes.
pub(super) struct Replica<M, A> {
    pub(super) stream: Stream,
    pub(super) model: M,
    /// Memory that no call is using: on the CPU as much as calls have run at the same time, on a GPU once.
    idle: Mutex<Vec<A>>,
    /// A GPU runs one call at a time: its memory is for one.
    turn: Mutex<()>,
}

impl<M, A> Replica<M, A> {
    pub(super) fn new(stream: Stream, model: M) -> Self {
        Self { stream, model, idle: Mutex::default(), turn: Mutex::default() }
    }

    /// Waits until this call may run.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.stream {
            Stream::Cpu(_) => None,
            // Nothing that a panic could leave half-done is behind this lock.
            Stream::Cuda(_) => Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Memory that `fits`, or new memory. On a GPU what does not fit is given back first.
    pub(super) fn take(
        &self,
        fits: impl Fn(&A) -> bool,
        make: impl FnOnce() -> Result<A, Error>,
    ) -> Result<A, Error> {
        let found = {
            let mut idle = self.idle();
            if matches!(self.stream, Stream::Cuda(_)) {
                idle.retain(&fits);
            }
            idle.iter().position(fits).map(|i| idle.swap_remove(i))
        };
        found.map_or_else(make, Ok)
    }

    /// On a GPU makes the memory of its calls ahead of the first.
    pub(super) fn reserve(&self, make: impl FnOnce() -> Result<A, Error>) -> Result<(), Error> {
        if matches!(self.stream, Stream::Cuda(_)) && self.idle().is_empty() {
            let memory = make()?;
            self.keep(memory);
        }
        Ok(())
    }

    /// Puts memory back for the next call.
    pub(super) fn keep(&self, memory: A) {
        self.idle().push(memory);
    }

    /// Frees the memory that no call is using.
    pub(super) fn release(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<A>> {
        // The list is only pushed to and popped from.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls `work` for every job, each on one of the replicas: whichever is free takes the next. What came of the jobs is returned in no
/// particular order; the first error ends the others.
pub(super) fn distribute<R: Sync, J: Send, T: Send>(
    replicas: &[R],
    jobs: Vec<J>,
    work: impl Fn(&R, Vec<J>) -> Result<Vec<T>, Error> + Sync,
) -> Result<Vec<T>, Error> {
    if let [only] = replicas {
        return work(only, jobs);
    }
    let queue = Mutex::new(VecDeque::from(jobs));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let run = |replica: &R| {
        let mut results = Vec::new();
        while let Some(job) = next() {
            match work(replica, vec![job]) {
                Ok(more) => results.extend(more),
                Err(error) => {
                    queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    return Err(error);
                }
            }
        }
        Ok(results)
    };
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = replicas.iter().map(|replica| scope.spawn(|| run(replica))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect::<Result<Vec<Vec<T>>, Error>>()
    })?;
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn every_job_is_done_once_and_by_all_replicas() {
        let barrier = Barrier::new(2);
        let first_of = Mutex::new(vec![true; 2]);
        let work = |replica: &usize, jobs: Vec<usize>| {
            // Neither replica may go on before the other has a job too.
            if std::mem::take(&mut first_of.lock().unwrap()[*replica]) {
                barrier.wait();
            }
            Ok(jobs.into_iter().map(|job| (job, *replica)).collect())
        };
        let mut done = distribute(&[0, 1], (0..10).collect(), work).unwrap();
        done.sort_unstable();
        assert_eq!(done.iter().map(|(job, _)| *job).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert!((0..2).all(|replica| done.iter().any(|(_, by)| *by == replica)));
    }

    #[test]
    fn an_error_ends_the_work() {
        let work = |_: &(), jobs: Vec<usize>| match jobs[0] {
            3 => Err(Error::CompressRatio),
            job => Ok(vec![job]),
        };
        assert!(matches!(distribute(&[(), ()], (0..1000).collect(), work), Err(Error::CompressRatio)));
    }
}
