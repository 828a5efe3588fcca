//! A client for game servers and for servers that subscribe.
//!
//! A set is tried again where its answer got lost, under one request id: it is then counted once,
//! for the server knows the ids of a record's last 8 stored updates. [`Client::add`] is the seed's
//! `LobbySetAchievementStorage`: it remembers the versions it has seen, and asks the caller what to
//! do about a conflict. A [`Watch`] resumes by itself.
//!
//! ```no_run
//! use accolade::client::{Client, RecordId};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:50151")?;
//! let record = RecordId::new("demo", "10001", "first_steps");
//! let answer = client.add(&record, 1).await?;
//! if answer.newly_completed {
//!     println!("completed; its place in the feed: {}", answer.cursor);
//! }
//!
//! let mut watch = client.watch("demo").from_oldest();
//! loop {
//!     let completion = watch.next().await?;
//!     // Store `completion.cursor` together with what the completion causes: then its effect
//!     // happens once, whatever breaks in between.
//!     println!("{} completed {}", completion.player_id, completion.achievement_id);
//! }
//! # }
//! ```

mod add;
mod authorization;
mod retry;
mod versions;
mod watch;

use std::time::Duration;

use tonic::{
    Status,
    metadata::errors::InvalidMetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Error},
};

pub use self::{
    add::{Add, CONFLICTS_MAX},
    authorization::Authorization,
    retry::{Pauses, may_pass},
    watch::{Happened, Watch},
};
use self::{retry::Attempts, versions::Versions};
use crate::proto::v1::{
    GetAchievementStorageRequest, Record, SetAchievementStorageRequest,
    SetAchievementStorageResponse,
    achievement_storage_service_client::AchievementStorageServiceClient,
};

/// Default for how long a call may take, all its attempts together.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// `code` of a conflict.
const CONFLICT: i32 = 5;

/// The server's answers may hold so much: 256 records with the largest extras.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A channel on which every request carries the token, if there is one.
pub type Connection = InterceptedService<Channel, Authorization>;

/// Which record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordId {
    /// The title.
    pub title: String,
    /// The player.
    pub player_id: String,
    /// The node.
    pub node_id: String,
}

impl RecordId {
    /// Names a record.
    #[must_use]
    pub fn new(title: &str, player_id: &str, node_id: &str) -> Self {
        Self {
            title: title.to_owned(),
            player_id: player_id.to_owned(),
            node_id: node_id.to_owned(),
        }
    }
}

/// An address, with this client's timeouts and keepalive: a connection that went silent is noticed
/// within 30 s.
///
/// # Errors
///
/// The address is malformed.
pub fn endpoint(url: &str) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// A client; clones share its connection and the versions it remembers.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    authorization: Authorization,
    deadline: Duration,
    versions: Versions,
}

// === impl Client ===

impl Client {
    /// A client of the server at an address such as `http://127.0.0.1:50151`. Connects with the
    /// first call, and again whenever the connection is lost.
    ///
    /// # Errors
    ///
    /// The address is malformed. For `https://`, build a channel from [`endpoint`] with its TLS
    /// settings, and use [`Client::new`].
    pub fn connect(url: &str) -> Result<Self, Error> {
        Ok(Self::new(endpoint(url)?.connect_lazy()))
    }

    /// A client on a channel.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        let authorization = Authorization::default();
        let (deadline, versions) = (DEADLINE_DEFAULT, Versions::default());
        Self { channel, authorization, deadline, versions }
    }

    /// Sends a token with every request.
    ///
    /// # Errors
    ///
    /// The token has characters that no token has.
    pub fn with_token(self, token: &str) -> Result<Self, InvalidMetadataValue> {
        Ok(self.with_authorization(Authorization::new(token)?))
    }

    /// Sends what an [`Authorization`] holds with every request.
    #[must_use]
    pub fn with_authorization(mut self, authorization: Authorization) -> Self {
        self.authorization = authorization;
        self
    }

    /// How long a call may take, all its attempts together; [`DEADLINE_DEFAULT`] unless set.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Reads the records of a player: those of these nodes, or all where none are named. Nodes
    /// without a record are left out.
    ///
    /// # Errors
    ///
    /// As `GetAchievementStorage`; what may pass is tried again until the deadline.
    pub async fn get(
        &self,
        title: &str,
        player_id: &str,
        node_ids: &[&str],
    ) -> Result<Vec<Record>, Status> {
        let request = GetAchievementStorageRequest {
            title: title.to_owned(),
            player_id: player_id.to_owned(),
            achievement_ids: node_ids.iter().map(|&id| id.to_owned()).collect(),
        };
        let mut attempts = Attempts::new(self.deadline);
        let records = loop {
            let get = async |request| self.storage().get_achievement_storage(request).await;
            match attempts.attempt(request.clone(), get).await {
                Ok(answer) => break answer.entity,
                Err(status) => attempts.after(status).await?,
            }
        };
        for record in &records {
            let id = RecordId::new(title, player_id, &record.achievement_id);
            self.versions.saw(&id, record.version);
        }
        Ok(records)
    }

    /// Changes a record. An empty `request_id` is replaced by one of this client's own; all
    /// attempts of this call use the same.
    ///
    /// # Errors
    ///
    /// As `SetAchievementStorage`; what may pass is tried again until the deadline. After an error
    /// the update may be stored, unless the server refused it at the first attempt: give a
    /// `request_id` beforehand, and repeat the call with the same, to learn what became of it.
    pub async fn set(
        &self,
        mut request: SetAchievementStorageRequest,
    ) -> Result<SetAchievementStorageResponse, Status> {
        if request.request_id.is_empty() {
            request.request_id = retry::request_id()?;
        }
        self.set_within(&request, &mut Attempts::new(self.deadline)).await
    }

    async fn set_within(
        &self,
        request: &SetAchievementStorageRequest,
        attempts: &mut Attempts,
    ) -> Result<SetAchievementStorageResponse, Status> {
        let answer = loop {
            let set = async |request| self.storage().set_achievement_storage(request).await;
            match attempts.attempt(request.clone(), set).await {
                Ok(answer) => break answer,
                Err(status) => attempts.after(status).await?,
            }
        };
        let id = RecordId::new(&request.title, &request.player_id, &request.node_id);
        match (&answer.updated, &answer.entity) {
            (_, Some(stored)) if answer.code == CONFLICT => {
                self.versions.conflicted(&id, stored.version);
            }
            (Some(updated), _) => self.versions.saw(&id, updated.version),
            _ => {}
        }
        Ok(answer)
    }

    /// Adds to the progress of a record, as the seed's `LobbySetAchievementStorage` does: await
    /// what this returns, after [`Add::with_extra`] where there is a text to store.
    pub fn add<'a>(&'a self, record: &'a RecordId, delta: i64) -> Add<'a> {
        Add::new(self, record, delta)
    }

    /// Follows a title's completions from now on; see [`Watch::from_oldest`] and [`Watch::after`].
    #[must_use]
    pub fn watch(&self, title: &str) -> Watch {
        Watch::new(self.connection(), title)
    }

    fn connection(&self) -> Connection {
        InterceptedService::new(self.channel.clone(), self.authorization.clone())
    }

    fn storage(&self) -> AchievementStorageServiceClient<Connection> {
        AchievementStorageServiceClient::new(self.connection())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }
}
