//! Sets and resets. Those of one player wait in a queue of this server and are judged and written
//! together, one batch at a time; players do not wait for each other.
//!
//! A batch is based on a sequence: the one at which this server last saw the document. Where
//! another server has written it meanwhile, JetStream refuses the batch, and all is judged anew.
//! Where no answer comes, the same batch is sent again: only one of the two can be stored, and the
//! document tells (`writers`) whether one was.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    cluster::Cluster,
    document::{Document, Writer},
    draft::{Draft, ResetTold, SetTold, TooMany, settled},
    groups::{Freshness, Grouped, Groups},
    patience::{PATIENCE, Pauses, patiently},
    wire::{StoredMessage, Write, Written},
};
use crate::{
    domain::{Cursor, EpochSeconds, Event, PlayerKey, PlayerUpdate, Refusal, ResetUpdate},
    metrics::METRICS,
    store::{Applied, ApplyError, ResetDone, ResetError, StoreError, frame, rows::event_to_row},
};

/// Most updates of a partition that wait. A caller beyond that waits for a place, no longer than
/// its deadline; one whose player is in another partition does not.
const WAITING_MAX: usize = 4096;

/// Most updates that are written as one: with so many events each, a batch has less than the 1000
/// messages that JetStream takes.
const TOGETHER_MAX: usize = 40;

/// How often to judge anew without a pause where other servers write the same player.
const CONFLICTS_AT_ONCE: u32 = 3;

/// Largest message, of the 1 MiB that NATS takes by default: with its headers it must fit.
pub(super) const DOCUMENT_BYTES_MAX: usize = 960 << 10;

/// A document, and where it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) document: Document,
    /// 0 where there is none.
    pub(super) sequence: u64,
    pub(super) bytes: usize,
}

impl Known {
    /// Whether what stood at a sequence (0: nothing did) is not the last word any more.
    fn is_beyond(&self, sequence: u64) -> bool {
        self.sequence > sequence || (self.sequence == 0 && sequence > 0)
    }
}

/// See the module.
pub(super) struct Players {
    cluster: Arc<Cluster>,
    queues: Mutex<HashMap<PlayerKey, VecDeque<Job>>>,
    /// Of each partition.
    places: Vec<Arc<Semaphore>>,
    groups: Groups,
    /// Documents as this server wrote them last.
    known: Cache<PlayerKey, Arc<Known>, ByBytes>,
    writer_id: u64,
    writes: AtomicU64,
}

struct Job {
    asked: Asked,
    _place: Place,
}

