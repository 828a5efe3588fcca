//! Traces of requests, sent over OTLP to an OpenTelemetry collector. With the feature `otel` only:
//! without it nothing of it is in the program.
//!
//! One span a request, named and attributed by OpenTelemetry's conventions for RPC
//! (<https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>), below the caller's where it sends a
//! `traceparent`. No id of a title or player is in it. Which requests are sampled, and how many
//! spans wait, the SDK's own variables say (`OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`).

use thiserror::Error;
use tracing::Metadata;

/// What spans of requests are filed under.
const TARGET: &str = "accolade::traces";

/// Why traces cannot be sent.
#[derive(Debug, Error)]
#[error("traces cannot be sent: {0}; mend `otlp_endpoint`, or leave it out")]
pub struct TracesError(String);

/// Whether something is for traces, and not for the log.
pub(super) fn is_trace(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET
}

#[cfg(not(feature = "otel"))]
pub use absent::{Traces, answered, request_span};
#[cfg(feature = "otel")]
pub use present::{Traces, answered, request_span};

#[cfg(not(feature = "otel"))]
mod absent {
    use http::HeaderMap;
    use tracing::Span;

    use super::TracesError;
    use crate::telemetry::AnyLayer;

    /// There are none.
    #[derive(Debug)]
    pub enum Traces {}

    impl Traces {
        pub(in crate::telemetry) fn start(_: &str) -> Result<(Self, AnyLayer), TracesError> {
            Err(TracesError("this program was built without the feature `otel`".to_owned()))
        }
    }

    /// No span.
    #[must_use]
    pub fn request_span(_path: &str, _headers: &HeaderMap) -> Span {
        Span::none()
    }

    /// Does nothing.
    pub fn answered(_span: &Span, _code: &'static str) {}
}

#[cfg(feature = "otel")]
mod present {
    use http::HeaderMap;
    use opentelemetry::{
        KeyValue,
        propagation::{Extractor, TextMapPropagator},
        trace::TracerProvider,
    };
    use opentelemetry_otlp::{SpanExporter, WithExportConfig};
    use opentelemetry_sdk::{
        Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider,
    };
    use tracing::{Span, field::Empty, info_span};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::{Layer, filter::filter_fn};

    use super::{TARGET, TracesError, is_trace};
    use crate::telemetry::AnyLayer;

    /// Sends spans, and when dropped, those that are left.
    #[derive(Debug)]
    pub struct Traces(SdkTracerProvider);

    impl Traces {
        /// Needs a runtime: the exporter's connection lives on it.
        pub(in crate::telemetry) fn start(endpoint: &str) -> Result<(Self, AnyLayer), TracesError> {
            let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
            let exporter = exporter.map_err(|error| TracesError(error.to_string()))?;
            let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
            let resource =
                Resource::builder().with_service_name("accolade").with_attribute(version).build();
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(resource)
                .build();
            let layer = tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("accolade"))
                .with_location(false)
                .with_threads(false)
                .with_filter(filter_fn(is_trace))
                .boxed();
            Ok((Self(provider), layer))
        }
    }

    impl Drop for Traces {
        fn drop(&mut self) {
            if let Err(error) = self.0.shutdown() {
                tracing::warn!(%error, "some traces were not sent");
            }
        }
    }

    /// Reads `traceparent` and `tracestate`.
    struct Headers<'a>(&'a HeaderMap);

    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key)?.to_str().ok()
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(http::HeaderName::as_str).collect()
        }
    }

    /// The span of a request to a method.
    #[must_use]
    pub fn request_span(method: &str, headers: &HeaderMap) -> Span {
        let span = info_span!(
            target: TARGET,
            "request",
            otel.name = method,
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method,
            rpc.response.status_code = Empty,
        );
        if !span.is_disabled() {
            let parent = TraceContextPropagator::new().extract(&Headers(headers));
            // It fails only where no traces are sent.
            let _ = span.set_parent(parent);
        }
        span
    }

    /// Notes how a request was answered.
    pub fn answered(span: &Span, code: &'static str) {
        span.record("rpc.response.status_code", code);
    }
}
