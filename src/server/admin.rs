//! What operators and their machines look at: metrics and probes, over HTTP/1, on an address of its
//! own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::watch, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;

use crate::{metrics::METRICS, store::StoreHealth};

/// The text format of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How often the data folder is measured.
const STORE_BYTES_INTERVAL: Duration = Duration::from_secs(30);

/// Answers `/metrics`, `/livez` and `/readyz`; not ready once `drain` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    health: watch::Receiver<StoreHealth>,
    drain: CancellationToken,
) -> io::Result<()> {
    let ready = move || {
        let answer = match *health.borrow() {
            _ if drain.is_cancelled() => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            StoreHealth::Poisoned => {
                (StatusCode::SERVICE_UNAVAILABLE, "the store takes no more writes\n")
            }
            StoreHealth::Serving => (StatusCode::OK, "ready\n"),
        };
        async move { answer }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready));
    axum::serve(listener, router).await
}

async fn metrics() -> impl IntoResponse {
    ([(CONTENT_TYPE, OPEN_METRICS)], METRICS.text())
}

/// Keeps the gauges up to date that nobody else does.
pub(super) async fn measure(data: PathBuf, mut health: watch::Receiver<StoreHealth>) {
    let mut interval = time::interval(STORE_BYTES_INTERVAL);
    loop {
        tokio::select! {
            _ = interval.tick() => {
                let data = data.clone();
                if let Ok(Ok(bytes)) = spawn_blocking(move || folder_bytes(&data)).await {
                    METRICS.store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
            }
            Ok(()) = health.changed() => {}
        }
        let is_poisoned = *health.borrow_and_update() == StoreHealth::Poisoned;
        METRICS.store_poisoned.set(i64::from(is_poisoned));
    }
}

fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
