//! Reads a whole store and tells whether every value is sound and whether records and completions
//! agree: run at every open, and by `accolade verify`.
//!
//! Agreement is checked in one pass without looking anything up. Each event that a record knows of
//! and each event of a feed is hashed over what they must have in common, and the two sums must be
//! equal; a second pass that does look up is made only to say what is wrong.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    num::NonZero,
    sync::{
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use sled::Tree;

use super::{
    catalogs,
    counts::ByTitle,
    feeds::FeedEnds,
    keys::{self, Key},
    read::{damaged, failed, read_entry, read_record, read_row},
    slices::{self, Slice},
    subscriptions::Places,
};
use crate::{
    domain::{Entry, EpochSeconds, Event, NodeId, PlayerKey, Title},
    proto::rows::{FeedRow, StoreRow, SubscriptionRow, TitleRow},
    store::{PastEvent, Rarity, StoreError, cursor::CursorCodec},
};

/// Most problems that one report names.
const PROBLEMS_MAX: usize = 20;

/// Rows between two signs of progress.
const PROGRESS_ROWS: u64 = 10_000;

/// How often progress is looked at.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// Slices for each thread: many, so that one which is larger than the others holds up nobody.
const SLICES_PER_THREAD: usize = 16;

/// What a store holds.
#[derive(Debug, Default)]
pub struct Report {
    /// Titles with a catalogue.
    pub titles: u64,
    /// Records.
    pub records: u64,
    /// Events of feeds that are retained: completions, resets, and places of what was erased.
    pub events: u64,
    /// What is wrong, at most 20 lines; empty where everything is sound.
    pub problems: Vec<String>,
    pub(super) feeds: Ends,
    pub(super) subscriptions: Places,
    pub(super) counts: ByTitle,
    pub(super) store: Option<StoreRow>,
    /// Sum of all versions, revisions, places through which feeds are trimmed, moves of
    /// subscriptions, and changes of rows that are gone.
    pub(super) changes: u64,
}

type Ends = HashMap<Title, FeedEnds>;

/// Reads everything in a tree; `progress` is told now and then how many rows that were. Records and
/// events, nearly all there is, are read by a thread a core.
pub(super) fn verify(tree: &Tree, progress: &mut dyn FnMut(u64)) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let (first, last) = keys::records_and_events();
    let others = tree.range(..first).chain(tree.range(last..));
    for entry in others {
        let (key, value) = entry.map_err(failed)?;
        let checked = match Key::decode(&key) {
            Some(decoded) => report.take(&key, decoded, &value),
            None => Err(damaged(&key, "stands under a key that this version does not know")),
        };
        if let Err(error) = checked {
            report.problem(error.to_string());
        }
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let slices = slices::cut(tree, &first, &last, threads * SLICES_PER_THREAD)?;
    let mut difference = 0_u64;
    let mut last_player = None;
    for part in read_slices(tree, &slices, threads, &report.feeds, progress)? {
        difference = difference.wrapping_add(part.difference);
        report.merge(part, &mut last_player);
    }
    match report.store {
        None => report.problem("the store has no row of its own".to_owned()),
        Some(StoreRow { groups: 1.., changes, .. }) if changes != report.changes => {
            let found = report.changes;
            report.problem(format!("{changes} changes were stored, {found} are there"));
        }
        Some(_) => {}
    }
    match catalogs::load(tree, &BTreeMap::new()) {
        Ok(catalogs) if catalogs.len() as u64 == report.titles => {}
        Ok(_) => report.problem("catalogues are there that cannot be looked up".to_owned()),
        Err(error) => report.problem(error.to_string()),
    }
    if difference != 0 {
        report.explain(tree)?;
    }
    Ok(report)
}

/// What each slice holds, in order.
fn read_slices(
    tree: &Tree,
    slices: &[Slice],
    threads: usize,
    feeds: &Ends,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Part>, StoreError> {
    let (next, rows) = (AtomicUsize::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let (done, finished) = mpsc::sync_channel(threads);
        for _ in 0..threads {
            let (done, next, rows) = (done.clone(), &next, &rows);
            scope.spawn(move || {
                while let Some((place, slice)) = take(slices, next) {
                    if done.send((place, Part::read(tree, slice, feeds, rows))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(done);
        let mut parts = Vec::with_capacity(slices.len());
        loop {
            match finished.recv_timeout(PROGRESS_PAUSE) {
                Ok((place, part)) => parts.push((place, part?)),
                Err(RecvTimeoutError::Timeout) => progress(rows.load(Ordering::Relaxed)),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        parts.sort_by_key(|(place, _)| *place);
        Ok(parts.into_iter().map(|(_, part)| part).collect())
    })
}

/// The next slice that nobody has taken.
fn take<'a>(slices: &'a [Slice], next: &AtomicUsize) -> Option<(usize, &'a Slice)> {
    let place = next.fetch_add(1, Ordering::Relaxed);
    Some((place, slices.get(place)?))
}

/// What a slice of records and events holds.
#[derive(Default)]
struct Part {
    records: u64,
    events: u64,
    changes: u64,
    /// Sum over what records have in the feeds, less the sum over what the feeds have.
    difference: u64,
    counts: ByTitle,
    /// Whose records are the first and the last. Those of a player stand together.
    players: Option<(PlayerKey, PlayerKey)>,
    /// The events of each feed.
    runs: Vec<Run>,
    problems: Vec<String>,
}

/// Events of a feed that follow each other.
struct Run {
    title: Title,
    first: u64,
    last: u64,
    newest_stored_at: EpochSeconds,
}

// === impl Part ===

impl Part {
    fn read(
        tree: &Tree,
        slice: &Slice,
        feeds: &Ends,
        rows: &AtomicU64,
    ) -> Result<Self, StoreError> {
        let mut part = Self::default();
        let entries = tree.range(slice.first.as_slice()..=slice.last.as_slice());
        for entry in entries {
            let (key, value) = entry.map_err(failed)?;
            let checked = match Key::decode(&key) {
                Some(Key::Record(player, node)) => {
                    part.take_record(&key, &player, &node, &value, feeds)
                }
                Some(Key::Completion { title, sequence }) => {
                    part.take_event(&key, &title, sequence, &value)
                }
                _ => Err(damaged(&key, "stands under a key that this version does not know")),
            };
            if let Err(error) = checked
                && part.problems.len() < PROBLEMS_MAX
            {
                part.problems.push(error.to_string());
            }
            let read = part.records + part.events;
            if read % PROGRESS_ROWS == 0 {
                rows.fetch_add(PROGRESS_ROWS, Ordering::Relaxed);
            }
        }
        Ok(part)
    }

    fn take_record(
        &mut self,
        key: &[u8],
        player: &PlayerKey,
        node: &NodeId,
        value: &[u8],
        feeds: &Ends,
    ) -> Result<(), StoreError> {
        self.records += 1;
        let stored = read_record(key, value)?;
        self.changes = self.changes.wrapping_add(stored.record.state.version.get());
        let trimmed = feeds.get(&player.title).map_or(0, |ends| ends.trimmed_through);
        for event in stored.events().filter(|event| event.sequence > trimmed) {
            let sum = fingerprint(player, node, &event);
            self.difference = self.difference.wrapping_add(sum);
        }
        self.count(player, node, stored.completion_sequence != 0);
        Ok(())
    }

    fn count(&mut self, player: &PlayerKey, node: &NodeId, is_completed: bool) {
        let is_new = self.players.as_ref().is_none_or(|(_, last)| last != player);
        if is_new || is_completed {
            let count = of_title(&mut self.counts, &player.title);
            count.players += u64::from(is_new);
            if is_completed {
                add(count, node, 1);
            }
        }
        match &mut self.players {
            None => self.players = Some((player.clone(), player.clone())),
            Some((_, last)) if is_new => *last = player.clone(),
            Some(_) => {}
        }
    }

    fn take_event(
        &mut self,
        key: &[u8],
        title: &Title,
        sequence: u64,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.events += 1;
        let entry = read_entry(key, value, CursorCodec::new(0), title, sequence)?;
        if let Some((player, node, event)) = in_record(&entry, sequence) {
            let sum = fingerprint(player, node, &event);
            self.difference = self.difference.wrapping_sub(sum);
        }
        match self.runs.last_mut() {
            Some(run) if run.title == *title && run.last + 1 == sequence => {
                run.last = sequence;
                run.newest_stored_at = run.newest_stored_at.max(entry.stored_at);
            }
            _ => self.runs.push(Run {
                title: title.clone(),
                first: sequence,
                last: sequence,
                newest_stored_at: entry.stored_at,
            }),
        }
        Ok(())
    }
}

fn of_title<'a>(counts: &'a mut ByTitle, title: &Title) -> &'a mut Rarity {
    if !counts.contains_key(title) {
        counts.insert(title.clone(), Rarity::default());
    }
    counts.get_mut(title).expect("it was just put there")
}

fn add(count: &mut Rarity, node: &NodeId, more: u64) {
    match count.completed.get_mut(node) {
        Some(completed) => *completed += more,
        None => drop(count.completed.insert(node.clone(), more)),
    }
}

// === impl Report ===

impl Report {
    pub(super) fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn take(&mut self, key: &[u8], decoded: Key, value: &[u8]) -> Result<(), StoreError> {
        match decoded {
            Key::Store => {
                let row: StoreRow = read_row(key, value)?;
                self.changes = self.changes.wrapping_add(row.removed_changes);
                self.store = Some(row);
            }
            Key::Title(_) => {
                self.titles += 1;
                let row: TitleRow = read_row(key, value)?;
                self.changes = self.changes.wrapping_add(row.revision);
            }
            Key::CatalogChunk { .. } => {}
            Key::Feed(title) => {
                let row: FeedRow = read_row(key, value)?;
                self.changes = self.changes.wrapping_add(row.trimmed_through);
                let ends = FeedEnds {
                    trimmed_through: row.trimmed_through,
                    head: row.trimmed_through,
                    trimmed_stored_at: EpochSeconds::new(row.trimmed_completed_at),
                    newest_stored_at: EpochSeconds::new(row.trimmed_completed_at),
                    restored_through: row.restored_through,
                    erasures: row.erasures,
                };
                self.feeds.insert(title, ends);
            }
            Key::Subscription(title, name) => {
                let row: SubscriptionRow = read_row(key, value)?;
                if row.moves == 0 {
                    return Err(damaged(key, "was never written"));
                }
                self.changes = self.changes.wrapping_add(row.moves);
                self.subscriptions.insert((title, name), row);
            }
            Key::Record(..) | Key::Completion { .. } => {
                return Err(damaged(key, "stands outside the keys of its kind"));
            }
        }
        Ok(())
    }

    /// Adds what the next slice holds; `last_player` is the last of those before it.
    fn merge(&mut self, part: Part, last_player: &mut Option<PlayerKey>) {
        self.records += part.records;
        self.events += part.events;
        self.changes = self.changes.wrapping_add(part.changes);
        for problem in part.problems {
            self.problem(problem);
        }
        for (title, Rarity { players, completed }) in part.counts {
            let count = of_title(&mut self.counts, &title);
            count.players += players;
            for (node, completed) in completed {
                add(count, &node, completed);
            }
        }
        if let Some((first, last)) = part.players {
            if last_player.as_ref() == Some(&first) {
                // The slices have cut through this player, who was counted in both.
                of_title(&mut self.counts, &first.title).players -= 1;
            }
            *last_player = Some(last);
        }
        for Run { title, first, last, newest_stored_at } in part.runs {
            let ends = self.feeds.entry(title.clone()).or_default();
            let expected = ends.head + 1;
            ends.head = last;
            ends.newest_stored_at = ends.newest_stored_at.max(newest_stored_at);
            if first != expected {
                let key = keys::completion(&title, first);
                let hole = format!("follows a hole: {expected} is missing");
                self.problem(damaged(&key, &hole).to_string());
            }
        }
    }

    /// Names the records and events that do not agree.
    fn explain(&mut self, tree: &Tree) -> Result<(), StoreError> {
        for entry in tree {
            if self.problems.len() >= PROBLEMS_MAX {
                break;
            }
            let (key, value) = entry.map_err(failed)?;
            let problem = match Key::decode(&key) {
                Some(Key::Record(player, node)) => {
                    self.check_record(tree, &key, &player, &node, &value)?
                }
                Some(Key::Completion { title, sequence }) => {
                    check_event(tree, &key, &title, sequence, &value)?
                }
                _ => None,
            };
            if let Some(problem) = problem {
                self.problem(problem);
            }
        }
        if self.problems.is_empty() {
            self.problem("records and events do not agree".to_owned());
        }
        Ok(())
    }

    fn check_record(
        &self,
        tree: &Tree,
        key: &[u8],
        player: &PlayerKey,
        node: &NodeId,
        value: &[u8],
    ) -> Result<Option<String>, StoreError> {
        let Ok(stored) = read_record(key, value) else { return Ok(None) };
        let trimmed = self.feeds.get(&player.title).map_or(0, |ends| ends.trimmed_through);
        for event in stored.events().filter(|event| event.sequence > trimmed) {
            let sequence = event.sequence;
            let there = tree.get(keys::completion(&player.title, sequence)).map_err(failed)?;
            if there.is_none() {
                return Ok(Some(format!(
                    "record {player:?} {node:?} has event {sequence}, which the feed lacks"
                )));
            }
        }
        Ok(None)
    }
}

fn check_event(
    tree: &Tree,
    key: &[u8],
    title: &Title,
    sequence: u64,
    value: &[u8],
) -> Result<Option<String>, StoreError> {
    let Ok(entry) = read_entry(key, value, CursorCodec::new(0), title, sequence) else {
        return Ok(None);
    };
    let Some((player, node, event)) = in_record(&entry, sequence) else { return Ok(None) };
    let record_key = keys::record(player, node);
    let record = tree.get(&record_key).map_err(failed)?;
    let record = record.and_then(|value| read_record(&record_key, &value).ok());
    let agrees = record.is_some_and(|stored| stored.events().any(|known| known == event));
    Ok((!agrees).then(|| {
        format!("event {sequence} of {title:?} does not agree with record {player:?} {node:?}")
    }))
}

/// What a record must know of an event of the feed; `None` where it is erased.
fn in_record(entry: &Entry, sequence: u64) -> Option<(&PlayerKey, &NodeId, PastEvent)> {
    let (player, node, version) = entry.event.of()?;
    let at = match &entry.event {
        Event::Completion(completion) => completion.completed_at,
        Event::Reset(reset) => reset.reset_at,
        Event::Erased => return None,
    };
    Some((player, node, PastEvent { sequence, version, at }))
}

fn fingerprint(player: &PlayerKey, node: &NodeId, event: &PastEvent) -> u64 {
    let mut hasher = DefaultHasher::new();
    let PastEvent { sequence, version, at } = event;
    (player, node, sequence, at.get(), version.get()).hash(&mut hasher);
    hasher.finish()
}
