//! What operators and their machines look at: metrics and probes, over HTTP/1, on an address of its
//! own.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use tokio::{net::TcpListener, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;

use super::connections::{Connection, ConnectionLimits, Places};
use crate::{
    catalog::Catalogs,
    metrics::METRICS,
    store::{Store, StoreError, StoreHealth},
};

/// The text format of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Pause after the system could not accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Operators and their machines are few.
const LIMITS: ConnectionLimits = ConnectionLimits { all: 64, of_an_address: 64 };

/// How often the data folder is measured.
const STORE_BYTES_INTERVAL: Duration = Duration::from_secs(30);

/// Longest wait for the lags of subscriptions, so that a scrape has the rest in time.
const LAGS_TIME_MAX: Duration = Duration::from_secs(2);

/// Answers `/metrics`, `/livez` and `/readyz`; not ready once `drain` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    store: Arc<dyn Store>,
    catalogs: Catalogs,
    drain: CancellationToken,
) -> io::Result<()> {
    let health = store.health();
    let ready = move || {
        let answer = match *health.borrow() {
            _ if drain.is_cancelled() => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            StoreHealth::Poisoned => {
                (StatusCode::SERVICE_UNAVAILABLE, "the store takes no more writes\n")
            }
            StoreHealth::Unreachable => {
                (StatusCode::SERVICE_UNAVAILABLE, "the store cannot be reached\n")
            }
            StoreHealth::Serving => (StatusCode::OK, "ready\n"),
        };
        async move { answer }
    };
    let router = Router::new()
        .route("/metrics", get(move || metrics(store.clone(), catalogs.clone())))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready));
    axum::serve(AdminListener { listener, places: Places::new(LIMITS) }, router).await
}

/// Connections of operators, bounded as those of the API are.
struct AdminListener {
    listener: TcpListener,
    places: Arc<Places>,
}

impl Listener for AdminListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(place) = self.places.take(address) {
                        return (Connection::plain(stream, place), address);
                    }
                }
                Err(_) => time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The lags of subscriptions are those of this moment; where the store does not tell them in time,
/// those that were told last.
async fn metrics(store: Arc<dyn Store>, catalogs: Catalogs) -> impl IntoResponse {
    if let Ok(Ok(lags)) = time::timeout(LAGS_TIME_MAX, lags(&*store, &catalogs)).await {
        METRICS.subscription_lags(lags.into_iter());
    }
    ([(CONTENT_TYPE, OPEN_METRICS)], METRICS.text())
}

/// How far each subscription is behind: its title, its name, and how many completions.
async fn lags(
    store: &dyn Store,
    catalogs: &Catalogs,
) -> Result<Vec<(String, String, u64)>, StoreError> {
    let mut lags = Vec::new();
    for title in catalogs.all().keys() {
        let told = store.subscriptions(title).await?.into_iter();
        lags.extend(
            told.map(|it| (title.as_str().to_owned(), it.name.as_str().to_owned(), it.lag)),
        );
    }
    Ok(lags)
}

/// Keeps the size of the data folder up to date.
pub(super) async fn measure(data: PathBuf) {
    let mut interval = time::interval(STORE_BYTES_INTERVAL);
    loop {
        interval.tick().await;
        let data = data.clone();
        if let Ok(Ok(bytes)) = spawn_blocking(move || folder_bytes(&data)).await {
            METRICS.store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
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
