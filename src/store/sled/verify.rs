//! Reads a whole store and tells whether every value is sound and whether records and completions
//! agree: run at every open, and by `accolade verify`.
//!
//! Agreement is checked in one pass without looking anything up. Each event that a record knows of
//! and each event of a feed is hashed over what they must have in common, and the two sums must be equal; a
//! second pass that does look up is made only to say what is wrong.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use sled::Tree;

use super::{
    catalogs,
    counts::ByTitle,
    feeds::FeedEnds,
    keys::{self, Key},
    read::{damaged, failed, read_entry, read_record, read_row},
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
    pub(super) feeds: HashMap<Title, FeedEnds>,
    pub(super) subscriptions: Places,
    pub(super) counts: ByTitle,
    pub(super) store: Option<StoreRow>,
    /// Sum of all versions, revisions, places through which feeds are trimmed, moves of
    /// subscriptions, and changes of rows that are gone.
    pub(super) changes: u64,
    /// Sum over what records have in the feeds, less the sum over what the feeds have.
    difference: u64,
    /// Whose record was the last. Those of a player stand together.
    last_player: Option<PlayerKey>,
}

/// Reads everything in a tree; `progress` is told now and then how many rows that were.
pub(super) fn verify(tree: &Tree, progress: &mut dyn FnMut(u64)) -> Result<Report, StoreError> {
    let mut report = Report::default();
    for (entry, count) in tree.iter().zip(1..) {
        if count % PROGRESS_ROWS == 0 {
            progress(count);
        }
        let (key, value) = entry.map_err(failed)?;
        let checked = match Key::decode(&key) {
            Some(decoded) => report.take(&key, decoded, &value),
            None => Err(damaged(&key, "stands under a key that this version does not know")),
        };
        if let Err(error) = checked {
            report.problem(error.to_string());
        }
    }
    match report.store {
        None => report.problem("the store has no row of its own".to_owned()),
        Some(StoreRow { groups: 1.., changes, .. }) if changes != report.changes => {
            let found = report.changes;
            report.problem(format!("{changes} changes were stored, {found} are there"));
        }
        Some(_) => {}
    }
    match catalogs::load(tree) {
        Ok(catalogs) if catalogs.len() as u64 == report.titles => {}
        Ok(_) => report.problem("catalogues are there that cannot be looked up".to_owned()),
        Err(error) => report.problem(error.to_string()),
    }
    if report.difference != 0 {
        report.explain(tree)?;
    }
    Ok(report)
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
                    newest_stored_at: EpochSeconds::new(row.trimmed_stored_at),
                    restored_through: row.restored_through,
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
            Key::Record(player, node) => self.take_record(key, &player, &node, value)?,
            Key::Completion { title, sequence } => {
                self.take_event(key, title, sequence, value)?;
            }
        }
        Ok(())
    }

    fn take_record(
        &mut self,
        key: &[u8],
        player: &PlayerKey,
        node: &NodeId,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.records += 1;
        let stored = read_record(key, value)?;
        self.changes = self.changes.wrapping_add(stored.record.state.version.get());
        let trimmed = self.feeds.get(&player.title).map_or(0, |ends| ends.trimmed_through);
        for event in stored.events().filter(|event| event.sequence > trimmed) {
            let sum = fingerprint(player, node, &event);
            self.difference = self.difference.wrapping_add(sum);
        }
        self.count(player, node, stored.completion_sequence != 0);
        Ok(())
    }

    fn count(&mut self, player: &PlayerKey, node: &NodeId, is_completed: bool) {
        let is_new = self.last_player.as_ref() != Some(player);
        if is_new || is_completed {
            if !self.counts.contains_key(&player.title) {
                self.counts.insert(player.title.clone(), Rarity::default());
            }
            let count = self.counts.get_mut(&player.title).expect("it was just put there");
            count.players += u64::from(is_new);
            match count.completed.get_mut(node) {
                Some(completed) => *completed += u64::from(is_completed),
                None => drop(count.completed.insert(node.clone(), u64::from(is_completed))),
            }
        }
        if is_new {
            self.last_player = Some(player.clone());
        }
    }

    fn take_event(
        &mut self,
        key: &[u8],
        title: Title,
        sequence: u64,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.events += 1;
        let entry = read_entry(key, value, CursorCodec::new(0), &title, sequence)?;
        if let Some((player, node, event)) = in_record(&entry, sequence) {
            let sum = fingerprint(player, node, &event);
            self.difference = self.difference.wrapping_sub(sum);
        }
        let ends = self.feeds.entry(title).or_default();
        let expected = ends.head + 1;
        ends.head = sequence;
        ends.newest_stored_at = ends.newest_stored_at.max(entry.stored_at);
        if sequence != expected {
            return Err(damaged(key, &format!("follows a hole: {expected} is missing")));
        }
        Ok(())
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
