//! The committer: a thread that takes updates from a bounded queue, judges them against the store
//! and each other, and applies them in groups. The publisher (`publish.rs`) then makes each group
//! durable, shows it and answers, while the committer is at work on the next.
//!
//! A group is one sled `Batch` on one tree, so it is recovered wholly or not at all; a record and
//! its completion are in the same one. Versions are compared by the committer itself: nobody else
//! writes, so what it reads cannot change before it writes. (The alternative, completion first and
//! `compare_and_swap` of the record as commit point, leaves completions without a record behind
//! after every crash, which must be found and dropped at open.)
//!
//! The order of a group: judge → hide from readers → apply → flush and sync → show → answer. If
//! anything between apply and sync fails, the group stays hidden, the store takes no more writes,
//! and nobody is told that anything was stored.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc::SyncSender},
};

use sled::Batch;
use tokio::sync::{mpsc, oneshot};

use super::{
    bounds::{GROUP_BYTES_MAX, ITEM_BYTES_MAX, WORK_BYTES_MAX},
    catalogs,
    counts::Tally,
    feeds::{FeedEnds, Feeds, TitleFeed},
    frame, keys,
    poison::Poison,
    publish::{Answer, Handover, Sealed},
    rows::{event_to_row, record_to_row},
    subscriptions::{Moved, Places},
    view::{Change, Changes, DurableView, find},
    watchdog::Stopwatch,
    work::{Room, Work},
};
use crate::{
    clock::Clock,
    domain::{
        Catalog, Completion, EpochSeconds, Event, NodeId, PlayerKey, PlayerUpdate, Record, Ruling,
        Title, decide,
    },
    metrics::METRICS,
    proto::rows::{FeedRow, StoreRow},
    store::{
        Applied, ApplyError, CatalogError, StoreError, StoredCatalog, StoredRecord,
        crash_point::crash_point, cursor::CursorCodec,
    },
};

/// A group of no more jobs, with none behind it, is a sign that the store is nearly idle.
const ALONE_JOBS_MAX: usize = 2;

/// Something to do for the committer, and whom to answer.
pub(super) enum Job {
    Apply(PlayerUpdate, oneshot::Sender<Result<Applied, ApplyError>>),
    Work(Box<dyn Work>),
    ReplaceCatalog(Title, u64, Arc<Catalog>, oneshot::Sender<Result<StoredCatalog, CatalogError>>),
}

/// The committer's state; [`Committer::run`] is its thread.
pub(super) struct Committer {
    pub(super) view: Arc<DurableView>,
    pub(super) feeds: Arc<Feeds>,
    /// Feeds with every completion that is applied, durable or not.
    pub(super) applied_feeds: HashMap<Title, (Arc<TitleFeed>, FeedEnds)>,
    /// As they are applied, durable or not.
    pub(super) subscriptions: Places,
    pub(super) cursors: CursorCodec,
    pub(super) clock: Arc<dyn Clock>,
    /// The store's own row, as of the last group.
    pub(super) row: StoreRow,
    pub(super) poison: Poison,
    pub(super) stopwatch: Stopwatch,
    pub(super) handover: Handover,
    /// To the publisher's thread, which takes one group at a time.
    pub(super) publisher: SyncSender<Sealed>,
}

