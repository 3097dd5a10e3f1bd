//! `outcrop serve`: models over HTTP and gRPC.
//!
//! A request is read whole, taken apart field by field (`fields`), answered by its dialect (`dialects`, or `grpc`) through what all have in
//! common (`call`), and waits in its model's queue, which is the library's.

pub(crate) mod args;
mod cache;
mod call;
mod dialects;
mod fields;
mod grpc;
mod http;
mod keys;
mod listen;
mod metrics;
mod models;
mod page;
mod problem;
mod traces;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use self::args::{LogFormat, ServeArgs};
use self::keys::Keys;
use self::listen::Listener;
use self::models::Models;
use self::problem::{Kind, Problem};
use self::traces::Traces;
use crate::Status;
use crate::error::Error;

/// What all requests share.
pub(crate) struct Server {
    pub(crate) args: ServeArgs,
    /// Once they are loaded and warm.
    models: OnceLock<Models>,
    /// Whether the server has been told to stop.
    draining: watch::Sender<bool>,
    /// Whether a GPU has stopped, which only a new process can use again.
    is_lost: AtomicBool,
    /// A place for each request that may be read or answered at a time.
    places: Arc<Semaphore>,
    /// Places that messages of streams may take, which wait for them: half of all, so that other requests always find some.
    stream_places: Semaphore,
    pub(crate) keys: Keys,
    prometheus: PrometheusHandle,
    pub(crate) traces: Option<Traces>,
}

impl Server {
    /// A GPU has stopped: from now on the process says that it wants to be started again.
    pub(crate) fn lost(&self) {
        if !self.is_lost.swap(true, Ordering::Relaxed) {
            error!("a GPU has stopped: the process has to be started again");
        }
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
        if *self.draining.borrow() {
            return Err(Problem::new(Kind::NotReady, "the server is shutting down: ask another one"));
        }
        self.check_health()?;
        self.loaded()
    }

    /// The models for a request that has been taken, which is answered even if the server has been told to stop since.
    fn loaded(&self) -> Result<&Models, Problem> {
        self.models.get().ok_or_else(|| Problem {
            retry_after: Some(Duration::from_secs(1)),
            ..Problem::new(Kind::NotReady, "models are being loaded")
        })
    }

    /// A place for a request, as long as what is returned lives.
    fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let limit = self.args.max_concurrent_requests;
            let message = format!("{limit} requests are being answered (--max-concurrent-requests)");
            Problem { retry_after: Some(Duration::from_secs(1)), ..Problem::new(Kind::Overloaded, message) }
        })
    }

    /// Requests that are being read or answered.
    fn in_flight(&self) -> usize {
        max_places(&self.args) - self.places.available_permits()
    }
}

fn max_places(args: &ServeArgs) -> usize {
    args.max_concurrent_requests.get().min(Semaphore::MAX_PERMITS)
}

/// Messages of a stream that are answered at a time.
fn max_stream_places(args: &ServeArgs) -> usize {
    max_places(args).div_ceil(2)
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
    let traces = {
        let _runtime = runtime.enter();
        Traces::start(&args)?
    };
    let server = Arc::new(Server {
        models: OnceLock::new(),
        draining: watch::Sender::new(false),
        is_lost: AtomicBool::new(false),
        places: Arc::new(Semaphore::new(max_places(&args))),
        stream_places: Semaphore::new(max_stream_places(&args)),
        args,
        keys,
        prometheus,
        traces,
    });
    let status = runtime.block_on(async {
        // Listening comes first: whoever started the process learns at once that it lives.
        let listener = Listener::bind(&server.args).await?;
        info!(address = listener.address(), "listening");
        let read_timeout = Duration::from_secs(server.args.read_timeout);
        let serve = |listener: Listener, router| {
            tokio::spawn(listener.serve(router, server.draining.subscribe(), read_timeout))
        };
        let mut serving = vec![serve(listener, http::router(Arc::clone(&server), cors))];
        if let Some(port) = server.args.grpc_port {
            let listener = Listener::tcp(server.args.host, port).await?;
            info!(address = listener.address(), "listening for gRPC");
            let router = grpc::router(&server).map_err(server_error("gRPC"))?;
            serving.push(serve(listener, router));
        }
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
                    info!("ready");
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        drain(&server, serving).await;
        Ok(Status::Done)
    });
    if let Some(traces) = &server.traces {
        traces.stop();
    }
    // What is still being loaded is not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    status
}

/// Takes no more requests and answers those that were taken.
async fn drain(server: &Server, serving: Vec<JoinHandle<()>>) {
    let timeout = Duration::from_secs(server.args.drain_timeout);
    info!(requests = server.in_flight(), "stopping: what was taken is answered");
    server.draining.send_replace(true);
    if tokio::time::timeout(timeout, join_all(serving)).await.is_err() {
        let left = server.in_flight();
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
