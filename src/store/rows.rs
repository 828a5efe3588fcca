//! Between stored rows and domain values. Everything read from disk is checked again: a value that
//! could not have been written is damage, whatever its checksum says.

use std::sync::Arc;

use crate::{
    domain::{
        Catalog, Completion, Cursor, Definition, DefinitionDraft, Entry, EpochSeconds, Event,
        Extra, LATE_UPDATES_MAX, Late, Node, NodeId, PlayerId, PlayerKey, Progress, Reason, Record,
        Remembered, RequestId, Reset, State, Title, Version,
    },
    proto::rows::{
        CatalogRow, CompletionRow, DefinitionRow, LateRow, PastEventRow, RecordRow, RememberedRow,
        ResetRow,
    },
    store::{PastEvent, StoredRecord},
};

/// Versions and times are int64 in the API.
const NUMBER_MAX: u64 = i64::MAX as u64;

pub(super) fn record_to_row(stored: &StoredRecord) -> RecordRow {
    let Record { state, completed_version, remembered, reset_at, late } = &stored.record;
    RecordRow {
        progress: state.progress.get(),
        completed_at: state.completed_at.get(),
        extra: state.extra.as_str().to_owned(),
        version: state.version.get(),
        completed_version: completed_version.get(),
        completion_sequence: stored.completion_sequence,
        remembered: remembered.iter().map(remembered_to_row).collect(),
        past: stored.past.iter().map(past_to_row).collect(),
        reset_at: reset_at.get(),
        late: late.iter().map(late_to_row).collect(),
    }
}

pub(super) fn record_from_row(row: &RecordRow) -> Option<StoredRecord> {
    let completed = row.completed_at != 0;
    let agrees =
        completed == (row.completed_version != 0) && completed == (row.completion_sequence != 0);
    let in_range = (1..=NUMBER_MAX).contains(&row.version)
        && row.completed_version <= row.version
        && row.completed_at <= NUMBER_MAX
        && row.reset_at <= NUMBER_MAX;
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
    let late: Option<Vec<_>> = row.late.iter().map(late_from_row).collect();
    let record = Record {
        state,
        completed_version: Version::stored(row.completed_version),
        remembered: remembered?,
        reset_at: EpochSeconds::new(row.reset_at),
        late: late.filter(|late| late.len() <= LATE_UPDATES_MAX)?,
    };
    let past: Option<Vec<_>> = row.past.iter().map(past_from_row).collect();
    let completion_sequence = row.completion_sequence;
    let stored = StoredRecord { record, completion_sequence, past: past? };
    stored.is_sound().then_some(stored)
}

fn past_to_row(past: &PastEvent) -> PastEventRow {
    PastEventRow { sequence: past.sequence, version: past.version.get(), at: past.at.get() }
}

fn past_from_row(row: &PastEventRow) -> Option<PastEvent> {
    let numbers = [row.version, row.at];
    let in_range = numbers.iter().all(|number| (1..=NUMBER_MAX).contains(number));
    (in_range && row.sequence > 0).then(|| PastEvent {
        sequence: row.sequence,
        version: Version::stored(row.version),
        at: EpochSeconds::new(row.at),
    })
}

fn late_to_row(late: &Late) -> LateRow {
    LateRow { request_digest: late.request_digest, at: late.at.get() }
}