/// Updates that become durable together.
#[derive(Default)]
pub(super) struct Group {
    batch: Batch,
    bytes: usize,
    jobs: usize,
    /// Changes: each is one more version of a record, revision of a catalogue, completion that left
    /// its feed, or move of a subscription.
    pub(super) stored: u64,
    /// Changes of rows that go.
    pub(super) removed: u64,
    /// Records that complete.
    completions: u64,
    changes: Changes,
    tally: Tally,
    pub(super) feeds: HashMap<Title, (Arc<TitleFeed>, FeedEnds)>,
    pub(super) subscriptions: Vec<Moved>,
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
            if self.poison.is_set() {
                refuse(first);
                continue;
            }
            let work = AssertUnwindSafe(|| self.commit_from(first, &mut jobs));
            match catch_unwind(work) {
                Ok(next) => carried = next,
                Err(_) => self.poison.set("the committer panicked"),
            }
        }
    }

    /// Commits `first` together with what else is waiting; gives back a job that had no room.
    fn commit_from(&mut self, first: Job, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
        let mut group = Group::default();
        let group_jobs = self.handover.group_jobs();
        let (mut next, mut is_full) = (Some(first), false);
        while let Some(job) = next.take() {
            match job {
                Job::ReplaceCatalog(title, expected, catalog, answer) => {
                    self.seal(std::mem::take(&mut group), false);
                    self.replace_catalog(&title, expected, catalog, answer);
                }
                Job::Apply(..) | Job::Work(_) => {
                    is_full = matches!(&job, Job::Work(work) if work.room() == Room::Alone);
                    if let Place::NoRoom(job) = self.place(job, &mut group) {
                        self.seal(group, false);
                        return Some(job);
                    }
                }
            }
            if group.jobs < group_jobs && !is_full {
                next = jobs.try_recv().ok();
            }
        }
        METRICS.updates_waiting.set(i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        let is_alone = jobs.is_empty() && group.jobs <= ALONE_JOBS_MAX;
        self.seal(group, is_alone);
        None
    }

    fn place(&mut self, job: Job, group: &mut Group) -> Place {
        let answer = match job {
            Job::Apply(update, answer) => match self.stage(&update, group).transpose() {
                Some(result) => Answer::Applied(answer, result),
                None => return Place::NoRoom(Job::Apply(update, answer)),
            },
            Job::Work(work) if !group.takes(work.room()) => {
                return Place::NoRoom(Job::Work(work));
            }
            Job::Work(work) => work.stage(self, group),
            Job::ReplaceCatalog(..) => unreachable!("a catalogue is not part of a group"),
        };
        group.answers.push(answer);
        group.jobs += 1;
        Place::Taken
    }

    /// Judges an update as of the end of the group, and adds what it writes. The result is the
    /// answer, if the group becomes durable; `Ok(None)` where the group has no room for it.
    fn stage(
        &mut self,
        update: &PlayerUpdate,
        group: &mut Group,
    ) -> Result<Option<Applied>, ApplyError> {
        let title = &update.key.title;
        let mut stored = Vec::with_capacity(update.updates.len());
        for item in &update.updates {
            stored.push(self.record(&update.key, item.node.definition().node_id(), group)?);
        }
        let (feed, mut ends) = self.feed(title, group);
        let head = ends.head;
        let now = self.clock.now().max(ends.newest_stored_at);
        let nothing = Record::default();
        let records: Vec<_> =
            stored.iter().map(|it| it.as_ref().map_or(&nothing, |it| &it.record)).collect();
        let Ruling { replayed, outcomes, writes } = decide(update, &records, now)?;

        let makes = writes.iter().zip(&stored).any(|(write, it)| write.is_some() && it.is_none());
        let players = i64::from(makes && self.is_new(&update.key, group)?);
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::with_capacity(writes.len());
        let mut changes = Vec::with_capacity(writes.len());
        let mut answered = Vec::with_capacity(writes.len());
        let items = update.updates.iter().zip(stored);
        for ((outcome, write), (item, before)) in outcomes.into_iter().zip(writes).zip(items) {
            let mut sequence = before.as_ref().map_or(0, |before| before.completion_sequence);
            if let Some(record) = write {
                let node = item.node.definition().node_id();
                if outcome.newly_completed {
                    ends.head += 1;
                    ends.newest_stored_at = now;
                    sequence = ends.head;
                    let event = Event::Completion(Completion::of(&update.key, &item.node, &record));
                    let key = keys::completion(title, sequence);
                    let value = frame::encode(&key, &event_to_row(&event, now));
                    rows.push((key, value));
                }
                let past = before.as_ref().map_or(Vec::new(), |before| before.past.clone());
                let after = StoredRecord { record, completion_sequence: sequence, past };
                let key = keys::record(&update.key, node);
                let value = frame::encode(&key, &record_to_row(&after));
                rows.push((key, value));
                let after = Some(Arc::new(after));
                changes.push(Change { node: node.clone(), before, after });
            }
            let cursor = outcome.newly_completed.then(|| self.cursors.encode(title, sequence));
            answered.push((outcome, cursor));
        }
        let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > GROUP_BYTES_MAX {
            return Err(ApplyError::TooLarge { bytes, bytes_max: GROUP_BYTES_MAX });
        }
        if group.bytes + bytes > GROUP_BYTES_MAX {
            return Ok(None);
        }

        // Nothing above has touched the group: an update that fails leaves no half of it there.
        for (key, value) in rows {
            group.write(key, Some(value));
        }
        if !changes.is_empty() {
            group.stored += changes.len() as u64;
            group.completions += ends.head - head;
            group.change(&update.key, changes, players);
            if feed.ends().head < ends.head {
                group.feeds.insert(title.clone(), (feed, ends));
            }
        }
        Ok(Some(Applied { replayed, outcomes: answered }))
    }

    /// A record as it is at the end of the group.
    pub(super) fn record(
        &self,
        player: &PlayerKey,
        node: &NodeId,
        group: &Group,
    ) -> Result<Option<Arc<StoredRecord>>, StoreError> {
        match find(&group.changes, player, node) {
            Some(change) => Ok(change.after.clone()),
            None => self.view.applied(player, node),
        }
    }

    /// Whether a player has no record at the end of the group.
    pub(super) fn is_new(&self, player: &PlayerKey, group: &Group) -> Result<bool, StoreError> {
        // An erasure is alone in its group: whatever else is there has made a record.
        Ok(!group.changes.contains_key(player) && !self.view.has_applied(player)?)
    }

    /// A title's feed, and its ends as they are at the end of the group.
    pub(super) fn feed(&mut self, title: &Title, group: &Group) -> (Arc<TitleFeed>, FeedEnds) {
        if let Some(feed) = group.feeds.get(title) {
            return feed.clone();
        }
        if let Some(feed) = self.applied_feeds.get(title) {
            return feed.clone();
        }
        let feed = self.feeds.of(title);
        let ends = feed.ends();
        self.applied_feeds.insert(title.clone(), (feed.clone(), ends));
        (feed, ends)
    }

    /// Writes a catalogue in steps of bounded size. Writing the title's row is the commit point;
    /// a crash before it leaves chunks that nothing refers to, which open removes.
    fn replace_catalog(
        &mut self,
        title: &Title,
        expected: u64,
        catalog: Arc<Catalog>,
        answer: oneshot::Sender<Result<StoredCatalog, CatalogError>>,
    ) {
        let planned = catalogs::plan(self.view.tree(), title, expected, &catalog);
        let (steps, result) = match planned {
            Ok(steps) => {
                let (title, revision) = (title.clone(), expected + 1);
                (steps, Ok(StoredCatalog { title, revision, catalog }))
            }
            Err(error) => (Vec::new(), Err(error)),
        };
        for step in steps {
            let mut group = Group::default();
            for (key, value) in step {
                if let Some(keys::Key::Title(_)) = keys::Key::decode(&key) {
                    group.stored += 1;
                }
                group.write(key, value);
            }
            crash_point!("catalogue-step");
            self.seal(group, false);
        }
        // Behind all the steps: if one of them fails, this is answered so.
        let answers = vec![Answer::Replaced(answer, result)];
        self.seal(Group { answers, ..Group::default() }, false);
    }

    /// Applies a group and has it published; `is_alone` where no other job waits.
    fn seal(&mut self, group: Group, is_alone: bool) {
        let Group {
            mut batch,
            bytes,
            stored,
            removed,
            completions,
            changes,
            tally,
            feeds,
            subscriptions,
            answers,
            ..
        } = group;
        if bytes == 0 && answers.is_empty() {
            return;
        }
        {
            // Whoever poisons the store says so first and takes the answers afterwards; under the
            // lock, these come before that or are not put there at all.
            let mut unanswered = self.poison.unanswered();
            if self.poison.is_set() {
                drop(unanswered);
                for answer in answers {
                    answer.send(Err(StoreError::Poisoned));
                }
                return;
            }
            unanswered.push_back(answers);
        }
        let mut extended = Vec::with_capacity(feeds.len());
        for (title, (feed, ends)) in feeds {
            self.applied_feeds.insert(title, (feed.clone(), ends));
            extended.push((feed, ends));
        }
        if bytes > 0 {
            self.row.groups += 1;
            self.row.changes = self.row.changes.wrapping_add(stored);
            self.row.removed_changes = self.row.removed_changes.wrapping_add(removed);
            let key = keys::Key::Store.encode();
            let value = frame::encode(&key, &self.row);
            batch.insert(key, value);
            crash_point!("judged");
            self.view.hide(Arc::new(changes));
            crash_point!("hidden");
            self.stopwatch.start();
            let applied = self.view.tree().apply_batch(batch);
            self.stopwatch.stop();
            crash_point!("applied");
            if let Err(error) = applied {
                self.poison.set(&error.to_string());
                return;
            }
        }
        let number = (bytes > 0).then_some(self.row.groups);
        let sealed = Sealed { number, completions, tally, feeds: extended, subscriptions };
        self.handover.hand_over(sealed, is_alone, &self.publisher);
    }
}

