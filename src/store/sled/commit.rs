//! The one committer: a thread that takes updates from a bounded queue, judges them against the
//! store and each other, and makes them durable in groups.
//!
//! A group is one sled `Batch` on one tree, so it is recovered wholly or not at all; a record and
//! its completion are in the same one. Versions are compared by the committer itself: nobody else
//! writes, so what it reads cannot change before it writes. (The alternative, completion first and
//! `compare_and_swap` of the record as commit point, leaves completions without a record behind
//! after every crash, which must be found and dropped at open.)
//!
//! The order of a group: judge → hide from readers → apply → flush → sync → publish → answer. If
//! anything between apply and sync fails, the group stays hidden, the store takes no more writes,
//! and nobody is told that anything was stored.

use std::{
    collections::HashMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use parking_lot::Mutex;
use sled::{Batch, IVec};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    bounds::{GROUP_BYTES_MAX, GROUP_JOBS_MAX, TRIM_ROWS_MAX},
    catalogs,
    feeds::{FeedEnds, Feeds, TitleFeed},
    frame, keys,
    read::{failed, read_record, read_row},
    rows::{StoredRecord, completion_to_row},
    view::{Before, DurableView},
};
use crate::{
    clock::Clock,
    domain::{Catalog, EpochSeconds, PlayerUpdate, Ruling, Title, decide},
    proto::rows::{CompletionRow, FeedRow},
    store::{
        Applied, ApplyError, CatalogError, Retention, StoreError, StoreHealth, StoredCatalog,
        cursor::CursorCodec,
    },
};

/// Something to do for the committer, and whom to answer.
pub(super) enum Job {
    Apply(PlayerUpdate, oneshot::Sender<Result<Applied, ApplyError>>),
    Trim(Title, Retention, oneshot::Sender<Result<usize, StoreError>>),
    ReplaceCatalog(Title, u64, Arc<Catalog>, oneshot::Sender<Result<StoredCatalog, CatalogError>>),
}

/// Makes applied writes durable; the store's is `flush` and fdatasync.
pub(super) type SyncLog = Box<dyn FnMut() -> io::Result<()> + Send>;

/// The committer's state; [`Committer::run`] is its thread.
pub(super) struct Committer {
    pub(super) view: Arc<DurableView>,
    pub(super) feeds: Arc<Feeds>,
    pub(super) cursors: CursorCodec,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) health: watch::Sender<StoreHealth>,
    pub(super) sync_log: SyncLog,
    /// Where sled would put blobs, which it never syncs; and when that folder last changed.
    pub(super) blobs: (PathBuf, SystemTime),
    /// When the commit under way began; the watchdog looks at it.
    pub(super) under_way: Arc<Mutex<Option<Instant>>>,
}

/// Tells a caller what became of its job, given what became of the group.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Updates that become durable together.
#[derive(Default)]
struct Group {
    batch: Batch,
    before: Before,
    bytes: usize,
    jobs: usize,
    /// Records as they are after the group.
    records: HashMap<Vec<u8>, StoredRecord>,
    feeds: HashMap<Title, (Arc<TitleFeed>, FeedEnds)>,
    answers: Vec<Answer>,
}

/// Whether a job found a place in the group.
enum Place {
    Taken,
    /// The group is full; the job is to be judged anew for the next one.
    NoRoom(Job),
}

// === impl Committer ===

