//! The services of `tei.v1`.

use std::future::Future;
use std::sync::Arc;

use futures_util::StreamExt;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::super::Server;
use super::super::problem::{Kind, Problem};
use super::failed;
use super::message::{Call, respond, u32_of};
use super::stream::{answers, in_place};
use super::tei::{
    DecodeRequest, DecodeResponse, EmbedAllRequest, EmbedAllResponse, EmbedRequest, EmbedResponse,
    EmbedSparseRequest, EmbedSparseResponse, EncodeRequest, EncodeResponse, InfoRequest, InfoResponse,
    ModelType, PredictPairRequest, PredictRequest, PredictResponse, RerankRequest, RerankResponse,
    RerankStreamRequest, embed_server, info_server, predict_server, rerank_server, tokenize_server,
};

#[derive(Clone)]
pub(super) struct Tei(pub(super) Arc<Server>);

impl Tei {
    fn call<T>(&self, request: &Request<T>) -> Result<Call, Status> {
        Call::of(&self.0, request).map_err(failed)
    }

    /// Answers every message of a stream as if it had come alone.
    fn each<T, U, F>(
        &self,
        request: Request<Streaming<T>>,
        answer: impl Fn(Call, T) -> F + Copy + Send + Sync + 'static,
    ) -> Result<Response<BoxStream<U>>, Status>
    where
        T: Clone + Send + Sync + 'static,
        U: Send + 'static,
        F: Future<Output = Result<U, Problem>> + Send + 'static,
    {
        let call = self.call(&request)?;
        let answers = answers(&self.0, request.into_inner(), move |message: T| {
            let call = call.begun_now();
            async move { in_place(&call.server, || answer(call.clone(), message.clone())).await }
        });
        Ok(Response::new(answers.boxed()))
    }
}

#[tonic::async_trait]
impl info_server::Info for Tei {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let call = self.call(&request)?;
        let model = call.model().map_err(failed)?;
        let (engine, args) = (model.engine(), &self.0.args);
        let model_type = if engine.is_reranker() { ModelType::Reranker } else { ModelType::Embedding };
        Ok(Response::new(InfoResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha: None,
            docker_label: None,
            model_id: model.id.clone(),
            model_sha: model.revision.clone(),
            model_dtype: model.dtype().to_owned(),
            model_type: model_type.into(),
            max_concurrent_requests: u32_of(args.max_concurrent_requests.get()),
            max_input_length: u32_of(engine.max_length()),
            max_batch_tokens: u32_of(engine.batch_tokens()),
            max_batch_requests: None,
            max_client_batch_size: u32_of(args.max_client_batch_size.get()),
            tokenization_workers: u32_of(model.queue.tokenize_threads()),
        }))
    }
}

#[tonic::async_trait]
impl embed_server::Embed for Tei {
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        respond(self.call(&request)?.embed(request.into_inner()).await)
    }

    async fn embed_stream(
        &self,
        request: Request<Streaming<EmbedRequest>>,
    ) -> Result<Response<BoxStream<EmbedResponse>>, Status> {
        self.each(request, async |call: Call, message| Ok(call.embed(message).await?.0))
    }

    async fn embed_sparse(
        &self,
        _: Request<EmbedSparseRequest>,
    ) -> Result<Response<EmbedSparseResponse>, Status> {
        Err(only_pooled())
    }

    async fn embed_sparse_stream(
        &self,
        _: Request<Streaming<EmbedSparseRequest>>,
    ) -> Result<Response<BoxStream<EmbedSparseResponse>>, Status> {
        Err(only_pooled())
    }

    async fn embed_all(&self, _: Request<EmbedAllRequest>) -> Result<Response<EmbedAllResponse>, Status> {
        Err(only_pooled())
    }

    async fn embed_all_stream(
        &self,
        _: Request<Streaming<EmbedAllRequest>>,
    ) -> Result<Response<BoxStream<EmbedAllResponse>>, Status> {
        Err(only_pooled())
    }
}

