//! Where a stream's time goes: kernel calls and spans of work, timed by the clock of whatever runs them.
//!
//! Off unless asked for: a kernel call then costs one branch more, and a replay of recorded launches, which calls no kernel, nothing. On
//! a GPU kernels are timed by an event on either side, so recorded launches are taken apart meanwhile ([`Graphs`](crate::Graphs)): a
//! kernel that is shorter than its own launch by the host shows the launch. Spans are timed as they are.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::driver::Event;
use crate::{Cost, Error, Stream};

/// How much is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Spans: the batches that the caller marks.
    Spans = 1,
    /// Spans, and every kernel call.
    Kernels = 2,
}

/// The part of a network that a kernel is called for, in the network's words: `embedding`, `layer 3`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Label {
    /// The kind of part.
    pub name: &'static str,
    /// Its number among its kind, if it has one.
    pub index: Option<usize>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            Some(index) => write!(f, "{} {index}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// What a stream has done, in the order in which it was submitted.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Kernel calls; none if only spans were timed.
    pub kernels: Vec<KernelTime>,
    /// Milliseconds of each span.
    pub spans_ms: Vec<f64>,
}

/// One call of a kernel.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// What it was called for.
    pub label: Label,
    /// The kernel's folder.
    pub kernel: &'static str,
    /// What tells its calls in a layer apart: outputs and inputs of a product, the form of an attention; empty where nothing does.
    pub shape: String,
    /// The instances that a GPU launched for it.
    pub instances: Vec<String>,
    /// Its work, from its contract.
    pub cost: Cost,
    /// How long it took.
    pub ms: f64,
}

/// The profile of a stream under way.
#[derive(Default)]
pub(crate) struct Profiler {
    /// A [`Detail`], or 0 for nothing.
    detail: AtomicU8,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    label: Label,
    kernels: Vec<(KernelTime, Interval)>,
    spans: Vec<Interval>,
    /// The first time that a moment could not be had.
    error: Option<Error>,
}

/// From one moment to another, which may not have come yet.
#[derive(Default)]
struct Interval {
    start: Option<Moment>,
    end: Option<Moment>,
}

enum Moment {
    Host(Instant),
    Device(Event),
}

/// A kernel call or span that ends where this is dropped.
pub(crate) struct Timed<'a> {
    stream: &'a Stream,
    detail: Detail,
    index: usize,
}

impl Profiler {
    /// Whether this much is timed.
    pub(crate) fn is_timed(&self, detail: Detail) -> bool {
        self.detail.load(Ordering::Relaxed) >= detail as u8
    }

