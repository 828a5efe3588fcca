//! The connection to a cluster: who this is, and what is done when it breaks.

use std::{fmt::Display, sync::Arc, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use tokio::time::Instant;

use super::{
    address::{Address, Login},
    reach::Reach,
};
use crate::store::StoreError;

/// How often a silent connection is asked whether it lives; it is left after 3 without an answer,
/// before the other servers may have chosen another leader.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for a connection to one server.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// Until when, at the start, another attempt is begun where servers take longer than that. One that
/// refuses does not change its mind.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// Pause before the next attempt to connect, at most.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(250);

/// Messages that wait to be written to the connection.
const WAITING_MAX: usize = 8192;

/// Connects to any server of a cluster, and to others where that is to be left.
pub(super) async fn connect(
    address: &Address,
    reach: Arc<Reach>,
    answer_time_max: Duration,
) -> Result<Client, StoreError> {
    let (told, asked) = (reach.clone(), reach.clone());
    let mut options = ConnectOptions::new()
        .name("accolade")
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIME_MAX)
        .request_timeout(Some(answer_time_max))
        .client_capacity(WAITING_MAX)
        // Other addresses of the same servers would have turns of their own.
        .ignore_discovered_servers()
        .reconnect_delay_callback(|attempts| {
            let pause = Duration::from_millis(10 * attempts as u64);
            pause.min(RECONNECT_PAUSE_MAX)
        })
        .reconnect_to_server_callback(move |servers, _| {
            let next = asked.next(&servers);
            async { next }
        })
        .event_callback(move |event| {
            match event {
                Event::Connected => told.connected(true, Instant::now()),
                Event::Disconnected => told.connected(false, Instant::now()),
                _ => {}
            }
            async {}
        });
    if let Some(file) = &address.credentials {
        options = options.credentials_file(file).await.map_err(|error| {
            StoreError::Failed(format!("`{}` cannot be read: {error}", file.display()))
        })?;
    }
    options = match address.login.clone() {
        Some(Login::Password { user, password }) => options.user_and_password(user, password),
        Some(Login::Token(token)) => options.token(token),
        None => options,
    };
    if let Some(file) = &address.ca {
        options = options.add_root_certificates(file.clone());
    }
    if let Some((certificate, key)) = &address.certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let unreachable = |error: &dyn Display| {
        let cluster = address.shown();
        StoreError::Failed(format!("no server of {cluster} can be reached: {error}"))
    };
    let servers = address.servers.iter().map(|server| server.parse::<ServerAddr>());
    let servers: Vec<_> = servers.collect::<Result<_, _>>().map_err(|error| unreachable(&error))?;
    let start = Instant::now();
    loop {
        match options.clone().connect(&*servers).await {
            Err(error)
                if error.kind() == ConnectErrorKind::TimedOut
                    && start.elapsed() < START_TIME_MAX => {}
            connected => return connected.map_err(|error| unreachable(&error)),
        }
    }
}
