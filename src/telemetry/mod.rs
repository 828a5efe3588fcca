//! What the process tells about itself: the log, to standard error, for people or for machines; and
//! traces, to a collector.

mod traces;

use std::io;

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::Settings;

use traces::is_trace;
pub use traces::{Traces, TracesError, answered, request_span};

type AnyLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts logging and tracing for this process. Traces go on until what this gives is dropped,
/// which sends those that are left.
///
/// # Errors
///
/// [`TracesError`] where traces are asked for and cannot be sent.
pub fn start(settings: &Settings) -> Result<Option<Traces>, TracesError> {
    use crate::config::LogFormat::{Human, Json};

    let filter = EnvFilter::try_new(&settings.log_filter);
    let filter = filter.unwrap_or_else(|_| EnvFilter::new("info"));
    // Spans of requests are for traces; the log has events.
    let filter = filter.and(filter_fn(|metadata| !is_trace(metadata)));
    let log = fmt::layer().with_writer(io::stderr);
    let log: AnyLayer = match settings.log_format {
        Human => log.with_ansi(false).with_filter(filter).boxed(),
        Json => log.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let mut layers = vec![log];
    let traces = settings.otlp_endpoint.as_deref().map(Traces::start).transpose()?;
    let traces = traces.map(|(traces, layer)| {
        layers.push(layer);
        traces
    });
    if let Err(error) = tracing_subscriber::registry().with(layers).try_init() {
        eprintln!("logging was started already: {error}");
    }
    Ok(traces)
}