/// One of those that may wait.
struct Place(#[allow(dead_code, reason = "it is held")] OwnedSemaphorePermit);

impl Place {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        METRICS.updates_waiting.inc();
        Self(permit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        METRICS.updates_waiting.dec();
    }
}

enum Asked {
    Set(PlayerUpdate, oneshot::Sender<Result<Applied, ApplyError>>),
    Reset(ResetUpdate, oneshot::Sender<Result<ResetDone, ResetError>>),
}

enum Told {
    Set(Result<SetTold, Refusal>),
    Reset(Result<ResetTold, TooMany>),
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<PlayerKey, Arc<Known>> for ByBytes {
    fn weight(&self, _: &PlayerKey, known: &Arc<Known>) -> u64 {
        // An estimate: encoded, decoded, and the place in the cache.
        const PLAYER: usize = 300;
        const TIMES: usize = 4;
        (PLAYER + TIMES * known.bytes) as u64
    }
}

/// What became of an attempt to write.
pub(super) enum Attempt {
    /// It is stored, at this sequence.
    Stored(u64),
    /// It is stored, and was overwritten since; its events stand behind this sequence.
    Overwritten(u64),
    /// Somebody else wrote first.
    Conflict,
    /// It is not stored, and cannot be now.
    Failed(StoreError),
    /// Nobody knows whether it is stored.
    Unknown,
}

// === impl Asked ===

impl Asked {
    fn is_waited_for(&self) -> bool {
        match self {
            Self::Set(_, answer) => !answer.is_closed(),
            Self::Reset(_, answer) => !answer.is_closed(),
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Set(_, answer) => drop(answer.send(Err(error.into()))),
            Self::Reset(_, answer) => drop(answer.send(Err(error.into()))),
        }
    }
}

// === impl Players ===

impl Players {
    pub(super) fn new(cluster: Arc<Cluster>, cache_bytes: u64) -> Self {
        const PLAYER_BYTES: u64 = 1024;
        let players = usize::try_from(cache_bytes / PLAYER_BYTES).unwrap_or(usize::MAX).max(1);
        let groups = Groups::start(&cluster);
        let places = cluster.partitions().map(|_| Arc::new(Semaphore::new(WAITING_MAX))).collect();
        Self {
            cluster,
            queues: Mutex::default(),
            places,
            groups,
            known: Cache::with_weighter(players, cache_bytes, ByBytes),
            writer_id: fastrand::u64(..),
            writes: AtomicU64::new(0),
        }
    }

    /// A player's document as it is now, whoever wrote it.
    pub(super) async fn read(&self, player: &PlayerKey) -> Result<Known, StoreError> {
        patiently!(self.read_once(player, Freshness::Now))
    }

    /// Forgets what was known of a player.
    pub(super) fn forget(&self, player: &PlayerKey) {
        self.known.remove(player);
    }

    /// The same, asked once.
    async fn read_once(
        &self,
        player: &PlayerKey,
        freshness: Freshness,
    ) -> Result<Known, StoreError> {
        let names = &self.cluster.names;
        let partition = names.partition(player);
        let subject = names.document(partition, player);
        self.known_of(partition, self.groups.read(partition, subject, freshness).await?)
    }

    fn known_of(
        &self,
        partition: u32,
        message: Option<StoredMessage>,
    ) -> Result<Known, StoreError> {
        let Some(StoredMessage { subject, sequence, value }) = message else {
            return Ok(Known::default());
        };
        self.cluster.see(partition, sequence);
        let document = Document::decode(&subject, &value, sequence)?;
        Ok(Known { document, sequence, bytes: value.len() })
    }

    pub(super) async fn set(
        self: &Arc<Self>,
        update: PlayerUpdate,
        answer: oneshot::Sender<Result<Applied, ApplyError>>,
    ) -> Result<(), StoreError> {
        self.queue(update.key.clone(), Asked::Set(update, answer)).await
    }

    pub(super) async fn reset(
        self: &Arc<Self>,
        update: ResetUpdate,
        answer: oneshot::Sender<Result<ResetDone, ResetError>>,
    ) -> Result<(), StoreError> {
        self.queue(update.key.clone(), Asked::Reset(update, answer)).await
    }

    /// Gives something its place behind what waits for the same player.
    async fn queue(self: &Arc<Self>, player: PlayerKey, asked: Asked) -> Result<(), StoreError> {
        let places = &self.places[self.cluster.names.partition(&player) as usize];
        let place = places.clone().acquire_owned().await;
        let place = place.map_err(|error| StoreError::Failed(error.to_string()))?;
        let job = Job { asked, _place: Place::new(place) };
        let is_idle = {
            let mut queues = self.queues.lock();
            match queues.get_mut(&player) {
                Some(queue) => {
                    queue.push_back(job);
                    false
                }
                None => {
                    queues.insert(player.clone(), VecDeque::from([job]));
                    true
                }
            }
        };
        if is_idle {
            tokio::spawn(self.clone().work(player));
        }
        Ok(())
    }

    /// Writes what waits for a player until nothing does.
    async fn work(self: Arc<Self>, player: PlayerKey) {
        let mut together = TOGETHER_MAX;
        loop {
            let jobs: Vec<_> = {
                let mut queues = self.queues.lock();
                let Some(queue) = queues.get_mut(&player) else { return };
                if queue.is_empty() {
                    queues.remove(&player);
                    return;
                }
                queue.drain(..together.min(queue.len())).collect()
            };
            together = TOGETHER_MAX;
            if let Some(rest) = self.write(&player, jobs).await {
                // Too much for one message: half of it first.
                together = (rest.len() / 2).max(1);
                if let Some(queue) = self.queues.lock().get_mut(&player) {
                    rest.into_iter().rev().for_each(|job| queue.push_front(job));
                }
            }
        }
    }

    /// Judges and writes some updates, and answers them; gives them back where they are too many.
    async fn write(&self, player: &PlayerKey, mut jobs: Vec<Job>) -> Option<Vec<Job>> {
        let partition = self.cluster.names.partition(player);
        let mut pauses = Pauses::new(PATIENCE);
        let mut conflicts = 0;
        let mut freshness = Freshness::Any;
        loop {
            // Whoever has gone away is not waited for: nothing of theirs was sent yet.
            jobs.retain(|job| job.asked.is_waited_for());
            if jobs.is_empty() {
                return None;
            }
            let error = match self.attempt(partition, player, &jobs, freshness).await {
                Ok(Done::Told(told, sequence, events)) => {
                    self.answer(player, jobs, told, sequence, events);
                    return None;
                }
                Ok(Done::TooLarge(_)) if jobs.len() > 1 => return Some(jobs),
                Ok(Done::TooLarge(bytes)) => {
                    let bytes_max = self.document_bytes_max();
                    for job in jobs {
                        too_large(job.asked, bytes, bytes_max);
                    }
                    return None;
                }
                Ok(Done::Again) => {
                    freshness = Freshness::Now;
                    conflicts += 1;
                    if conflicts <= CONFLICTS_AT_ONCE {
                        continue;
                    }
                    StoreError::Unavailable("other servers write this player".to_owned())
                }
                Err(error) => error,
            };
            let may_pass = matches!(error, StoreError::Unavailable(_));
            if !may_pass || !pauses.wait().await {
                for job in jobs {
                    job.asked.fail(error.clone());
                }
                return None;
            }
        }
    }

    async fn attempt(
        &self,
        partition: u32,
        player: &PlayerKey,
        jobs: &[Job],
        freshness: Freshness,
    ) -> Result<Done, StoreError> {
        let known = match self.known.get(player).filter(|_| freshness == Freshness::Any) {
            Some(known) => known,
            None => Arc::new(self.read_once(player, freshness).await?),
        };
        let now = self.cluster.now(partition, &player.title).await?;
        let mut trimmed_through = 0;
        if jobs.iter().any(|job| matches!(job.asked, Asked::Reset(..))) {
            trimmed_through =
                self.cluster.feed_row(partition, &player.title).await?.0.trimmed_through;
        }
        let mut draft = Draft::of(&known.document);
        let judged = jobs.iter().map(|job| match &job.asked {
            Asked::Set(update, _) => Told::Set(draft.set(update, now)),
            Asked::Reset(update, _) => Told::Reset(draft.reset(update, now, trimmed_through)),
        });
        let told: Vec<_> = judged.collect();
        if !draft.is_changed {
            if freshness == Freshness::Any {
                // Nothing will show whether this was the last word.
                return Ok(Done::Again);
            }
            return Ok(Done::Told(told, known.sequence, 0));
        }
        let events = draft.events.len();
        match self.store(partition, player, draft, known.sequence, now).await {
            Ok(Attempt::Stored(sequence)) => Ok(Done::Told(told, sequence, events)),
            // Behind the sequence that it was based on: whoever resumes there misses nothing.
            Ok(Attempt::Overwritten(sequence)) => Ok(Done::Told(told, sequence, 0)),
            Ok(Attempt::Conflict) => Ok(Done::Again),
            Ok(Attempt::Failed(error)) => Err(error),
            Ok(Attempt::Unknown) => Err(StoreError::OutcomeUnknown),
            // By what is there now it may fit.
            Err(TooLarge(_)) if freshness == Freshness::Any => Ok(Done::Again),
            Err(TooLarge(bytes)) => Ok(Done::TooLarge(bytes)),
        }
    }

    /// The next write of a document by this server.
    fn next_write(&self) -> Writer {
        Writer { id: self.writer_id, number: self.writes.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// The largest document that a message takes, with its headers.
    pub(super) fn document_bytes_max(&self) -> usize {
        const HEADERS: usize = 1 << 10;
        DOCUMENT_BYTES_MAX.min(self.cluster.wire.message_bytes_max().saturating_sub(HEADERS))
    }

    /// Writes a draft that is based on a sequence, and finds out what became of it.
    async fn store(
        &self,
        partition: u32,
        player: &PlayerKey,
        draft: Draft,
        based_on: u64,
        now: EpochSeconds,
    ) -> Result<Attempt, TooLarge> {
        let Draft { mut document, events, .. } = draft;
        let write = self.next_write();
        document.sign(write);
        let subject = self.cluster.names.document(partition, player);
        let value = document.encode(&subject, events.len());
        let bytes = value.len();
        if bytes > self.document_bytes_max() {
            return Err(TooLarge(bytes));
        }
        let mut writes = event_writes(&self.cluster, partition, player, &events, now);
        writes.push(Write { subject, value: Bytes::from(value), replaces: Some(based_on) });
        self.known.remove(player);
        let attempt = self.send(partition, player, writes, write, based_on).await;
        if matches!(attempt, Attempt::Stored(_) | Attempt::Overwritten(_)) {
            let completions = events.iter().filter(|it| matches!(it, Event::Completion(_)));
            METRICS.completions.inc_by(completions.count() as u64);
        }
        if let Attempt::Stored(sequence) = attempt {
            if document.place(sequence, events.len()).is_some() {
                let known = Known { document, sequence, bytes };
                self.known.insert(player.clone(), Arc::new(known));
            }
            if !events.is_empty() {
                self.cluster.note(partition, &player.title, sequence - 1, now);
            }
            self.cluster.see(partition, sequence);
        }
        Ok(attempt)
    }

    /// Sends a batch until it is known what became of it.
    async fn send(
        &self,
        partition: u32,
        player: &PlayerKey,
        writes: Vec<Write>,
        write: Writer,
        based_on: u64,
    ) -> Attempt {
        let mut pauses = Pauses::new(PATIENCE);
        // With others at first; whatever is then not clear is cleared up by itself.
        let grouped = self.groups.write(partition, writes.clone()).await;
        let mut is_unknown = grouped == Grouped::Alone;
        let mut grouped = Some(grouped);
        loop {
            let written = match grouped.take() {
                Some(Grouped::Written(written)) => written,
                Some(Grouped::Alone) | None => self.cluster.wire.write(writes.clone()).await,
            };
            match written {
                Written::Stored(sequence) => return Attempt::Stored(sequence),
                Written::NotSent(error) if !is_unknown => {
                    return Attempt::Failed(StoreError::Unavailable(error));
                }
                Written::NotSent(_) => {}
                Written::Unknown(why) => {
                    tracing::debug!(why, "a write has no sure answer; it is sent again");
                    is_unknown = true;
                }
                Written::Conflict => match self.read(player).await {
                    // It was stored: this copy, by another leader, or an earlier one.
                    Ok(known) if known.document.has(write) => {
                        return match known.document.is_by(write) {
                            true => Attempt::Stored(known.sequence),
                            false => Attempt::Overwritten(based_on),
                        };
                    }
                    // No copy was, or ever will be: the sequence it is based on is gone.
                    Ok(known) if known.is_beyond(based_on) => return Attempt::Conflict,
                    // Whoever refused it is behind, and somebody else may store it.
                    Ok(_) => is_unknown = true,
                    Err(_) => return Attempt::Unknown,
                },
            }
            if !pauses.wait().await {
                return Attempt::Unknown;
            }
        }
    }

    /// Answers what was stored at a sequence, or told as it stands there.
    fn answer(
        &self,
        player: &PlayerKey,
        jobs: Vec<Job>,
        told: Vec<Told>,
        sequence: u64,
        events: usize,
    ) {
        let cursor = |place: u64| self.cursor(player, settled(place, sequence, events));
        for (job, told) in jobs.into_iter().zip(told) {
            match (job.asked, told) {
                (Asked::Set(_, answer), Told::Set(told)) => {
                    let applied = told.map(|told| {
                        let outcomes = told.outcomes.into_iter();
                        let outcomes =
                            outcomes.map(|(outcome, place)| (outcome, place.map(cursor)));
                        Applied { replayed: told.replayed, outcomes: outcomes.collect() }
                    });
                    let _ = answer.send(applied.map_err(ApplyError::from));
                }
                (Asked::Reset(_, answer), Told::Reset(told)) => {
                    let done = told.map(|ResetTold { replayed, outcome, place }| ResetDone {
                        replayed,
                        outcome,
                        cursor: place.map(cursor),
                    });
                    let _ = answer.send(done.map_err(|TooMany| ResetError::TooMany));
                }
                _ => unreachable!("each is told what it asked"),
            }
        }
    }

    /// The cursor of an event of a player. Of other partitions it names what was seen of them:
    /// whatever is stored from now on stands behind it.
    pub(super) fn cursor(&self, player: &PlayerKey, place: u64) -> Cursor {
        let mut places = self.cluster.seen();
        places[self.cluster.names.partition(player) as usize] = place;
        self.cluster.codec.encode(&player.title, &places)
    }
}

/// The messages of events that happen to a player.
pub(super) fn event_writes(
    cluster: &Cluster,
    partition: u32,
    player: &PlayerKey,
    events: &[Event],
    now: EpochSeconds,
) -> Vec<Write> {
    let subject = cluster.names.events(partition, &player.title);
    let writes = events.iter().map(|event| Write {
        subject: subject.clone(),
        value: Bytes::from(frame::encode(subject.as_bytes(), &event_to_row(event, now))),
        replaces: None,
    });
    writes.collect()
}

/// How an attempt ended.
enum Done {
    /// Stored, or told as it stands: what each is told, the document's sequence, and how many
    /// events stand before it.
    Told(Vec<Told>, u64, usize),
    /// It was based on something that is not the last word.
    Again,
    /// The document would take so many bytes.
    TooLarge(usize),
}

/// The document would take so many bytes.
struct TooLarge(usize);

fn too_large(asked: Asked, bytes: usize, bytes_max: usize) {
    match asked {
        Asked::Set(_, answer) => {
            let _ = answer.send(Err(ApplyError::PlayerTooLarge { bytes, bytes_max }));
        }
        // A reset takes an extra away, and adds a few bytes.
        Asked::Reset(_, answer) => drop(answer.send(Err(ResetError::TooMany))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::{
        store::{Operations, Store, jetstream::JetStreamStore},
        testing::{TestClock, Update, cluster, player},
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn an_erased_player_leaves_the_memory_of_every_server() {
        let (_nats, address) = cluster(1).await;
        let open = || JetStreamStore::open(&address, 1 << 20, TestClock::at(1));
        let (a, b) = (open().await.unwrap(), open().await.unwrap());
        let knows = |of: &JetStreamStore| of.players.known.get(&player("t", "p")).is_some();
        let (start, mut has_said) = (Instant::now(), false);
        // What servers say to each other may be lost, while one of them only begins to listen.
        while {
            a.apply(Update::of("t", "p").delta("n", 1, 1).build()).await.unwrap();
            // From the second time on, what was said the first time may come in between.
            assert!(knows(&a) || has_said, "it wrote it last");
            has_said = true;
            assert_eq!(b.erase_player(&player("t", "p")).await.unwrap().records, 1);
            tokio::time::sleep(Duration::from_millis(100)).await;
            knows(&a)
        } {
            assert!(start.elapsed() < Duration::from_secs(30), "it is not forgotten");
        }
    }
}