/// Answers a job of a poisoned store.
fn refuse(job: Job) {
    match job {
        Job::Apply(_, answer) => drop(answer.send(Err(StoreError::Poisoned.into()))),
        Job::Work(work) => work.refuse(),
        Job::ReplaceCatalog(_, _, _, answer) => {
            drop(answer.send(Err(StoreError::Poisoned.into())));
        }
    }
}

// === impl Group ===

impl Group {
    pub(super) fn write(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        match value {
            Some(value) => self.batch.insert(key, value),
            None => self.batch.remove(key),
        }
    }

    /// Whether work that takes so much has a place here.
    fn takes(&self, room: Room) -> bool {
        match room {
            Room::Shared => self.bytes + WORK_BYTES_MAX <= GROUP_BYTES_MAX,
            Room::Alone => self.jobs == 0,
        }
    }

    /// Whether one more imported item has a place here.
    pub(super) fn takes_item(&self) -> bool {
        self.bytes + ITEM_BYTES_MAX <= GROUP_BYTES_MAX
    }

    /// Writes what is known of a feed beside its events.
    pub(super) fn write_feed(&mut self, title: &Title, ends: FeedEnds) {
        let key = keys::Key::Feed(title.clone()).encode();
        let row = FeedRow {
            trimmed_through: ends.trimmed_through,
            trimmed_completed_at: ends.trimmed_stored_at.get(),
            restored_through: ends.restored_through,
            erasures: ends.erasures,
        };
        let value = frame::encode(&key, &row);
        self.write(key, Some(value));
    }

