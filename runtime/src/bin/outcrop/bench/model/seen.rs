//! What was measured of a setting.

use std::time::Duration;

use outcrop::Timings;
use serde_json::{Map, Value, json};

/// The calls of a setting, round by round.
#[derive(Default)]
pub(super) struct Seen {
    calls: Vec<Timings>,
    pairs: usize,
    tokens: usize,
    flops: u64,
    /// Calls and pairs of each round.
    rounds: Vec<(usize, usize)>,
}

impl Seen {
    pub(super) fn begin_round(&mut self) {
        self.rounds.push((0, 0));
    }

    /// A call of so many pairs, tokens and floating-point operations.
    pub(super) fn push(&mut self, timings: Timings, pairs: usize, tokens: usize, flops: u64) {
        self.calls.push(timings);
        self.pairs += pairs;
        self.tokens += tokens;
        self.flops += flops;
        if let Some((calls, pairs_of_round)) = self.rounds.last_mut() {
            *calls += 1;
            *pairs_of_round += pairs;
        }
    }

    fn seconds(&self) -> f64 {
        self.calls.iter().map(|call| call.wall.as_secs_f64()).sum()
    }

    pub(super) fn pairs_per_second(&self) -> f64 {
        self.pairs as f64 / self.seconds()
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds()
    }

    /// Over the whole time of the calls.
    pub(super) fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.seconds()
    }

    /// Milliseconds within which this share of the calls is done.
    pub(super) fn wall_ms(&self, share: f64) -> f64 {
        quantile(self.calls.iter().map(|call| call.wall), share)
    }

    /// Median milliseconds of a call that the device is busy.
    pub(super) fn device_ms(&self) -> f64 {
        quantile(self.calls.iter().map(|call| call.device), 0.5)
    }

    pub(super) fn tokenize_ms(&self) -> f64 {
        quantile(self.calls.iter().map(|call| call.tokenize), 0.5)
    }

    /// Of what is neither tokenisation nor the device.
    pub(super) fn host_ms(&self) -> f64 {
        quantile(self.calls.iter().map(Timings::host), 0.5)
    }

    /// Pairs a second of each round.
    fn round_rates(&self) -> Vec<f64> {
        let mut start = 0;
        let rate = |(calls, pairs): &(usize, usize)| {
            let of_round = &self.calls[start..start + calls];
            start += calls;
            *pairs as f64 / of_round.iter().map(|call| call.wall.as_secs_f64()).sum::<f64>()
        };
        self.rounds.iter().map(rate).collect()
    }

    /// For the record.
    pub(super) fn facts(&self, ceiling: f64) -> Map<String, Value> {
        let device_seconds: f64 = self.calls.iter().map(|call| call.device.as_secs_f64()).sum();
        let facts = json!({
            "calls_timed": self.calls.len(),
            "pairs_per_call": self.pairs as f64 / self.calls.len() as f64,
            "tokens_per_pair": self.tokens as f64 / self.pairs as f64,
            "pairs_per_s": self.pairs_per_second(),
            "pairs_per_s_of_rounds": self.round_rates(),
            "tokens_per_s": self.tokens_per_second(),
            "p50_ms": self.wall_ms(0.5),
            "p95_ms": self.wall_ms(0.95),
            "p99_ms": self.wall_ms(0.99),
            "device_ms": self.device_ms(),
            "tokenize_ms": self.tokenize_ms(),
            "host_ms": self.host_ms(),
            "flops_per_call": self.flops as f64 / self.calls.len() as f64,
            "tflops": self.flops_per_second() / 1e12,
            "tflops_of_device_time": self.flops as f64 / device_seconds / 1e12,
            "of_ceiling": self.flops_per_second() / ceiling,
        });
        facts.as_object().cloned().unwrap_or_default()
    }
}

/// The least of the times, in milliseconds, that this share of them does not exceed.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
pub(super) fn quantile(times: impl Iterator<Item = Duration>, share: f64) -> f64 {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    let rank = (share * times.len() as f64).ceil() as usize;
    times.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