impl Committer {
    /// Works until all senders are gone and the queue is empty.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut carried = None;
        while let Some(first) = carried.take().or_else(|| jobs.blocking_recv()) {
            if *self.health.borrow() == StoreHealth::Poisoned {
                refuse(first);
                continue;
            }
            let work = AssertUnwindSafe(|| self.commit_from(first, &mut jobs));
            match catch_unwind(work) {
                Ok(next) => carried = next,
                Err(_) => self.poison("the committer panicked"),
            }
        }
    }

    /// Commits `first` together with what else is waiting; gives back a job that had no room.
    fn commit_from(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        let mut group = Group::default();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::ReplaceCatalog(title, expected, catalog, answer) => {
                    self.commit(std::mem::take(&mut group));
                    let _ = answer.send(self.replace_catalog(&title, expected, catalog));
                }
                Job::Apply(..) | Job::Trim(..) => {
                    if let Place::NoRoom(job) = self.place(job, &mut group) {
                        self.commit(group);
                        return Some(job);
                    }
                }
            }
            if group.jobs < GROUP_JOBS_MAX {
                next = jobs.try_recv().ok();
            }
        }
        self.commit(group);
        None
    }

    fn place(&self, job: Job, group: &mut Group) -> Place {
        match job {
            Job::Apply(update, answer) => match self.stage(&update, group).transpose() {
                Some(result) => group.answer(move |done| {
                    let _ = answer.send(done.map_err(ApplyError::from).and(result));
                }),
                None => return Place::NoRoom(Job::Apply(update, answer)),
            },
            Job::Trim(title, keep, answer) => {
                let trimmed = self.stage_trim(&title, keep, group);
                group.answer(move |done| {
                    let _ = answer.send(done.and(trimmed));
                });
            }
            Job::ReplaceCatalog(..) => unreachable!("a catalogue is not part of a group"),
        }
        group.jobs += 1;
        Place::Taken
    }

    /// Judges an update as of the end of the group, and adds what it writes. The result is the
    /// answer, if the group becomes durable; `Ok(None)` where the group has no room for it.
    fn stage(
        &self,
        update: &PlayerUpdate,
        group: &mut Group,
    ) -> Result<Option<Applied>, ApplyError> {
        let title = &update.key.title;
        let keys: Vec<_> = update
            .updates
            .iter()
            .map(|item| keys::record(&update.key, item.node.definition().node_id()))
            .collect();
        let mut stored = Vec::with_capacity(keys.len());
        for key in &keys {
            stored.push(self.record(key, group)?);
        }
        let (feed, mut ends) = group.feed(&self.feeds, title);
        let now = self.clock.now().max(ends.newest_completed_at);
        let records: Vec<_> = stored.iter().map(|each| each.record.clone()).collect();
        let Ruling { replayed, outcomes, writes } = decide(update, &records, now)?;

        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (index, write) in writes.iter().enumerate() {
            let Some(record) = write else { continue };
            stored[index].record = record.clone();
            if outcomes[index].newly_completed {
                ends.head += 1;
                ends.newest_completed_at = now;
                stored[index].completion_sequence = ends.head;
                let key = keys::completion(title, ends.head);
                let node = &update.updates[index].node;
                let row = completion_to_row(&update.key.player, node, record);
                let value = frame::encode(&key, &row);
                rows.push((key, value));
            }
            let value = frame::encode(&keys[index], &stored[index].to_row());
            rows.push((keys[index].clone(), value));
        }
        let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > GROUP_BYTES_MAX {
            return Err(ApplyError::TooLarge { bytes, bytes_max: GROUP_BYTES_MAX });
        }
        if group.bytes + bytes > GROUP_BYTES_MAX {
            return Ok(None);
        }

        let outcomes = outcomes.into_iter().zip(&stored).map(|(outcome, stored)| {
            let sequence = outcome.newly_completed.then_some(stored.completion_sequence);
            let cursor = sequence.map(|sequence| self.cursors.encode(title, sequence));
            (outcome, cursor)
        });
        let applied = Applied { replayed, outcomes: outcomes.collect() };
        // All that can fail comes before the first write, so that no half of it stays in the group.
        let before: Result<Vec<_>, _> =
            rows.iter().map(|(key, _)| self.view.tree().get(key).map_err(failed)).collect();
        for ((key, value), before) in rows.into_iter().zip(before?) {
            group.write(before, key, Some(value));
        }
        let written = writes.iter().map(Option::is_some);
        for ((key, stored), written) in keys.into_iter().zip(stored).zip(written) {
            if written {
                group.records.insert(key, stored);
            }
        }
        group.feeds.insert(title.clone(), (feed, ends));
        Ok(Some(applied))
    }

    fn record(&self, key: &[u8], group: &Group) -> Result<StoredRecord, StoreError> {
        if let Some(stored) = group.records.get(key) {
            return Ok(stored.clone());
        }
        match self.view.tree().get(key).map_err(failed)? {
            Some(value) => read_record(key, &value),
            None => Ok(StoredRecord::default()),
        }
    }

    /// Removes the oldest completions that need not be kept, at most [`TRIM_ROWS_MAX`].
    fn stage_trim(
        &self,
        title: &Title,
        keep: Retention,
        group: &mut Group,
    ) -> Result<usize, StoreError> {
        let (feed, mut ends) = group.feed(&self.feeds, title);
        // Only what was durable before this group can go; what the group adds is not there yet.
        let head = feed.ends().head;
        let mut removed = Vec::new();
        let mut completed_at = EpochSeconds::default();
        while ends.trimmed_through < head && removed.len() < TRIM_ROWS_MAX {
            let sequence = ends.trimmed_through + 1;
            let key = keys::completion(title, sequence);
            let value = self.view.tree().get(&key).map_err(failed)?;
            let missing = || StoreError::Corrupt(format!("completion {sequence} is missing"));
            let row: CompletionRow = read_row(&key, &value.clone().ok_or_else(missing)?)?;
            if keep.keeps(ends.head - ends.trimmed_through, EpochSeconds::new(row.completed_at)) {
                break;
            }
            completed_at = EpochSeconds::new(row.completed_at);
            removed.push((key, value));
            ends.trimmed_through = sequence;
        }
        if removed.is_empty() {
            return Ok(0);
        }
        let key = keys::Key::Feed(title.clone()).encode();
        let row = FeedRow {
            trimmed_through: ends.trimmed_through,
            trimmed_completed_at: completed_at.get(),
        };
        group.write(
            self.view.tree().get(&key).map_err(failed)?,
            key.clone(),
            Some(frame::encode(&key, &row)),
        );
        let count = removed.len();
        for (key, value) in removed {
            group.write(value, key, None);
        }
        // Readers must learn that these are going before they go.
        feed.trim(ends.trimmed_through);
        group.feeds.insert(title.clone(), (feed, ends));
        Ok(count)
    }

    /// Writes a catalogue in steps of bounded size. Writing the title's row is the commit point;
    /// a crash before it leaves chunks that nothing refers to, which open removes.
    fn replace_catalog(
        &mut self,
        title: &Title,
        expected: u64,
        catalog: Arc<Catalog>,
    ) -> Result<StoredCatalog, CatalogError> {
        self.check_serving()?;
        let steps = catalogs::plan(self.view.tree(), title, expected, &catalog)?;
        for step in steps {
            let mut group = Group::default();
            for (key, value) in step {
                let before = self.view.tree().get(&key).map_err(failed)?;
                group.write(before, key, value);
            }
            self.commit(group);
            self.check_serving()?;
        }
        Ok(StoredCatalog { title: title.clone(), revision: expected + 1, catalog })
    }

    fn check_serving(&self) -> Result<(), StoreError> {
        match *self.health.borrow() {
            StoreHealth::Serving => Ok(()),
            StoreHealth::Poisoned => Err(StoreError::Poisoned),
        }
    }

    /// Makes a group durable, then shows it, then answers.
    fn commit(&mut self, group: Group) {
        let done = match group.bytes {
            // Nothing was written: every answer is about what is durable already.
            0 => self.check_serving(),
            _ => self.make_durable(group.batch, group.before),
        };
        if done.is_ok() {
            for (feed, ends) in group.feeds.into_values() {
                if feed.ends().head < ends.head {
                    feed.extend(ends.head, ends.newest_completed_at);
                }
            }
        }
        for answer in group.answers {
            answer(done.clone());
        }
    }

    fn make_durable(&mut self, batch: Batch, before: Before) -> Result<(), StoreError> {
        self.check_serving()?;
        self.view.hide(before);
        *self.under_way.lock() = Some(Instant::now());
        let applied = self.view.tree().apply_batch(batch).map_err(io::Error::other);
        let synced = applied.and_then(|()| (self.sync_log)()).and_then(|()| self.check_blobs());
        *self.under_way.lock() = None;
        if let Err(error) = synced {
            self.poison(&error.to_string());
            return Err(StoreError::Poisoned);
        }
        self.view.publish();
        Ok(())
    }

    /// Asks for the folder's time only: that needs no file descriptor, so a process that has run
    /// out of them does not take its store for damaged.
    fn check_blobs(&self) -> io::Result<()> {
        let (blobs, unchanged) = &self.blobs;
        match fs::metadata(blobs)?.modified()? == *unchanged {
            true => Ok(()),
            false => Err(io::Error::other("sled wrote a blob, which it does not sync")),
        }
    }

    fn poison(&self, cause: &str) {
        poison(&self.health, cause);
    }
}