    /// Writes what happened at a place of a feed.
    pub(super) fn write_event(
        &mut self,
        title: &Title,
        sequence: u64,
        event: &Event,
        stored_at: EpochSeconds,
    ) {
        let key = keys::completion(title, sequence);
        let value = frame::encode(&key, &event_to_row(event, stored_at));
        self.write(key, Some(value));
    }

    /// Writes a record of a later or the same version; `players` is how many more the title has.
    pub(super) fn write_record(
        &mut self,
        player: &PlayerKey,
        node: &NodeId,
        before: Option<Arc<StoredRecord>>,
        after: StoredRecord,
        players: i64,
    ) {
        let version = |of: &StoredRecord| of.record.state.version.get();
        let more = version(&after) - before.as_deref().map_or(0, version);
        self.stored = self.stored.wrapping_add(more);
        let key = keys::record(player, node);
        let value = frame::encode(&key, &record_to_row(&after));
        self.write(key, Some(value));
        let change = Change { node: node.clone(), before, after: Some(Arc::new(after)) };
        self.change(player, vec![change], players);
    }

    /// Adds changes to those of the same player; a record keeps what it was before the group.
    /// `players` is how many more the title has.
    pub(super) fn change(&mut self, player: &PlayerKey, changes: Vec<Change>, players: i64) {
        self.tally.take(&player.title, &changes, players);
        let Some(so_far) = self.changes.get_mut(player) else {
            self.changes.insert(player.clone(), changes);
            return;
        };
        for change in changes {
            match so_far.iter_mut().find(|it| it.node == change.node) {
                Some(earlier) => earlier.after = change.after,
                None => so_far.push(change),
            }
        }
    }
}
