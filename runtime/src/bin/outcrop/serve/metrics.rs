//! What Prometheus is told: TEI's names, so that its dashboards go on working, and what this server alone knows.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use outcrop::queue::{QueueStatus, Run, Saved, Times};

use super::problem::Kind;

/// TEI's buckets of seconds.
fn duration_buckets() -> Vec<f64> {
    (1..=35).map(|k| 1e-5 * 1.5_f64.powi(k)).collect()
}

/// Counts of tokens and of sequences: by two up to a million.
fn size_buckets() -> Vec<f64> {
    (0..=20).map(|k| f64::from(1 << k)).collect()
}

/// Starts collecting; what is returned renders the text that Prometheus reads.
pub(crate) fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration".to_owned()), &duration_buckets())?
        .set_buckets(&size_buckets())?
        .install_recorder()?;
    for (name, what) in [
        ("te_request_count", "Requests, by whether they hold one text or several."),
        ("te_request_success", "Requests that were answered."),
        ("te_request_failure", "Requests that were not, by the reason."),
        ("te_embed_count", "Texts to embed."),
        ("te_embed_success", "Texts embedded."),
        ("te_predict_count", "Pairs to score."),
        ("te_predict_success", "Pairs scored."),
        ("outcrop_tokens", "Tokens of sequences that were run."),
        ("outcrop_truncated", "Texts and pairs that were cut to a limit."),
        (
            "outcrop_layer_tokens",
            "Tokens times layers that plain runs of each sequence by itself would have computed.",
        ),
        ("outcrop_score_cache_hits", "Pairs whose scores were remembered, of te_predict_success."),
        ("outcrop_layer_tokens_saved", "Tokens times layers of these that were not computed, by the reason."),
    ] {
        describe_counter!(name, what);
    }
    for (name, what) in [
        ("te_queue_size", "Requests without an answer."),
        ("outcrop_queue_tokens", "Tokens that wait."),
        ("outcrop_queue_oldest_seconds", "Age of the oldest request that waits."),
        ("outcrop_devices_running", "Devices that are running something."),
        (
            "outcrop_device_busy_seconds",
            "Time that devices have been running something: its rate is the share that they are busy.",
        ),
    ] {
        describe_gauge!(name, what);
    }
    for kind in ["request", Task::Embed.name(), Task::Predict.name()] {
        for (name, what) in [
            ("duration", "Seconds from a request's arrival to its answer."),
            ("tokenization_duration", "Seconds of tokenisation, per text on average."),
            ("queue_duration", "Seconds of waiting for a run, per text on average."),
            ("inference_duration", "Seconds of the run that a text was in, per text on average."),
        ] {
            describe_histogram!(format!("te_{kind}_{name}"), what);
        }
    }
    for (name, what) in [
        ("te_request_input_length", "Tokens of a text or pair."),
        ("te_batch_next_size", "Sequences of a run."),
        ("te_batch_next_tokens", "Tokens of a run."),
        ("outcrop_run_duration", "Seconds of a run."),
    ] {
        describe_histogram!(name, what);
    }
    Ok(handle)
}

/// Sorts what histograms have been told into their buckets, for ever: until then, or until somebody reads them, they hold every value.
pub(crate) async fn keep(handle: PrometheusHandle) {
    let mut interval = tokio::time::interval(Duration::from_secs(5));
    loop {
        interval.tick().await;
        handle.run_upkeep();
    }
}

/// Counts pairs that the score cache has answered.
pub(crate) fn remembered(model: &str, pairs: usize) {
    counter!("outcrop_score_cache_hits", "model" => model.to_owned()).increment(pairs as u64);
}

/// Counters of a model that is served, from nought: what has not happened yet shows too.
pub(crate) fn declare(model: &str) {
    for method in ["single", "batch"] {
        counter!("te_request_count", "method" => method).increment(0);
        counter!("te_request_success", "method" => method).increment(0);
    }
    for err in ["validation", "batch_size", "overloaded", "tokenization", "inference", "dropped"] {
        counter!("te_request_failure", "err" => err).increment(0);
    }
    for name in
        ["te_embed_count", "te_embed_success", "te_predict_count", "te_predict_success", "outcrop_truncated"]
    {
        counter!(name).increment(0);
    }
    remembered(model, 0);
    count_run(model, 0, &Saved::default());
}

/// What kind of work a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Embed,
    Predict,
}

impl Task {
    fn name(self) -> &'static str {
        match self {
            Task::Embed => "embed",
            Task::Predict => "predict",
        }
    }
}

/// A request has come in, with so many texts.
pub(crate) fn arrived(task: Task, texts: usize) {
    let method = if texts == 1 { "single" } else { "batch" };
    counter!("te_request_count", "method" => method).increment(1);
    counter!(format!("te_{}_count", task.name())).increment(texts as u64);
}

/// It has been answered.
pub(crate) fn answered(
    task: Task,
    texts: usize,
    times: &Times,
    tokens: impl Iterator<Item = usize>,
    truncated: usize,
) {
    let method = if texts == 1 { "single" } else { "batch" };
    counter!("te_request_success", "method" => method).increment(1);
    counter!(format!("te_{}_success", task.name())).increment(texts as u64);
    counter!("outcrop_truncated").increment(truncated as u64);
    for kind in ["request", task.name()] {
        let seconds = |what: &str, time: Duration| {
            histogram!(format!("te_{kind}{what}_duration")).record(time.as_secs_f64())
        };
        seconds("", times.total);
        seconds("_tokenization", times.tokenize);
        seconds("_queue", times.queue);
        seconds("_inference", times.run);
    }
    let lengths = histogram!("te_request_input_length");
    tokens.for_each(|tokens| lengths.record(tokens as f64));
}

/// It has not.
pub(crate) fn failed(kind: Kind) {
    counter!("te_request_failure", "err" => kind.metric()).increment(1);
}

/// A run has ended.
pub(crate) fn run(name: &str, run: &Run) {
    histogram!("te_batch_next_size").record(run.sequences as f64);
    histogram!("te_batch_next_tokens").record(run.tokens as f64);
    histogram!("outcrop_run_duration", "model" => name.to_owned()).record(run.elapsed.as_secs_f64());
    count_run(name, run.tokens, &run.saved);
}

fn count_run(model: &str, tokens: usize, saved: &Saved) {
    let model = || ("model", model.to_owned());
    counter!("outcrop_tokens", &[model()]).increment(tokens as u64);
    counter!("outcrop_layer_tokens", &[model()]).increment(saved.plain);
    for (by, saved) in [
        ("cutoff", saved.cutoff),
        ("compression", saved.compression),
        ("prefix_sharing", saved.prefix_sharing),
    ] {
        counter!("outcrop_layer_tokens_saved", &[model(), ("by", by.to_owned())]).increment(saved);
    }
}

/// How a model's queue is doing, when somebody asks.
pub(crate) fn queue(model: &str, status: &QueueStatus) {
    let labels = [("model", model.to_owned())];
    gauge!("te_queue_size", &labels).set(status.requests as f64);
    gauge!("outcrop_queue_tokens", &labels).set(status.waiting_tokens as f64);
    gauge!("outcrop_queue_oldest_seconds", &labels).set(status.oldest.as_secs_f64());
    gauge!("outcrop_devices_running", &labels).set(status.running as f64);
    gauge!("outcrop_device_busy_seconds", &labels).set(status.busy.as_secs_f64());
}
