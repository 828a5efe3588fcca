//! Reads a whole store and tells whether every value is sound and whether records and completions
//! agree: run at every open, and by `accolade verify`.
//!
//! Agreement is checked in one pass without looking anything up. Each completed record and each
//! completion is hashed over what they must have in common, and the two sums must be equal; a
//! second pass that does look up is made only to say what is wrong.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use sled::Tree;

use super::{
    catalogs,
    feeds::FeedEnds,
    keys::{self, Key},
    read::{damaged, failed, read_record, read_row},
    rows::completion_from_row,
    subscriptions::Places,
};
use crate::{
    domain::{Completion, Cursor, EpochSeconds, NodeId, PlayerKey, Title},
    proto::rows::{CompletionRow, FeedRow, StoreRow, SubscriptionRow, TitleRow},
    store::StoreError,
};

/// Most problems that one report names.
const PROBLEMS_MAX: usize = 20;

/// What a store holds.
#[derive(Debug, Default)]
pub struct Report {
    /// Titles with a catalogue.
    pub titles: u64,
    /// Records.
    pub records: u64,
    /// Completions that are retained.
    pub completions: u64,
    /// What is wrong, at most 20 lines; empty where everything is sound.
    pub problems: Vec<String>,
    pub(super) feeds: HashMap<Title, FeedEnds>,
    pub(super) subscriptions: Places,
    pub(super) store: Option<StoreRow>,
    /// Sum of all versions, revisions, places through which feeds are trimmed, moves of
    /// subscriptions, and changes of rows that are gone.
    pub(super) changes: u64,
    /// Sum over completed records whose completion is retained, less the sum over completions.
    difference: u64,
}

/// Reads everything in a tree.
pub(super) fn verify(tree: &Tree) -> Result<Report, StoreError> {
    let mut report = Report::default();
    for entry in tree {
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
                    newest_completed_at: EpochSeconds::new(row.trimmed_completed_at),
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
                self.take_completion(key, title, sequence, value)?;
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
        let sequence = stored.completion_sequence;
        let trimmed = self.feeds.get(&player.title).map_or(0, |ends| ends.trimmed_through);
        if sequence > trimmed {
            let at = stored.record.state.completed_at;
            let sum =
                fingerprint(player, node, sequence, at, stored.record.completed_version.get());
            self.difference = self.difference.wrapping_add(sum);
        }
        Ok(())
    }

    fn take_completion(
        &mut self,
        key: &[u8],
        title: Title,
        sequence: u64,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.completions += 1;
        let row: CompletionRow = read_row(key, value)?;
        let Some(completion) = completion(&title, &row) else {
            return Err(damaged(key, "is no possible completion"));
        };
        let (node, at) = (completion.node.definition().node_id(), completion.completed_at);
        let sum = fingerprint(&completion.key, node, sequence, at, row.version);
        self.difference = self.difference.wrapping_sub(sum);

        let ends = self.feeds.entry(title).or_default();
        let expected = ends.head + 1;
        ends.head = sequence;
        ends.newest_completed_at = ends.newest_completed_at.max(at);
        if sequence != expected {
            return Err(damaged(key, &format!("follows a hole: {expected} is missing")));
        }
        Ok(())
    }

    /// Names the records and completions that do not agree.
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
                    check_completion(tree, &key, &title, sequence, &value)?
                }
                _ => None,
            };
            if let Some(problem) = problem {
                self.problem(problem);
            }
        }
        if self.problems.is_empty() {
            self.problem("records and completions do not agree".to_owned());
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
        let sequence = stored.completion_sequence;
        let trimmed = self.feeds.get(&player.title).map_or(0, |ends| ends.trimmed_through);
        if sequence <= trimmed {
            return Ok(None);
        }
        let completion = tree.get(keys::completion(&player.title, sequence)).map_err(failed)?;
        Ok(completion.is_none().then(|| {
            format!("record {player:?} {node:?} completed at {sequence}, which the feed lacks")
        }))
    }
}

fn check_completion(
    tree: &Tree,
    key: &[u8],
    title: &Title,
    sequence: u64,
    value: &[u8],
) -> Result<Option<String>, StoreError> {
    let Ok(row) = read_row::<CompletionRow>(key, value) else { return Ok(None) };
    let Some(completion) = completion(title, &row) else { return Ok(None) };
    let (player, node) = (&completion.key, completion.node.definition().node_id());
    let record_key = keys::record(player, node);
    let record = tree.get(&record_key).map_err(failed)?;
    let agrees = record.and_then(|value| read_record(&record_key, &value).ok()).is_some_and(|it| {
        it.completion_sequence == sequence
            && it.record.completed_version.get() == row.version
            && it.record.state.completed_at.get() == row.completed_at
    });
    Ok((!agrees).then(|| {
        format!("completion {sequence} of {title:?} does not agree with record {player:?} {node:?}")
    }))
}

/// A completion without its cursor, which is not looked at here.
fn completion(title: &Title, row: &CompletionRow) -> Option<Completion> {
    completion_from_row(row, title.clone(), Cursor::new(""))
}

fn fingerprint(
    player: &PlayerKey,
    node: &NodeId,
    sequence: u64,
    completed_at: EpochSeconds,
    version: u64,
) -> u64 {
    let mut hasher = DefaultHasher::new();
    (player, node, sequence, completed_at.get(), version).hash(&mut hasher);
    hasher.finish()
}
