//! Where the time of calls goes: tokenisation, the device, the rest; and kernel by kernel.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outcrop_models::Stream;
use outcrop_models::kernels::profile::{Detail, Profile};

use super::{Engine, Model};
use crate::Error;

/// The time of calls, apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From beginning to end.
    pub wall: Duration,
    /// Tokenisation of the texts.
    pub tokenize: Duration,
    /// From the first upload of a batch to its results on the host, summed over batches, by the device's own clock; of several devices
    /// the one that was busy longest. On the CPU the time of the forward passes.
    pub device: Duration,
}

impl Timings {
    /// What is left: packing, submission, un-packing, waiting for other calls. Nothing where tokenisation and device overlap.
    pub fn host(&self) -> Duration {
        self.wall.saturating_sub(self.tokenize).saturating_sub(self.device)
    }
}

impl Engine {
    /// Runs `work`, which calls this engine, and says where its time went.
    ///
    /// Calls that other threads make meanwhile are in the figures too. `work` must not measure in turn.
    pub fn time<R>(&self, work: impl FnOnce() -> Result<R, Error>) -> Result<(R, Timings), Error> {
        self.measured(Detail::Spans, work).map(|(result, timings, _)| (result, timings))
    }

    /// Runs `work`, which calls this engine, with every kernel timed: its calls in order, with the layer that each was for, its work
    /// and its time. Of several devices one after the other.
    ///
    /// On a GPU kernels are launched one by one for this, however the engine was opened, so the calls take longer; those of one kernel do
    /// not, unless they are shorter than their launch. As for [`Engine::time`], calls of other threads are in it.
    pub fn profile<R>(&self, work: impl FnOnce() -> Result<R, Error>) -> Result<(R, Profile), Error> {
        let (result, _, profiles) = self.measured(Detail::Kernels, work)?;
        let merged = profiles.into_iter().reduce(|mut merged, profile| {
            merged.kernels.extend(profile.kernels);
            merged.spans_ms.extend(profile.spans_ms);
            merged
        });
        Ok((result, merged.unwrap_or_default()))
    }

    fn measured<R>(
        &self,
        detail: Detail,
        work: impl FnOnce() -> Result<R, Error>,
    ) -> Result<(R, Timings, Vec<Profile>), Error> {
        // Nothing that a panic could leave half-done is behind this lock.
        let _turn = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = self.streams();
        streams.iter().for_each(|stream| stream.start_profile(detail));
        let tokenized = self.tokenizing_ns.load(Ordering::Relaxed);
        let start = Instant::now();
        let result = work();
        let wall = start.elapsed();
        let tokenize = self.tokenizing_ns.load(Ordering::Relaxed) - tokenized;
        // All of them are stopped, whatever failed.
        let profiles: Vec<_> = streams.iter().map(|stream| stream.take_profile()).collect();
        let result = result?;
        let profiles: Vec<Profile> = profiles.into_iter().collect::<Result<_, _>>()?;
        let busy = profiles.iter().map(|profile| profile.spans_ms.iter().sum::<f64>());
        let device = Duration::from_secs_f64(busy.fold(0.0, f64::max) / 1e3);
        Ok((result, Timings { wall, tokenize: Duration::from_nanos(tokenize), device }, profiles))
    }

    /// Runs `tokenize`, whose time counts as tokenisation.
    pub(super) fn tokenizing<R>(&self, tokenize: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = tokenize();
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.tokenizing_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }

    fn streams(&self) -> Vec<&Stream> {
        match &self.model {
            Model::Encoder(model) => model.replicas.iter().map(|replica| &replica.stream).collect(),
            Model::Decoder(model) => model.replicas.iter().map(|replica| &replica.stream).collect(),
        }
    }
}
