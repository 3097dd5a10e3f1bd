//! Streams of messages: several are answered at a time, in their order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt, unfold};
use opentelemetry::Context;
use opentelemetry::context::FutureExt;
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use super::super::problem::{Kind, Problem};
use super::super::{Server, max_stream_places};
use super::failed;

/// How long a message waits at most before it is tried again when the queue is full.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Answers messages in their order until one fails. What is not answered when nobody reads on is dropped.
pub(super) fn answers<T, U, F>(
    server: &Arc<Server>,
    requests: Streaming<T>,
    mut answer: impl FnMut(T) -> F + Send + 'static,
) -> impl Stream<Item = Result<U, Status>> + Send + 'static
where
    T: Send + 'static,
    U: Send + 'static,
    F: Future<Output = Result<U, Problem>> + Send + 'static,
{
    let span = Context::current();
    messages(Arc::clone(server), requests)
        .map(move |request| {
            // A task of its own: it goes on, and gives its place back, when the client is slow to read.
            let task = request.map(|request| Task(tokio::spawn(answer(request).with_context(span.clone()))));
            async move { task?.await }
        })
        .buffered(max_stream_places(&server.args))
}

/// Answers a message in a place of its own, for which it waits, as it does while the queue is full: an error would end the stream.
pub(super) async fn in_place<U, F: Future<Output = Result<U, Problem>>>(
    server: &Server,
    mut answer: impl FnMut() -> F,
) -> Result<U, Problem> {
    // Neither is ever closed.
    let _stream_place = server.stream_places.acquire().await.ok();
    let _place = server.places.acquire().await.ok();
    loop {
        match answer().await {
            Err(Problem { kind: Kind::Overloaded, retry_after, .. }) => {
                let pause = retry_after.unwrap_or(MAX_PAUSE).clamp(Duration::from_millis(10), MAX_PAUSE);
                tokio::time::sleep(pause).await;
            }
            answered => return answered,
        }
    }
}

/// The messages of a stream until it ends, or the server is stopped, which is its last item then.
fn messages<T: Send + 'static>(
    server: Arc<Server>,
    requests: Streaming<T>,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let draining = server.draining.subscribe();
    unfold(Some((server, requests, draining)), |state| async move {
        let (server, mut requests, mut draining) = state?;
        let next = tokio::select! {
            next = requests.message() => next.transpose()?,
            _ = draining.wait_for(|draining| *draining) => Err(match server.models() {
                Err(problem) => failed(problem),
                Ok(_) => Status::unavailable(""),
            }),
        };
        let left = next.is_ok().then_some((server, requests, draining));
        Some((next, left))
    })
}

/// A task that ends with whoever waits for it.
struct Task<U>(JoinHandle<Result<U, Problem>>);

impl<U> Future for Task<U> {
    type Output = Result<U, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|joined| match joined {
            Ok(answered) => answered.map_err(failed),
            Err(error) => Err(failed(Problem::new(Kind::Backend, error.to_string()))),
        })
    }
}

impl<U> Drop for Task<U> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
