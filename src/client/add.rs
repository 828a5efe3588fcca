//! The seed's way to set.

use std::{fmt, future::IntoFuture, pin::Pin};

use tonic::Status;

use super::{
    CONFLICT, Client, RecordId,
    retry::{self, Attempts},
};
use crate::proto::v1::{
    RecordState, SetAchievementStorageRequest, SetAchievementStorageResponse,
    set_achievement_storage_request::Change,
};

/// Most conflicts that one call takes to its caller. Each means that somebody else was faster.
pub const CONFLICTS_MAX: i64 = 20;

type Extra<'a> = Box<dyn FnMut() -> String + Send + 'a>;
type OnConflict<'a> = Box<dyn FnMut(&RecordState) -> bool + Send + 'a>;

/// An addition to a record's progress, done when this is awaited.
///
/// Without a text it cannot conflict. With one it is stored only on the version that this client
/// saw last: on a conflict the caller looks at the record that is stored now, and says whether to
/// go on; then the text is asked for once more, and the same addition is stored with it, on that
/// record's version.
///
/// However often it is tried, it is counted once, as long as its request id is among those of the
/// record's last 8 stored updates, which the server knows.
#[must_use = "nothing is added until this is awaited"]
pub struct Add<'a> {
    client: &'a Client,
    record: &'a RecordId,
    delta: i64,
    request_id: String,
    with_extra: Option<(Extra<'a>, OnConflict<'a>)>,
}

impl fmt::Debug for Add<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, delta, .. } = self;
        f.debug_struct("Add").field("record", record).field("delta", delta).finish_non_exhaustive()
    }
}

// === impl Add ===

impl<'a> Add<'a> {
    pub(super) fn new(client: &'a Client, record: &'a RecordId, delta: i64) -> Self {
        Self { client, record, delta, request_id: String::new(), with_extra: None }
    }

    /// Names this addition; without this the client finds a name. After an error, the same call
    /// with the same name tells what became of it, and is not counted twice.
    pub fn with_request_id(mut self, request_id: &str) -> Self {
        request_id.clone_into(&mut self.request_id);
        self
    }

    /// Stores a text as well. `extra` gives it, each time anew; `on_conflict` is told the record
    /// that is stored now, and gives `true` to go on, `false` to leave it.
    pub fn with_extra(
        mut self,
        extra: impl FnMut() -> String + Send + 'a,
        on_conflict: impl FnMut(&RecordState) -> bool + Send + 'a,
    ) -> Self {
        self.with_extra = Some((Box::new(extra), Box::new(on_conflict)));
        self
    }

    /// Gives the last conflict where the caller left it there, or there were [`CONFLICTS_MAX`].
    async fn run(self) -> Result<SetAchievementStorageResponse, Status> {
        let RecordId { title, player_id, node_id } = self.record.clone();
        let request_id = match self.request_id.is_empty() {
            true => retry::request_id()?,
            false => self.request_id,
        };
        let mut request = SetAchievementStorageRequest {
            title,
            player_id,
            node_id,
            change: Some(Change::Delta(self.delta)),
            request_id,
            ..SetAchievementStorageRequest::default()
        };
        let mut attempts = Attempts::new(self.client.deadline);
        let Some((mut extra, mut on_conflict)) = self.with_extra else {
            return self.client.set_within(&request, &mut attempts).await;
        };
        // What the text is made from is at least this old.
        let mut version = self.client.versions.of(self.record);
        for asked in 0.. {
            request.extra = Some(extra());
            request.expected_version = Some(version);
            let answer = self.client.set_within(&request, &mut attempts).await?;
            let stored = answer.entity.clone().unwrap_or_default();
            let is_over = answer.code != CONFLICT || asked == CONFLICTS_MAX;
            if is_over || !on_conflict(&stored) {
                return Ok(answer);
            }
            // Not what another call has seen meanwhile: the caller has judged this one.
            version = stored.version;
        }
        unreachable!("the loop ends with the last question")
    }
}

impl<'a> IntoFuture for Add<'a> {
    type Output = Result<SetAchievementStorageResponse, Status>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