fn late_from_row(row: &LateRow) -> Option<Late> {
    let late = Late { request_digest: row.request_digest, at: EpochSeconds::new(row.at) };
    (row.at <= NUMBER_MAX).then_some(late)
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

pub(super) fn event_to_row(event: &Event, stored_at: EpochSeconds) -> CompletionRow {
    let row = match event {
        Event::Completion(completion) => completion_to_row(completion),
        Event::Reset(reset) => {
            CompletionRow { reset: Some(reset_to_row(reset)), ..CompletionRow::default() }
        }
        Event::Erased => CompletionRow { erased: true, ..CompletionRow::default() },
    };
    let known = row.completed_at.max(row.reset.as_ref().map_or(0, |reset| reset.reset_at));
    let stored_at = if known == stored_at.get() { 0 } else { stored_at.get() };
    CompletionRow { stored_at, ..row }
}

fn completion_to_row(completion: &Completion) -> CompletionRow {
    CompletionRow {
        player_id: completion.key.player.as_str().to_owned(),
        definition: Some(definition_to_row(completion.node.definition())),
        root_id: completion.node.root_id().as_str().to_owned(),
        progress: completion.progress.get(),
        completed_at: completion.completed_at.get(),
        version: completion.version.get(),
        extra: completion.extra.as_str().to_owned(),
        ..CompletionRow::default()
    }
}

fn reset_to_row(reset: &Reset) -> ResetRow {
    ResetRow {
        player_id: reset.key.player.as_str().to_owned(),
        node_id: reset.node.as_str().to_owned(),
        reason: reset.reason.as_str().to_owned(),
        progress: reset.progress.get(),
        completed_at: reset.completed_at.get(),
        version: reset.version.get(),
        reset_at: reset.reset_at.get(),
    }
}

/// When the event of a row was stored.
pub(super) fn stored_at(row: &CompletionRow) -> EpochSeconds {
    let of_event = row.reset.as_ref().map_or(row.completed_at, |reset| reset.reset_at);
    EpochSeconds::new(if row.stored_at == 0 { of_event } else { row.stored_at })
}

pub(super) fn entry_from_row(row: &CompletionRow, title: Title, cursor: Cursor) -> Option<Entry> {
    let event = match (&row.reset, row.erased) {
        (None, false) => Event::Completion(completion_from_row(row, title)?),
        (Some(reset), false) => Event::Reset(reset_from_row(reset, title)?),
        (None, true) => Event::Erased,
        (Some(_), true) => return None,
    };
    let is_alone = CompletionRow {
        reset: row.reset.clone(),
        erased: row.erased,
        stored_at: row.stored_at,
        source_position: row.source_position,
        ..CompletionRow::default()
    } == *row;
    let stored_at = stored_at(row);
    let sound = (is_alone || matches!(event, Event::Completion(_)))
        && (1..=NUMBER_MAX).contains(&stored_at.get())
        && row.stored_at <= NUMBER_MAX;
    sound.then_some(Entry { cursor, stored_at, event })
}

fn completion_from_row(row: &CompletionRow, title: Title) -> Option<Completion> {
    let numbers = [row.completed_at, row.version];
    if numbers.iter().any(|number| !(1..=NUMBER_MAX).contains(number)) {
        return None;
    }
    let definition = definition_from_row(row.definition.as_ref()?)?;
    let root_id = NodeId::parse(&row.root_id).ok()?;
    let player = PlayerId::parse(&row.player_id).ok()?;
    Some(Completion {
        key: PlayerKey { title, player },
        node: Arc::new(Node::stored(definition, root_id)),
        progress: progress(row.progress)?,
        completed_at: EpochSeconds::new(row.completed_at),
        version: Version::stored(row.version),
        extra: Extra::stored(&row.extra),
    })
}

fn reset_from_row(row: &ResetRow, title: Title) -> Option<Reset> {
    let numbers = [row.reset_at, row.version];
    let in_range = numbers.iter().all(|number| (1..=NUMBER_MAX).contains(number));
    if !in_range || row.completed_at > NUMBER_MAX {
        return None;
    }
    Some(Reset {
        key: PlayerKey { title, player: PlayerId::parse(&row.player_id).ok()? },
        node: NodeId::parse(&row.node_id).ok()?,
        reason: Reason::parse(&row.reason).ok()?,
        progress: progress(row.progress)?,
        completed_at: EpochSeconds::new(row.completed_at),
        version: Version::stored(row.version),
        reset_at: EpochSeconds::new(row.reset_at),
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
