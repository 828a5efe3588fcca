//! The server: what listens, within which limits, and how it stops.

mod admin;
mod announce;
mod codes;
mod connections;
mod cors;
mod files;
mod linger;
mod refusals;
mod reload;
mod revocable;
mod tls;

use std::{io, net::SocketAddr, sync::Arc};

use thiserror::Error;
use tokio::{net::TcpListener, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;
use tower::{
    layer::util::{Identity, Stack},
    util::{Either, option_layer},
};
use tower_http::cors::CorsLayer;

use self::{
    connections::ConnectionLimits,
    linger::LingerLayer,
    refusals::RefusalsLayer,
    reload::{CatalogFile, CertificateFiles, TokensFile},
};
use crate::{
    access::Access,
    catalog::{self, CatalogFileError, Catalogs},
    clock::{Clock, SystemClock},
    config::Settings,
    connect::ConnectLayer,
    domain::Title,
    feed::retain,
    metrics::METRICS,
    proto::{
        DESCRIPTORS,
        completion_server::completion_service_server::{
            CompletionServiceServer as CompletionServer, SERVICE_NAME as COMPLETION_SERVICE,
        },
        v1::{
            achievement_storage_service_server::{
                AchievementStorageServiceServer as StorageServer, SERVICE_NAME as STORAGE_SERVICE,
            },
            admin_service_server::{
                AdminServiceServer as AdminServer, SERVICE_NAME as ADMIN_SERVICE,
            },
            catalog_service_server::{
                CatalogServiceServer as CatalogServer, SERVICE_NAME as CATALOG_SERVICE,
            },
        },
    },
    service::{AdminApi, CatalogApi, CompletionApi, Doors, StorageApi, StorageLimits},
    store::{
        CatalogError, Store, StoreError, StoreHealth,
        jetstream::{EngineError, JetStreamStore},
        sled::{OpenError, SledStore},
    },
};

/// What health is asked about; "" is the server as a whole.
const HEALTH_SERVICES: [&str; 5] =
    ["", STORAGE_SERVICE, COMPLETION_SERVICE, CATALOG_SERVICE, ADMIN_SERVICE];

/// Largest catalogue as a message: its texts, with room for the rest.
const CATALOG_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Largest question about health, which whoever reaches the server may ask.
const HEALTH_MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Largest sum of a request's headers.
const HEADER_BYTES_MAX: u32 = 8 << 10;

/// What a client may send on a stream before it is read. It holds back who sends faster than sets
/// are stored. What is a little larger than a request may be by default fits: some clients keep
/// what they could not send of one that was refused.
const STREAM_WINDOW_BYTES: u32 = 128 << 10;

/// What a client may send on a connection before it is read. `h2` ends a connection whose unread
/// frames of less than 256 bytes lack half of this to that size, against floods of small frames. A
/// set is such a frame: about 19,000 sets of 40 bytes may wait, on several streams that are full.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Streams that a client has reset and that still wait to be accepted, before the connection is
/// closed: the defence against rapid resets (CVE-2023-44487).
const PENDING_RESET_STREAMS_MAX: usize = 100;

/// Streams that this side has reset for protocol errors, before the connection is closed: the
/// defence against provoked resets (CVE-2025-8671).
const LOCAL_RESET_STREAMS_MAX: usize = 1024;

/// How often the old ends of feeds are trimmed; on a cluster each server does so, and asks for each
/// title over the network.
const RETENTION_INTERVAL: time::Duration = time::Duration::from_secs(1);
const RETENTION_INTERVAL_ON_A_CLUSTER: time::Duration = time::Duration::from_secs(30);

pub use self::{
    reload::{TokensFileError, read_tokens},
    tls::{TlsError, check as check_tls},
};

/// Why the server did not start or did not go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The data folder could not be opened.
    #[error("the data folder {0}")]
    Open(#[from] OpenError),
    /// The cluster cannot be used.
    #[error("the cluster {0}")]
    Engine(#[from] EngineError),
    /// The store failed while starting.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A catalogue could not be stored.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Catalogue files are wrong; all of them are named.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    CatalogFiles(Vec<CatalogFileError>),
    /// Certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file of tokens is wrong.
    #[error(transparent)]
    Tokens(#[from] TokensFileError),
    /// The address could not be taken.
    #[error("cannot listen on {address}: {source}; pass another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The transport failed.
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A server that has opened everything and listens, but does not answer yet.
pub struct Server {
    settings: Settings,
    store: Arc<dyn Store>,
    catalogs: Catalogs,
    listener: TcpListener,
    admin_listener: Option<TcpListener>,
    access: Arc<Access>,
    certificates: Option<CertificateFiles>,
    files: Vec<CatalogFile>,
    tokens_file: Option<TokensFile>,
}

// === impl Server ===

impl Server {
    /// Opens the store, brings the catalogues up to date and binds the address.
    ///
    /// # Errors
    ///
    /// [`ServeError`], whose text says what to do.
    pub async fn open(settings: Settings) -> Result<Self, ServeError> {
        // What can be wrong is looked at before the store is opened, which may take long.
        let certificates = match settings.tls.clone() {
            Some(files) => Some(CertificateFiles::open(files).await?),
            None => None,
        };
        let mut tokens_file = settings.tokens.clone().map(TokensFile::new);
        let tokens = match &mut tokens_file {
            Some(file) => Some(file.load().await?),
            None => None,
        };
        let access = Arc::new(Access::new(tokens, settings.title_quota));
        files::raise_limit(settings.connections_max);

        // A cluster is never new: whoever lays it out is not who starts a server.
        let is_new = settings.store.is_none() && !settings.data.join("store").exists();
        let store = open_store(&settings).await?;
        let catalogs = Catalogs::open(store.clone()).await?;

        let files = settings.catalogs.iter();
        let files = files.map(|(title, path)| CatalogFile::new(title.clone(), path.clone()));
        let mut files: Vec<_> = files.collect();
        let mut mistakes = Vec::new();
        for file in &mut files {
            match file.load().await {
                Ok(catalog) => {
                    let applied = catalogs.apply(file.title(), catalog, None, false).await?;
                    reload::log(file.title(), &applied);
                }
                Err(error) => mistakes.push(error),
            }
        }
        if !mistakes.is_empty() {
            return Err(ServeError::CatalogFiles(mistakes));
        }
        // Not in a folder that has lost its titles: whoever looks must see that they are gone.
        if is_new && catalogs.all().is_empty() {
            let title = Title::parse("demo").expect("`demo` is an id");
            catalogs.apply(&title, catalog::demo(), None, false).await?;
        }

        let address = settings.listen;
        let listener = listen(address).await?;
        let admin_listener = match settings.admin_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let admin = admin_listener.as_ref().and_then(|it| it.local_addr().ok());
        tracing::info!(
            address = %listener.local_addr().unwrap_or(address),
            admin = admin.map(tracing::field::display),
            data = settings.place(),
            titles = catalogs.all().len(),
            version = env!("CARGO_PKG_VERSION"),
            tls = certificates.is_some(),
            tokens = tokens_file.is_some(),
            "listening"
        );
        Ok(Self {
            settings,
            store,
            catalogs,
            listener,
            admin_listener,
            access,
            certificates,
            files,
            tokens_file,
        })
    }

    /// The text to print once the server listens: where, and what to try.
    #[must_use]
    pub fn announcement(&self) -> String {
        let address = self.listener.local_addr().unwrap_or(self.settings.listen);
        let admin = self.admin_listener.as_ref().and_then(|it| it.local_addr().ok());
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        announce::text(scheme, address, admin, &self.settings.place(), &self.catalogs.all())
    }

    /// Answers until `stop` is cancelled, then finishes what is open, within the time the settings
    /// give. True where everything was finished.
    ///
    /// # Errors
    ///
    /// [`ServeError::Transport`] where listening fails.
    pub async fn run(self, stop: CancellationToken) -> Result<bool, ServeError> {
        let Self { settings, store, catalogs, listener, admin_listener, .. } = self;
        let Self { access, certificates, files, tokens_file, .. } = self;
        let tls = certificates.as_ref().map(CertificateFiles::tls);
        let drain = CancellationToken::new();
        let (health, health_server) = tonic_health::server::health_reporter();
        report(&health, true).await;

        let (mut tasks, mut following) = (JoinSet::new(), JoinSet::new());
        following.spawn(follow_health(store.clone(), health.clone()));
        tasks.spawn(trim_feeds(store.clone(), catalogs.clone(), settings.clone()));
        tasks.spawn(catalogs.clone().follow());
        // Apart from each other: none waits for what another waits for.
        let poll = settings.reload_poll;
        tasks.spawn(reload::follow_catalogs(files, catalogs.clone(), poll));
        if let Some(file) = tokens_file {
            tasks.spawn(reload::follow_tokens(file, access.clone(), poll));
        }
        if let Some(files) = certificates {
            tasks.spawn(reload::follow_certificates(files, poll));
        }
        if let Some(listener) = admin_listener {
            if settings.store.is_none() {
                tasks.spawn(admin::measure(settings.data.clone()));
            }
            let serving = admin::serve(listener, store.clone(), catalogs.clone(), drain.clone());
            tasks.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "metrics and probes are no longer served");
                }
            });
        }

        let limits = StorageLimits {
            extra_bytes: settings.extra_bytes_max,
            response_bytes: settings.response_bytes_max,
            stream_sets: settings.stream_sets_max,
        };
        let from_files = settings.catalogs.keys().cloned().collect();
        let doors = Doors { access: access.clone(), catalogs, drain: drain.clone() };
        let storage = StorageApi::new(store.clone(), doors.clone(), limits);
        let completion = CompletionApi::new(store.clone(), doors.clone());
        tasks.spawn(completion.clone().follow_claims());
        let admin = AdminApi::new(store.clone(), doors.clone());
        let catalog = CatalogApi::new(store, doors, from_files);
        let router = transport(&settings, access)
            .add_service(
                StorageServer::new(storage)
                    .max_decoding_message_size(settings.request_bytes_max)
                    .max_encoding_message_size(settings.response_bytes_max),
            )
            .add_service(
                CompletionServer::new(completion)
                    .max_decoding_message_size(settings.request_bytes_max)
                    .max_encoding_message_size(settings.response_bytes_max),
            )
            .add_service(
                CatalogServer::new(catalog)
                    .max_decoding_message_size(CATALOG_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(CATALOG_MESSAGE_BYTES_MAX),
            )
            .add_service(
                AdminServer::new(admin)
                    .max_decoding_message_size(CATALOG_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(CATALOG_MESSAGE_BYTES_MAX),
            )
            .add_service(health_server.max_decoding_message_size(HEALTH_MESSAGE_BYTES_MAX));
        let router = with_reflection(router, &settings);

        let limits = ConnectionLimits {
            all: settings.connections_max,
            of_an_address: settings.connections_per_address_max,
        };
        let unread_max = settings.keepalive_interval + settings.keepalive_timeout;
        let incoming = connections::accept(listener, limits, unread_max, tls);
        let serving =
            router.serve_with_incoming_shutdown(incoming, drain.clone().cancelled_owned());
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = &mut serving => ended?,
            () = stop.cancelled() => {}
        }

        tracing::info!("stopping: finishing what is open");
        // From here on nobody says SERVING.
        following.shutdown().await;
        report(&health, false).await;
        for service in HEALTH_SERVICES {
            // Ends the streams that watch it, once they have heard NOT_SERVING.
            health.clone().clear_service_status(service).await;
        }
        drain.cancel();
        // A connection that never says anything must not hold the process (hyper issue 4170).
        let finished = time::timeout(settings.drain_time_max, serving).await;
        tasks.shutdown().await;
        match finished {
            Ok(ended) => ended.map(|()| true).map_err(ServeError::from),
            Err(_) => Ok(false),
        }
    }
}

/// What a request goes through, the innermost first.
type DoorsLayers =
    Stack<RefusalsLayer, Stack<GrpcWebLayer, Stack<ConnectLayer, Stack<CorsLayers, HttpLayers>>>>;
type CorsLayers = Either<CorsLayer, Identity>;
type HttpLayers = Stack<LingerLayer, Identity>;

fn transport(settings: &Settings, access: Arc<Access>) -> tonic::transport::Server<DoorsLayers> {
    let message_bytes_max = settings.request_bytes_max.max(CATALOG_MESSAGE_BYTES_MAX);
    tonic::transport::Server::builder()
        // Connect and gRPC-Web, over HTTP/1.1 too.
        .accept_http1(true)
        .layer(LingerLayer)
        .layer(option_layer(cors::layer(&settings.cors_origins)))
        .layer(ConnectLayer::new(message_bytes_max))
        .layer(GrpcWebLayer::new())
        .layer(RefusalsLayer::new(access, settings.request_time_max))
        .max_concurrent_streams(settings.streams_per_connection_max)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(settings.keepalive_interval))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESET_STREAMS_MAX))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESET_STREAMS_MAX))
}

