//! gRPC as a client of text-embeddings-inference sees it, over a channel: the library's scores to the bit, codes, streams.

mod calls;
mod operation;

use std::fmt::Debug;

use futures_util::stream::{self, Stream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::{Running, serve};
use tei::embed_client::EmbedClient;
use tei::info_client::InfoClient;
use tei::predict_client::PredictClient;
use tei::rerank_client::RerankClient;
use tei::tokenize_client::TokenizeClient;
use tei::{PredictPairRequest, RerankRequest};

#[allow(clippy::pedantic, unreachable_pub, missing_docs, unused_qualifications)]
mod tei {
    tonic::include_proto!("tei.v1");
}

/// A server, and a channel to its gRPC.
struct Grpc {
    server: Running,
    /// `http://127.0.0.1:PORT`
    address: String,
    channel: Channel,
}

async fn grpc(models: &[&str], args: &[&str]) -> Grpc {
    let server = serve(models, &[&["--grpc-port=0"], args].concat());
    let address = server.logged("listening for gRPC")["address"].as_str().unwrap().to_owned();
    let channel = Endpoint::from_shared(address.clone()).unwrap().connect().await.unwrap();
    Grpc { server, address, channel }
}

impl Grpc {
    fn rerank(&self) -> RerankClient<Channel> {
        RerankClient::new(self.channel.clone())
    }

    fn predict(&self) -> PredictClient<Channel> {
        PredictClient::new(self.channel.clone())
    }

    fn embed(&self) -> EmbedClient<Channel> {
        EmbedClient::new(self.channel.clone())
    }

    fn tokenize(&self) -> TokenizeClient<Channel> {
        TokenizeClient::new(self.channel.clone())
    }

    fn info(&self) -> InfoClient<Channel> {
        InfoClient::new(self.channel.clone())
    }
}

/// A call with the options that messages have no fields for.
fn with_options<T>(message: T, options: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("outcrop-options", options.parse().unwrap());
    request
}

fn pair(query: &str, passage: &str) -> PredictPairRequest {
    PredictPairRequest {
        inputs: vec![query.to_owned(), passage.to_owned()],
        truncate: true,
        ..Default::default()
    }
}

/// A query and as many passages, of sixty words each.
fn many(texts: usize) -> RerankRequest {
    let texts = (0..texts).map(|i| format!("passage {i} {}", "word ".repeat(60))).collect();
    RerankRequest { query: "what is panda?".to_owned(), texts, truncate: true, ..Default::default() }
}

/// A call with two texts below a caller's span.
pub(super) async fn rerank_once(address: &str, parent: &str) {
    let channel = Endpoint::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
    let mut request = Request::new(many(2));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    assert_eq!(RerankClient::new(channel).rerank(request).await.unwrap().into_inner().ranks.len(), 2);
}

#[track_caller]
fn refused<T: Debug>(answer: Result<T, Status>, code: Code, words: &str) -> Status {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "no {words:?} in {status:?}");
    status
}

/// The field that a refusal blames.
fn field(status: &Status) -> Option<String> {
    Some(status.get_details_bad_request()?.field_violations.first()?.field.clone())
}

/// What is sent into a channel, as the messages of a call.
fn from<T: Send + 'static>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
}