fn only_pooled() -> Status {
    Status::unimplemented("this server gives one dense vector for each text: call Embed")
}

#[tonic::async_trait]
impl predict_server::Predict for Tei {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        respond(self.call(&request)?.predict(alone(request.into_inner())).await)
    }

    async fn predict_pair(
        &self,
        request: Request<PredictPairRequest>,
    ) -> Result<Response<PredictResponse>, Status> {
        respond(self.call(&request)?.predict(request.into_inner()).await)
    }

    async fn predict_stream(
        &self,
        request: Request<Streaming<PredictRequest>>,
    ) -> Result<Response<BoxStream<PredictResponse>>, Status> {
        self.each(request, async |call: Call, message| Ok(call.predict(alone(message)).await?.0))
    }

    async fn predict_pair_stream(
        &self,
        request: Request<Streaming<PredictPairRequest>>,
    ) -> Result<Response<BoxStream<PredictResponse>>, Status> {
        self.each(request, async |call: Call, message| Ok(call.predict(message).await?.0))
    }
}

/// A text without another: the error says what is missing.
fn alone(request: PredictRequest) -> PredictPairRequest {
    let PredictRequest { inputs, truncate, raw_scores, truncation_direction } = request;
    PredictPairRequest { inputs: vec![inputs], truncate, raw_scores, truncation_direction }
}

#[tonic::async_trait]
impl rerank_server::Rerank for Tei {
    async fn rerank(&self, request: Request<RerankRequest>) -> Result<Response<RerankResponse>, Status> {
        respond(self.call(&request)?.rerank(request.into_inner()).await)
    }

    async fn rerank_stream(
        &self,
        request: Request<Streaming<RerankStreamRequest>>,
    ) -> Result<Response<RerankResponse>, Status> {
        let call = self.call(&request)?;
        let (of_texts, mut first) = (call.clone(), None);
        let answers = answers(&self.0, request.into_inner(), move |message: RerankStreamRequest| {
            let (raw_scores, return_text) = *first.get_or_insert((message.raw_scores, message.return_text));
            let call = of_texts.begun_now();
            async move {
                let score =
                    in_place(&call.server, || call.clone().score(message.clone(), raw_scores)).await?;
                Ok((score, return_text.then_some(message.text)))
            }
        });
        let mut answers = std::pin::pin!(answers);
        let (mut scores, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(answered) = answers.next().await {
            let (score, text) = answered?;
            scores.push(score);
            bytes += text.as_ref().map_or(0, String::len);
            texts.extend(text);
            let limit = self.0.args.payload_limit;
            if bytes > limit {
                let message = format!("texts to return are larger than {limit} bytes (--payload-limit)");
                return Err(failed(Problem::new(Kind::TooLarge, message)));
            }
        }
        respond(call.rank(scores, texts))
    }
}

#[tonic::async_trait]
impl tokenize_server::Tokenize for Tei {
    async fn tokenize(&self, request: Request<EncodeRequest>) -> Result<Response<EncodeResponse>, Status> {
        let call = self.call(&request)?;
        call.tokenize(request.get_ref()).map(Response::new).map_err(failed)
    }

    async fn tokenize_stream(
        &self,
        request: Request<Streaming<EncodeRequest>>,
    ) -> Result<Response<BoxStream<EncodeResponse>>, Status> {
        self.each(request, async |call: Call, message| call.tokenize(&message))
    }

    async fn decode(&self, request: Request<DecodeRequest>) -> Result<Response<DecodeResponse>, Status> {
        let call = self.call(&request)?;
        call.decode(request.get_ref()).map(Response::new).map_err(failed)
    }

    async fn decode_stream(
        &self,
        request: Request<Streaming<DecodeRequest>>,
    ) -> Result<Response<BoxStream<DecodeResponse>>, Status> {
        self.each(request, async |call: Call, message| call.decode(&message))
    }
}