/// Ends all writes, and says so.
pub(super) fn poison(health: &watch::Sender<StoreHealth>, cause: &str) {
    tracing::error!(
        cause,
        "a write failed: the store takes no more writes; free or repair the disk, run \
         `accolade verify` on a copy, then start the server anew"
    );
    health.send_replace(StoreHealth::Poisoned);
}

/// Answers a job of a poisoned store.
fn refuse(job: Job) {
    match job {
        Job::Apply(_, answer) => drop(answer.send(Err(StoreError::Poisoned.into()))),
        Job::Trim(_, _, answer) => drop(answer.send(Err(StoreError::Poisoned))),
        Job::ReplaceCatalog(_, _, _, answer) => {
            drop(answer.send(Err(StoreError::Poisoned.into())));
        }
    }
}

// === impl Group ===

impl Group {
    fn write(&mut self, before: Option<IVec>, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        match value {
            Some(value) => self.batch.insert(key.as_slice(), value),
            None => self.batch.remove(key.as_slice()),
        }
        // A key written twice in one group was hidden with its durable value the first time.
        self.before.entry(key).or_insert(before);
    }

    /// A title's feed, and its ends as they are at the end of the group.
    fn feed(&self, feeds: &Feeds, title: &Title) -> (Arc<TitleFeed>, FeedEnds) {
        if let Some((feed, ends)) = self.feeds.get(title) {
            return (feed.clone(), *ends);
        }
        let feed = feeds.of(title);
        let ends = feed.ends();
        (feed, ends)
    }

    fn answer(&mut self, answer: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        self.answers.push(Box::new(answer));
    }
}
