//! `grpc.health.v1`: which services would answer now.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::unfold;
use tonic::codegen::BoxStream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health as HealthService;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::super::Server;
use super::super::models::Model;
use super::{EmbedServer, InfoServer, PredictServer, RerankServer, Tei, TokenizeServer};

/// How soon whoever watches learns of a change.
const INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Health(pub(super) Arc<Server>);

/// Whether a service, or the server as a whole (its name is empty then), would answer; nothing if there is no such service.
fn state(server: &Server, service: &str) -> Option<ServingStatus> {
    let can: fn(&Model) -> bool = match service {
        "" | InfoServer::<Tei>::NAME | TokenizeServer::<Tei>::NAME | RerankServer::<Tei>::NAME => |_| true,
        PredictServer::<Tei>::NAME => |model| model.engine().is_reranker(),
        EmbedServer::<Tei>::NAME => |model| !model.engine().is_reranker(),
        _ => return None,
    };
    let answers = server.models().is_ok_and(|models| models.iter().any(can));
    Some(if answers { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn response(state: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: state.into() }
}

#[tonic::async_trait]
impl HealthService for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let state = state(&self.0, service);
        let state = state.ok_or_else(|| Status::not_found(format!("there is no service {service}")))?;
        Ok(Response::new(response(state)))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (server, service) = (Arc::clone(&self.0), request.into_inner().service);
        let states = unfold((server, service, None), |(server, service, told)| async move {
            let mut draining = server.draining.subscribe();
            loop {
                let is_draining = *draining.borrow_and_update();
                let now = state(&server, &service).unwrap_or(ServingStatus::ServiceUnknown);
                if told != Some(now) {
                    return Some((Ok(response(now)), (server, service, Some(now))));
                }
                // Nothing comes after that, and the connection can be closed.
                if is_draining {
                    return None;
                }
                // Either way it is looked at again.
                let _ = tokio::time::timeout(INTERVAL, draining.changed()).await;
            }
        });
        Ok(Response::new(states.boxed()))
    }
}
