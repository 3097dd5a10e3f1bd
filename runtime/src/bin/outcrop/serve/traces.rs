//! Traces: where the time of each request went, told to an OpenTelemetry collector if there is one.

use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use outcrop::queue::Times;
use tracing::warn;

use super::args::ServeArgs;
use super::http::Protocol;
use crate::error::Error;

/// The way to a collector.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Traces {
    /// Nothing unless the arguments name a collector. The async runtime has to be entered: connections live there.
    pub(crate) fn start(args: &ServeArgs) -> Result<Option<Self>, Error> {
        let Some(endpoint) = &args.otlp_endpoint else { return Ok(None) };
        let failed =
            |reason: String| Error::Flag { flag: "--otlp-endpoint", value: endpoint.clone(), reason };
        if !endpoint.starts_with("http://") {
            return Err(failed(
                "not http://HOST:PORT; TLS is left to a collector beside the server".to_owned(),
            ));
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.map_err(|error| failed(error.to_string()))?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder().with_service_name(args.otlp_service_name.clone()).build())
            .build();
        let tracer = provider.tracer("outcrop");
        Ok(Some(Self { provider, tracer, propagator: TraceContextPropagator::new() }))
    }

    /// The span of a request, below its caller's if the headers name one. It ends when the last copy of it is dropped.
    pub(crate) fn request(&self, protocol: Protocol, path: &str, id: &str, headers: &HeaderMap) -> Context {
        let parent = self.propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let attributes = [
            KeyValue::new(protocol.path_attribute(), path.to_owned()),
            KeyValue::new("outcrop.request_id", id.to_owned()),
        ];
        let span = self.tracer.span_builder(path.trim_start_matches('/').to_owned());
        let span = span.with_kind(SpanKind::Server).with_attributes(attributes);
        parent.with_span(span.start_with_context(&self.tracer, &parent))
    }

    /// Where the time of the current request went: of several texts the means, one behind the other.
    pub(crate) fn stages(&self, times: &Times, texts: usize) {
        let context = Context::current();
        if !context.span().span_context().is_sampled() {
            return;
        }
        let mut start = SystemTime::now() - times.total;
        for (name, time) in [("tokenize", times.tokenize), ("queue", times.queue), ("run", times.run)] {
            let span = self.tracer.span_builder(name).with_start_time(start);
            let texts = i64::try_from(texts).unwrap_or(i64::MAX);
            let span = span.with_attributes([KeyValue::new("outcrop.texts", texts)]);
            start += time;
            span.start_with_context(&self.tracer, &context).end_with_timestamp(start);
        }
    }

    /// Sends what is left.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(Duration::from_secs(5)) {
            warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Notes how a request was answered.
pub(crate) fn answered(context: &Context, protocol: Protocol, status: u16, is_fault: bool) {
    let span = context.span();
    span.set_attribute(KeyValue::new(protocol.status_attribute(), i64::from(status)));
    if is_fault {
        span.set_status(Status::error(""));
    }
}
