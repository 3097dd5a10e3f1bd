//! `outcrop serve`: models over HTTP.
//!
//! A request is read whole, taken apart field by field (`fields`), answered by its dialect (`dialects`) through what all have in common
//! (`call`), and waits in its model's queue, which is the library's.

pub(crate) mod args;
mod call;
mod dialects;
mod fields;
mod http;
mod keys;
mod listen;
mod metrics;
mod models;
mod page;
mod problem;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use self::args::{LogFormat, ServeArgs};
use self::keys::Keys;
use self::listen::Listener;
use self::models::Models;
use self::problem::{Kind, Problem};
use crate::Status;
use crate::error::Error;

/// What all requests share.
pub(crate) struct Server {
    pub(crate) args: ServeArgs,
    /// Once they are loaded and warm.
    models: OnceLock<Models>,
    /// Whether the server has been told to stop.
    is_draining: AtomicBool,
    /// Whether a GPU has stopped, which only a new process can use again.
    is_lost: AtomicBool,
    /// Requests that are being read or answered.
    in_flight: AtomicUsize,
    pub(crate) keys: Keys,
    prometheus: PrometheusHandle,
}

impl Server {
    /// A GPU has stopped: from now on the process says that it wants to be started again.
    pub(crate) fn lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    fn check_health(&self) -> Result<(), Problem> {
        match self.is_lost.load(Ordering::Relaxed) {
            true => {
                Err(Problem::new(Kind::NotReady, "a GPU has stopped: the process has to be started again"))
            }
            false => Ok(()),
        }
    }

    /// The models, once they are ready.
    pub(crate) fn models(&self) -> Result<&Models, Problem> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Problem::new(Kind::NotReady, "the server is shutting down: ask another one"));
        }
        self.check_health()?;
        self.models.get().ok_or_else(|| Problem {
            retry_after: Some(Duration::from_secs(1)),
            ..Problem::new(Kind::NotReady, "models are being loaded")
        })
    }
}

/// Serves until it is told to stop.
///
/// # Errors
///
/// A model, an argument or the address cannot be used.
pub(crate) fn run(args: ServeArgs, quiet: bool) -> Result<Status, Error> {
    start_logs(&args)?;
    let keys = Keys::read(&args)?;
    let cors = http::cors(&args)?;
    let server_error = |what| move |source| Error::Server { what, source };
    let prometheus = metrics::install().map_err(|error| server_error("metrics")(error.into()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8))
        .enable_all()
        .build()
        .map_err(|error| server_error("threads")(error.into()))?;
    let server = Arc::new(Server {
        args,
        models: OnceLock::new(),
        is_draining: AtomicBool::new(false),
        is_lost: AtomicBool::new(false),
        in_flight: AtomicUsize::new(0),
        keys,
        prometheus,
    });
    let status = runtime.block_on(async {
        // Listening comes first: whoever started the process learns at once that it lives.
        let listener = Listener::bind(&server.args).await?;
        info!(address = listener.address(), "listening");
        let router = http::router(Arc::clone(&server), cors);
        let (stop, stopped) = watch::channel(false);
        let read_timeout = Duration::from_secs(server.args.read_timeout);
        let serving = tokio::spawn(listener.serve(router, stopped, read_timeout));
        tokio::spawn(metrics::keep(server.prometheus.clone()));
        let loading = Arc::clone(&server);
        let mut loading = tokio::task::spawn_blocking(move || Models::open(&loading.args, quiet));
        let signal = |kind| signal(kind).map_err(|error| server_error("signals")(error.into()));
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut is_loading = true;
        loop {
            tokio::select! {
                models = &mut loading, if is_loading => {
                    is_loading = false;
                    let models = models.map_err(|error| server_error("loading models")(error.into()))??;
                    // Set once, here.
                    let _ = server.models.set(models);
                    info!(address = %server.args.port, "ready");
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        drain(&server, &stop, serving).await;
        Ok(Status::Done)
    });
    // What is still being loaded is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    status
}

/// Takes no more requests and answers those that were taken.
async fn drain(server: &Server, stop: &watch::Sender<bool>, serving: JoinHandle<()>) {
    let timeout = Duration::from_secs(server.args.drain_timeout);
    info!(requests = server.in_flight.load(Ordering::Relaxed), "stopping: what was taken is answered");
    server.is_draining.store(true, Ordering::Relaxed);
    // Nobody listens if connections have failed.
    let _ = stop.send(true);
    if tokio::time::timeout(timeout, serving).await.is_err() {
        let left = server.in_flight.load(Ordering::Relaxed);
        warn!(requests = left, "not answered within --drain-timeout {} s", timeout.as_secs());
    }
}

fn start_logs(args: &ServeArgs) -> Result<(), Error> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(&args.log_level).map_err(|error| {
        Error::Flag { flag: "--log-level", value: args.log_level.clone(), reason: error.to_string() }
    })?;
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let started = match args.log_format {
        LogFormat::Text => logs.try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    started.map_err(|source| Error::Server { what: "logs", source })
}
