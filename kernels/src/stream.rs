//! Where kernels run.

use crate::Error;

/// A place to run kernels: on the CPU, a pool of compute threads.
///
/// Calls from several threads may share one stream; their work interleaves on the same pool. Results never depend on the
/// number of threads.
pub struct Stream {
    pool: rayon::ThreadPool,
}

impl Stream {
    /// A CPU stream of `threads` compute threads; `None` takes as many as the process may use.
    pub fn cpu(threads: Option<usize>) -> Result<Self, Error> {
        let threads = threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
            .max(1);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("outcrop-{i}"))
            .build()
            .map(|pool| Self { pool })
            .map_err(|source| Error::ThreadPool { threads, source })
    }

    /// Compute threads of this stream.
    pub fn num_threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` inside the pool, so that kernels called from it start without a thread hand-over.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Calls `task(i)` for every `i < num_tasks` on the pool, each exactly once, in no particular order.
    pub(crate) fn for_each(&self, num_tasks: usize, task: impl Fn(usize) + Sync + Send) {
        use rayon::prelude::*;
        if num_tasks <= 1 || self.num_threads() == 1 {
            (0..num_tasks).for_each(task);
        } else {
            self.pool.install(|| (0..num_tasks).into_par_iter().with_max_len(1).for_each(task));
        }
    }

    /// `[f(0), f(1), ..]`, computed on the pool.
    pub(crate) fn map<T: Send>(&self, num_tasks: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
        use rayon::prelude::*;
        self.pool.install(|| (0..num_tasks).into_par_iter().map(f).collect())
    }

    /// Splits `num_rows` rows into runs of about `rows_per_task` and calls `task(first_row, num_rows)` for each.
    pub(crate) fn for_each_rows(
        &self,
        num_rows: usize,
        rows_per_task: usize,
        task: impl Fn(usize, usize) + Sync + Send,
    ) {
        let rows_per_task = rows_per_task.max(1);
        self.for_each(num_rows.div_ceil(rows_per_task), |i| {
            let first = i * rows_per_task;
            task(first, rows_per_task.min(num_rows - first));
        });
    }
}
