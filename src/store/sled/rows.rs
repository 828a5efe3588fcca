//! Between stored rows and domain values. Everything read from disk is checked again: a value that
//! could not have been written is damage, whatever its checksum says.

use std::sync::Arc;

use crate::{
    domain::{
        Catalog, Completion, Cursor, Definition, DefinitionDraft, EpochSeconds, Extra, Node,
        NodeId, PlayerId, PlayerKey, Progress, Record, Remembered, RequestId, State, Title,
        Version,
    },
    proto::rows::{CatalogRow, CompletionRow, DefinitionRow, RecordRow, RememberedRow},
};

/// Versions and times are int64 in the API.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// A record and where its completion stands in the feed; sequence 0 while not completed.
#[derive(Clone, Debug, Default)]
pub(super) struct StoredRecord {
    pub(super) record: Record,
    pub(super) completion_sequence: u64,
}

impl StoredRecord {
    pub(super) fn to_row(&self) -> RecordRow {
        let Record { state, completed_version, remembered } = &self.record;
        RecordRow {
            progress: state.progress.get(),
            completed_at: state.completed_at.get(),
            extra: state.extra.as_str().to_owned(),
            version: state.version.get(),
            completed_version: completed_version.get(),
            completion_sequence: self.completion_sequence,
            remembered: remembered.iter().map(remembered_to_row).collect(),
        }
    }

    pub(super) fn from_row(row: &RecordRow) -> Option<Self> {
        let completed = row.completed_at != 0;
        let agrees = completed == (row.completed_version != 0)
            && completed == (row.completion_sequence != 0);
        let in_range = (1..=NUMBER_MAX).contains(&row.version)
            && row.completed_version <= row.version
            && row.completed_at <= NUMBER_MAX;
        if !(agrees && in_range) {
            return None;
        }
        let state = State {
            progress: progress(row.progress)?,
            completed_at: EpochSeconds::new(row.completed_at),
            extra: Extra::stored(&row.extra),
            version: Version::stored(row.version),
        };
        let versions = || row.remembered.iter().map(|past| past.version);
        if !versions().is_sorted_by(|a, b| a < b) || versions().any(|it| it > row.version) {
            return None;
        }
        let remembered: Option<Vec<_>> = row.remembered.iter().map(remembered_from_row).collect();
        let record = Record {
            state,
            completed_version: Version::stored(row.completed_version),
            remembered: remembered?,
        };
        Some(Self { record, completion_sequence: row.completion_sequence })
    }
}

fn progress(value: u64) -> Option<Progress> {
    let progress = Progress::clamped(value);
    (progress.get() == value).then_some(progress)
}

fn remembered_to_row(past: &Remembered) -> RememberedRow {
    RememberedRow {
        request_id: past.request_id.as_str().to_owned(),
        version: past.version.get(),
        progress_before: past.progress_before.get(),
        progress_after: past.progress_after.get(),
    }
}

fn remembered_from_row(row: &RememberedRow) -> Option<Remembered> {
    Some(Remembered {
        request_id: RequestId::parse(&row.request_id).ok()?,
        version: (row.version > 0).then(|| Version::stored(row.version))?,
        progress_before: progress(row.progress_before)?,
        progress_after: progress(row.progress_after)?,
    })
}

/// The completion that `record` just made at `node`.
pub(super) fn completion_to_row(player: &PlayerId, node: &Node, record: &Record) -> CompletionRow {
    CompletionRow {
        player_id: player.as_str().to_owned(),
        definition: Some(definition_to_row(node.definition())),
        root_id: node.root_id().as_str().to_owned(),
        progress: record.state.progress.get(),
        completed_at: record.state.completed_at.get(),
        version: record.state.version.get(),
        extra: record.state.extra.as_str().to_owned(),
    }
}

pub(super) fn completion_from_row(
    row: &CompletionRow,
    title: Title,
    cursor: Cursor,
) -> Option<Completion> {
    let numbers = [row.completed_at, row.version];
    if numbers.iter().any(|number| !(1..=NUMBER_MAX).contains(number)) {
        return None;
    }
    let definition = definition_from_row(row.definition.as_ref()?)?;
    let root_id = NodeId::parse(&row.root_id).ok()?;
    let player = PlayerId::parse(&row.player_id).ok()?;
    Some(Completion {
        cursor,
        key: PlayerKey { title, player },
        node: Arc::new(Node::stored(definition, root_id)),
        progress: progress(row.progress)?,
        completed_at: EpochSeconds::new(row.completed_at),
        version: Version::stored(row.version),
        extra: Extra::stored(&row.extra),
    })
}

pub(super) fn catalog_to_row(catalog: &Catalog) -> CatalogRow {
    let definitions = catalog.nodes().map(|node| definition_to_row(node.definition()));
    CatalogRow { definitions: definitions.collect() }
}

pub(super) fn catalog_from_row(row: CatalogRow) -> Option<Catalog> {
    let drafts: Option<_> = row.definitions.into_iter().map(draft_from_row).collect();
    Catalog::parse(drafts?).ok()
}

fn definition_to_row(definition: &Definition) -> DefinitionRow {
    let draft = definition.draft().clone();
    DefinitionRow {
        node_id: draft.node_id,
        max_progress: definition.max_progress().get(),
        display_name: draft.display_name,
        description: draft.description,
        unfinished_icon: draft.unfinished_icon,
        finished_icon: draft.finished_icon,
        parent_id: draft.parent_id,
        hidden: draft.hidden,
        rank: draft.rank,
        metadata: draft.metadata,
    }
}

fn definition_from_row(row: &DefinitionRow) -> Option<Definition> {
    Definition::parse(draft_from_row(row.clone())?, 0).ok()
}

fn draft_from_row(row: DefinitionRow) -> Option<DefinitionDraft> {
    Some(DefinitionDraft {
        node_id: row.node_id,
        max_progress: i64::try_from(row.max_progress).ok().filter(|target| *target > 0)?,
        display_name: row.display_name,
        description: row.description,
        unfinished_icon: row.unfinished_icon,
        finished_icon: row.finished_icon,
        parent_id: row.parent_id,
        hidden: row.hidden,
        rank: row.rank,
        metadata: row.metadata,
    })
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