    /// Notes that an instance is launched for the kernel call that began last.
    pub(crate) fn note_launch(&self, instance: &str) {
        if let Some((kernel, _)) = self.log().kernels.last_mut() {
            kernel.instances.push(instance.to_owned());
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Lists are only pushed to, and moments put in their places.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn interval(&mut self, detail: Detail, index: usize) -> Option<&mut Interval> {
        match detail {
            Detail::Spans => self.spans.get_mut(index),
            Detail::Kernels => self.kernels.get_mut(index).map(|(_, interval)| interval),
        }
    }
}

impl Stream {
    /// Begins to time what is submitted from now on, by any thread, until [`Stream::take_profile`].
    pub fn start_profile(&self, detail: Detail) {
        let profiler = self.profiler();
        *profiler.log() = Log::default();
        profiler.detail.store(detail as u8, Ordering::Relaxed);
    }

    /// Ends what [`Stream::start_profile`] began, and waits for it.
    pub fn take_profile(&self) -> Result<Profile, Error> {
        let profiler = self.profiler();
        profiler.detail.store(0, Ordering::Relaxed);
        let Log { kernels, spans, error, .. } = std::mem::take(&mut *profiler.log());
        self.synchronize()?;
        error.map_or(Ok(()), Err)?;
        let kernels = kernels.into_iter().map(|(kernel, interval)| {
            let ms = self.milliseconds(&interval)?;
            Ok::<_, Error>(KernelTime { ms, ..kernel })
        });
        Ok(Profile {
            kernels: kernels.collect::<Result<_, _>>()?,
            spans_ms: spans.iter().map(|interval| self.milliseconds(interval)).collect::<Result<_, _>>()?,
        })
    }

    /// Says what the kernels that are called next are called for.
    pub fn label(&self, name: &'static str, index: impl Into<Option<usize>>) {
        let profiler = self.profiler();
        if profiler.is_timed(Detail::Kernels) {
            profiler.log().label = Label { name, index: index.into() };
        }
    }

    /// Runs `work`, which submits a batch and perhaps waits for it: timed as a span, if somebody asked for spans.
    pub fn span<R>(&self, work: impl FnOnce() -> R) -> R {
        let _timed = self.profiler().is_timed(Detail::Spans).then(|| {
            let mut log = self.profiler().log();
            log.spans.push(Interval::default());
            self.begin(log, Detail::Spans)
        });
        work()
    }

    /// Times the kernel call that ends where the result is dropped, if somebody asked for that. `about` is its shape and its work.
    pub(crate) fn timed(
        &self,
        kernel: &'static str,
        about: impl FnOnce() -> (String, Cost),
    ) -> Option<Timed<'_>> {
        self.profiler().is_timed(Detail::Kernels).then(|| {
            let (shape, cost) = about();
            let mut log = self.profiler().log();
            let label = log.label;
            let call = KernelTime { label, kernel, shape, instances: Vec::new(), cost, ms: 0.0 };
            log.kernels.push((call, Interval::default()));
            self.begin(log, Detail::Kernels)
        })
    }

    /// Starts the interval that was pushed last.
    fn begin(&self, mut log: MutexGuard<'_, Log>, detail: Detail) -> Timed<'_> {
        let index = match detail {
            Detail::Spans => log.spans.len(),
            Detail::Kernels => log.kernels.len(),
        } - 1;
        self.now(&mut log, detail, index, |interval| &mut interval.start);
        Timed { stream: self, detail, index }
    }

    /// Puts this moment where it belongs.
    fn now(
        &self,
        log: &mut Log,
        detail: Detail,
        index: usize,
        place: impl FnOnce(&mut Interval) -> &mut Option<Moment>,
    ) {
        let moment = match self {
            Self::Cpu(_) => Ok(Moment::Host(Instant::now())),
            Self::Cuda(cuda) => cuda.device().record_event().map(Moment::Device),
        };
        match (moment, log.interval(detail, index)) {
            (Ok(moment), Some(interval)) => *place(interval) = Some(moment),
            // The profile was taken meanwhile.
            (Ok(_), None) => {}
            (Err(error), _) => log.error = log.error.take().or(Some(error)),
        }
    }

    fn milliseconds(&self, interval: &Interval) -> Result<f64, Error> {
        match (self, &interval.start, &interval.end) {
            (_, Some(Moment::Host(start)), Some(Moment::Host(end))) => {
                Ok(end.duration_since(*start).as_secs_f64() * 1e3)
            }
            (Self::Cuda(cuda), Some(Moment::Device(start)), Some(Moment::Device(end))) => {
                cuda.device().elapsed_ms(start, end).map(f64::from)
            }
            // Still under way in another thread: it counts for nothing.
            _ => Ok(0.0),
        }
    }

    fn profiler(&self) -> &Profiler {
        match self {
            Self::Cpu(cpu) => cpu.profiler(),
            Self::Cuda(cuda) => cuda.device().profiler(),
        }
    }

    /// Whether kernels are timed one by one, for which they must not be replayed.
    pub(crate) fn times_kernels(&self) -> bool {
        self.profiler().is_timed(Detail::Kernels)
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let mut log = self.stream.profiler().log();
        self.stream.now(&mut log, self.detail, self.index, |interval| &mut interval.end);
    }
}
