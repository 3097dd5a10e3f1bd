//! Connections: TCP or a Unix socket, with bounded patience, closed when they are done once the server stops.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::args::ServeArgs;
use crate::error::Error;

/// Where the server listens.
pub(crate) enum Listener {
    Tcp { listener: TcpListener, address: String },
    Unix { listener: UnixListener, path: PathBuf },
}

impl Listener {
    pub(crate) async fn bind(args: &ServeArgs) -> Result<Self, Error> {
        if let Some(path) = &args.uds_path {
            let failed = |source| Error::Listen { address: path.display().to_string(), source };
            // A socket that a process left behind when it was killed; one that is listened to answers.
            if std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            {
                std::fs::remove_file(path).map_err(failed)?;
            }
            let listener = UnixListener::bind(path).map_err(failed)?;
            return Ok(Self::Unix { listener, path: path.clone() });
        }
        Self::tcp(args.host, args.port).await
    }

    pub(crate) async fn tcp(host: IpAddr, port: u16) -> Result<Self, Error> {
        let failed = |source| Error::Listen { address: format!("{host}:{port}"), source };
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self::Tcp { listener, address: format!("http://{address}") })
    }

    /// For people, and for whoever asked for a free port.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp { address, .. } => address.clone(),
            Self::Unix { path, .. } => path.display().to_string(),
        }
    }

    /// Serves connections until `stopped`, then those that have a request until it is answered.
    pub(crate) async fn serve(
        self,
        router: Router,
        mut stopped: watch::Receiver<bool>,
        read_timeout: Duration,
    ) {
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            match accepted {
                Ok(stream) => serve_connection(stream, &router, &graceful, read_timeout),
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end give some back.
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if let Self::Unix { path, .. } = &self {
            // Gone already, perhaps.
            let _ = std::fs::remove_file(path);
        }
        drop(self);
        graceful.shutdown().await;
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                // Answers are small and whole.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix { listener, .. } => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

/// Either kind of connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn serve_connection(
    stream: Box<dyn Stream>,
    router: &Router,
    graceful: &GracefulShutdown,
    read_timeout: Duration,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(read_timeout);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(read_timeout).max_concurrent_streams(256);
    let service = TowerToHyperService::new(router.clone());
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(error, "a connection ended early");
        }
    });
}
