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
    /// Calls submit to a GPU one after the other: its memory is for one. The next may submit when the one before has, long before that
    /// one's results have come: what is submitted runs in order.
    turn: Mutex<()>,
}

/// Batches that a call has submitted and not yet waited for, at most: with one that runs and two behind it a GPU does not wait for the host
/// as long as that makes a batch faster than a GPU runs one; and another GPU finds work that is left.
const IN_FLIGHT_MAX: usize = 3;

/// What a call has submitted, and what has come of it.
pub(super) struct InFlight<P, T> {
    pending: VecDeque<P>,
    found: Vec<T>,
}

impl<P, T> InFlight<P, T> {
    pub(super) fn new() -> Self {
        Self { pending: VecDeque::new(), found: Vec::new() }
    }

    /// Takes in one more; waits for the oldest by `wait` where there are many.
    pub(super) fn push(
        &mut self,
        pending: P,
        wait: impl Fn(P) -> Result<Vec<T>, Error>,
    ) -> Result<(), Error> {
        self.pending.push_back(pending);
        while self.pending.len() > IN_FLIGHT_MAX
            && let Some(oldest) = self.pending.pop_front()
        {
            self.found.extend(wait(oldest)?);
        }
        Ok(())
    }

    /// Waits for what is left.
    pub(super) fn finish(mut self, wait: impl Fn(P) -> Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
        for pending in self.pending {
            self.found.extend(wait(pending)?);
        }
        Ok(self.found)
    }
}

impl<M, A> Replica<M, A> {
    pub(super) fn new(stream: Stream, model: M) -> Self {
        Self { stream, model, idle: Mutex::default(), turn: Mutex::default() }
    }

    /// Waits until this call may submit.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.stream {
            Stream::Cpu(_) => None,
            // Nothing that a panic could leave half-done is behind this lock.
            Stream::Cuda(_) => Some(self.turn.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// What is `held`, other memory that `fits`, or new memory. On a GPU what does not fit is given back first.
    pub(super) fn take(
        &self,
        held: Option<A>,
        fits: impl Fn(&A) -> bool,
        make: impl FnOnce() -> Result<A, Error>,
    ) -> Result<A, Error> {
        if let Some(held) = held.filter(&fits) {
            return Ok(held);
        }
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

/// Calls `work` with each of the replicas and the jobs that it takes, one by one: whichever is free takes the next, which may be made only
/// then. What came of the jobs is returned in no particular order; the first error ends the others.
pub(super) fn distribute<R: Sync, J, T: Send>(
    replicas: &[R],
    jobs: &mut (impl Iterator<Item = J> + Send),
    work: impl Fn(&R, &mut dyn Iterator<Item = J>) -> Result<Vec<T>, Error> + Sync,
) -> Result<Vec<T>, Error> {
    if let [only] = replicas {
        return work(only, jobs);
    }
    let jobs = Mutex::new(Some(jobs));
    let jobs = || jobs.lock().unwrap_or_else(PoisonError::into_inner);
    let run = |replica: &R| {
        let result = work(replica, &mut std::iter::from_fn(|| jobs().as_mut()?.next()));
        if result.is_err() {
            *jobs() = None;
        }
        result
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
        let work = |replica: &usize, jobs: &mut dyn Iterator<Item = usize>| {
            let done = jobs.inspect(|_| {
                // Neither replica may go on before the other has a job too.
                if std::mem::take(&mut first_of.lock().unwrap()[*replica]) {
                    barrier.wait();
                }
            });
            Ok(done.map(|job| (job, *replica)).collect())
        };
        let mut done = distribute(&[0, 1], &mut (0..10), work).unwrap();
        done.sort_unstable();
        assert_eq!(done.iter().map(|(job, _)| *job).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert!((0..2).all(|replica| done.iter().any(|(_, by)| *by == replica)));
    }

    #[test]
    fn an_error_ends_the_work() {
        let work = |_: &(), jobs: &mut dyn Iterator<Item = usize>| {
            jobs.map(|job| if job == 3 { Err(Error::CompressRatio) } else { Ok(job) }).collect()
        };
        let mut jobs = 0..;
        assert!(matches!(distribute(&[(), ()], &mut jobs, work), Err(Error::CompressRatio)));
    }

    #[test]
    fn what_is_in_flight_is_waited_for_in_order_and_kept_short() {
        let waited = std::cell::RefCell::new(Vec::new());
        let wait = |i: usize| {
            waited.borrow_mut().push(i);
            if i == 7 { Err(Error::CompressRatio) } else { Ok(vec![2 * i, 2 * i + 1]) }
        };
        let mut in_flight = InFlight::new();
        for i in 0..6 {
            in_flight.push(i, wait).unwrap();
            assert_eq!(waited.borrow().len(), (i + 1_usize).saturating_sub(IN_FLIGHT_MAX));
        }
        assert_eq!(in_flight.finish(wait).unwrap(), (0..12).collect::<Vec<_>>());
        assert_eq!(*waited.borrow(), (0..6).collect::<Vec<_>>());

        let mut in_flight = InFlight::new();
        (6..9).for_each(|i| in_flight.push(i, wait).unwrap());
        assert!(matches!(in_flight.finish(wait), Err(Error::CompressRatio)));
    }
}