fn with_reflection<L>(router: Router<L>, settings: &Settings) -> Router<L> {
    if !settings.reflection {
        return router;
    }
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let sound = "descriptors made by the build are sound";
    router
        .add_service({
            let v1 = builder().build_v1().expect(sound);
            v1.max_decoding_message_size(settings.request_bytes_max)
        })
        .add_service({
            let v1alpha = builder().build_v1alpha().expect(sound);
            v1alpha.max_decoding_message_size(settings.request_bytes_max)
        })
}

/// The cluster, or the folder of this machine.
async fn open_store(settings: &Settings) -> Result<Arc<dyn Store>, ServeError> {
    let (dir, cache_bytes) = (settings.data.clone(), settings.cache_bytes);
    let clock = Arc::new(SystemClock);
    if let Some(address) = &settings.store {
        return Ok(Arc::new(JetStreamStore::open(address, cache_bytes, clock).await?));
    }
    let opening = tokio::task::spawn_blocking(move || SledStore::open(&dir, cache_bytes, clock));
    Ok(Arc::new(opening.await.map_err(|error| StoreError::Failed(error.to_string()))??))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| ServeError::Listen { address, source })
}

async fn report(health: &HealthReporter, is_serving: bool) {
    use tonic_health::ServingStatus;
    let status = if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in HEALTH_SERVICES {
        health.set_service_status(service, status).await;
    }
}

/// Says NOT_SERVING as soon as the store takes no more writes, and while it cannot be reached.
/// SERVING was said before; whoever follows health hears of changes only.
async fn follow_health(store: Arc<dyn Store>, health: HealthReporter) {
    let mut told = store.health();
    let mut was_serving = true;
    loop {
        let now = *told.borrow_and_update();
        if now == StoreHealth::Poisoned {
            METRICS.store_poisoned.set(1);
        }
        let is_serving = now == StoreHealth::Serving;
        if is_serving != was_serving {
            report(&health, is_serving).await;
            was_serving = is_serving;
        }
        if told.changed().await.is_err() {
            return;
        }
    }
}

async fn trim_feeds(store: Arc<dyn Store>, catalogs: Catalogs, settings: Settings) {
    let mut interval = time::interval(match settings.store {
        Some(_) => RETENTION_INTERVAL_ON_A_CLUSTER,
        None => RETENTION_INTERVAL,
    });
    interval.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let titles: Vec<_> = catalogs.all().keys().cloned().collect();
        let now = SystemClock.now();
        match retain(&*store, &titles, now, settings.retention).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "retention removed completions"),
            Err(StoreError::Poisoned) => return,
            Err(error) => tracing::error!(%error, "retention failed"),
        }
    }
}
