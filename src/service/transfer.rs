//! Items of an export as messages, and back. Whatever comes in is checked as if no store had ever
//! written it.

use std::{fmt, sync::Arc};

use super::wire::{self, int};
use crate::{
    domain::{
        Catalog, Completion, Cursor, Definition, DefinitionDraft, Entry, EpochSeconds, Event,
        Extra, LATE_UPDATES_MAX, Late, Node, NodeId, PROGRESS_MAX, PlayerId, PlayerKey, Progress,
        REMEMBERED_UPDATES, Reason, Record, Remembered, RequestId, Reset, State, SubscriptionName,
        Title, Version,
    },
    proto::v1::{self, exported_event, title_item::Item as Kind},
    store::{
        PastEvent, StoredRecord,
        sled::EXTRA_BYTES_MAX,
        transfer::{Item, UNPLACED},
    },
};

/// What a message of an export says.
#[derive(Debug)]
pub enum Piece {
    /// The title, and the store that it comes from; its feed begins with the item.
    Start {
        /// The catalogue.
        catalog: Catalog,
        /// The number of the store.
        store_id: u64,
        /// Where the feed begins.
        item: Item,
    },
    /// Something to store.
    Item(Item),
    /// Nothing: a checkpoint.
    Nothing,
    /// The export is whole.
    End,
}

pub(super) fn event_message(position: u64, entry: &Entry) -> Kind {
    let cursor = &entry.cursor;
    let event = match &entry.event {
        Event::Completion(it) => exported_event::Event::Completion(wire::completion(cursor, it)),
        Event::Reset(it) => exported_event::Event::Reset(wire::reset(cursor, it)),
        Event::Erased => exported_event::Event::Erased(v1::Erased {}),
    };
    Kind::Event(v1::ExportedEvent {
        position: int(position),
        stored_at: int(entry.stored_at.get()),
        event: Some(event),
    })
}

/// Where the places of its events are not those of the export (`is_placed`), they are left out.
pub(super) fn record_message(
    player: &PlayerId,
    node: &NodeId,
    stored: &StoredRecord,
    is_placed: bool,
) -> Kind {
    let position = |sequence| if is_placed { int(sequence) } else { 0 };
    let Record { state, completed_version, remembered, reset_at, late } = &stored.record;
    let past = stored.past.iter().map(|event| v1::ExportedPastEvent {
        position: position(event.sequence),
        version: int(event.version.get()),
        at: int(event.at.get()),
    });
    let remembered = remembered.iter().map(|update| v1::ExportedUpdate {
        request_id: update.request_id.as_str().to_owned(),
        version: int(update.version.get()),
        progress_before: int(update.progress_before.get()),
        progress_after: int(update.progress_after.get()),
    });
    let late = late.iter().map(|late| v1::ExportedLateUpdate {
        request_digest: late.request_digest,
        at: int(late.at.get()),
    });
    Kind::Record(v1::ExportedRecord {
        player_id: player.as_str().to_owned(),
        achievement_id: node.as_str().to_owned(),
        progress: int(state.progress.get()),
        completed_at: int(state.completed_at.get()),
        extra: state.extra.as_str().to_owned(),
        version: int(state.version.get()),
        completed_version: int(completed_version.get()),
        completion_position: position(stored.completion_sequence),
        past: past.collect(),
        remembered: remembered.collect(),
        reset_at: int(reset_at.get()),
        late: late.collect(),
    })
}

/// Reads a message of an export, for a title that may have another name here.
///
/// # Errors
///
/// What is wrong with it.
pub fn piece(message: v1::TitleItem, title: &Title) -> Result<Piece, String> {
    match message.item.ok_or("it is empty")? {
        Kind::Start(start) => Ok(Piece::Start {
            catalog: Catalog::parse(start.definitions.into_iter().map(wire::draft).collect())
                .map_err(|_| "its catalogue has mistakes")?,
            store_id: start.store_id,
            item: Item::FeedStart { position: number("removed_through", start.removed_through)? },
        }),
        Kind::Event(event) => event_item(event, title).map(Piece::Item),
        Kind::Record(record) => record_item(record).map(Piece::Item),
        Kind::Subscription(subscription) => Ok(Piece::Item(Item::Subscription {
            name: id("name", SubscriptionName::parse(&subscription.name))?,
            position: number("position", subscription.position)?,
        })),
        Kind::Checkpoint(_) => Ok(Piece::Nothing),
        Kind::Backup(_) | Kind::Seal(_) => Err("no export has such an item".to_owned()),
        Kind::End(_) => Ok(Piece::End),
    }
}

fn event_item(event: v1::ExportedEvent, title: &Title) -> Result<Item, String> {
    let stored_at = moment("stored_at", event.stored_at)?;
    let position = positive("position", event.position)?;
    let event = match event.event.ok_or("it has no event")? {
        exported_event::Event::Completion(it) => Event::Completion(completion(it, title)?),
        exported_event::Event::Reset(it) => Event::Reset(reset(&it, title)?),
        exported_event::Event::Erased(_) => Event::Erased,
    };
    let cursor = Cursor::new("");
    Ok(Item::Entry { position, entry: Box::new(Entry { cursor, stored_at, event }) })
}

fn completion(it: v1::Completion, title: &Title) -> Result<Completion, String> {
    let draft = DefinitionDraft {
        node_id: it.achievement_id,
        max_progress: it.max_progress,
        display_name: it.display_name,
        description: it.description,
        unfinished_icon: it.unfinished_icon,
        finished_icon: it.finished_icon,
        parent_id: it.parent_id,
        hidden: it.hidden,
        rank: it.rank,
        metadata: it.metadata,
    };
    let definition = Definition::parse(draft, 0).map_err(|_| "its node has mistakes")?;
    let root_id = id("root_id", NodeId::parse(&it.root_id))?;
    let player = id("player_id", PlayerId::parse(&it.player_id))?;
    Ok(Completion {
        key: PlayerKey { title: title.clone(), player },
        node: Arc::new(Node::stored(definition, root_id)),
        progress: progress("progress", it.progress)?,
        completed_at: moment("completed_at", it.completed_at)?,
        version: Version::stored(positive("version", it.version)?),
        extra: id("extra", Extra::parse(&it.extra, EXTRA_BYTES_MAX))?,
    })
}

fn reset(it: &v1::Reset, title: &Title) -> Result<Reset, String> {
    let player = id("player_id", PlayerId::parse(&it.player_id))?;
    Ok(Reset {
        key: PlayerKey { title: title.clone(), player },
        node: id("achievement_id", NodeId::parse(&it.achievement_id))?,
        reason: id("reason", Reason::parse(&it.reason))?,
        progress: progress("progress", it.progress)?,
        completed_at: EpochSeconds::new(number("completed_at", it.completed_at)?),
        version: Version::stored(positive("version", it.version)?),
        reset_at: moment("reset_at", it.reset_at)?,
    })
}

fn record_item(it: v1::ExportedRecord) -> Result<Item, String> {
    let (is_completed, is_placed) = (it.completed_at != 0, it.completion_position != 0);
    if is_completed != (it.completed_version != 0) || (is_placed && !is_completed) {
        return Err("it is half completed".to_owned());
    }
    let version = Version::stored(positive("version", it.version)?);
    // Events without a place are found by their versions, which grow as places do.
    let mut unplaced = UNPLACED..;
    let mut place = |position| match position {
        0 => unplaced.next().unwrap_or(UNPLACED),
        position => position,
    };
    let past: Result<Vec<_>, String> =
        it.past.iter().map(|event| past_event(event, &mut place)).collect();
    let remembered: Result<Vec<_>, String> = it.remembered.iter().map(remembered).collect();
    let remembered = remembered?;
    let follows = remembered.is_sorted_by(|a, b| a.version < b.version)
        && remembered.iter().all(|update| update.version <= version)
        && remembered.len() as u64 <= REMEMBERED_UPDATES;
    let late: Result<Vec<_>, String> = it.late.iter().map(late).collect();
    let late = late?;
    if !follows || late.len() > LATE_UPDATES_MAX {
        return Err("it remembers updates that it cannot have had".to_owned());
    }
    let past = past?;
    let stored = StoredRecord {
        record: Record {
            state: State {
                progress: progress("progress", it.progress)?,
                completed_at: EpochSeconds::new(number("completed_at", it.completed_at)?),
                extra: id("extra", Extra::parse(&it.extra, EXTRA_BYTES_MAX))?,
                version,
            },
            completed_version: Version::stored(number("completed_version", it.completed_version)?),
            remembered,
            reset_at: EpochSeconds::new(number("reset_at", it.reset_at)?),
            late,
        },
        completion_sequence: match is_completed {
            true => place(number("completion_position", it.completion_position)?),
            false => 0,
        },
        past,
    };
    if !stored.is_sound() {
        return Err("its events do not follow each other".to_owned());
    }
    Ok(Item::Record {
        player: id("player_id", PlayerId::parse(&it.player_id))?,
        node: id("achievement_id", NodeId::parse(&it.achievement_id))?,
        stored: Box::new(stored),
    })
}

fn past_event(
    it: &v1::ExportedPastEvent,
    place: &mut impl FnMut(u64) -> u64,
) -> Result<PastEvent, String> {
    Ok(PastEvent {
        sequence: place(number("past.position", it.position)?),
        version: Version::stored(positive("past.version", it.version)?),
        at: moment("past.at", it.at)?,
    })
}

fn remembered(it: &v1::ExportedUpdate) -> Result<Remembered, String> {
    Ok(Remembered {
        request_id: id("remembered.request_id", RequestId::parse(&it.request_id))?,
        version: Version::stored(positive("remembered.version", it.version)?),
        progress_before: progress("remembered.progress_before", it.progress_before)?,
        progress_after: progress("remembered.progress_after", it.progress_after)?,
    })
}

fn late(it: &v1::ExportedLateUpdate) -> Result<Late, String> {
    let at = EpochSeconds::new(number("late.at", it.at)?);
    Ok(Late { request_digest: it.request_digest, at })
}

fn id<T>(field: &str, parsed: Result<T, impl fmt::Display>) -> Result<T, String> {
    parsed.map_err(|error| format!("`{field}` {error}"))
}

/// Versions, places and times are far below 2^53, as progress is.
fn number(field: &str, value: i64) -> Result<u64, String> {
    let number = u64::try_from(value).ok().filter(|number| *number <= PROGRESS_MAX);
    number.ok_or_else(|| format!("`{field}` is {value}, which is no possible number"))
}

fn positive(field: &str, value: i64) -> Result<u64, String> {
    match number(field, value)? {
        0 => Err(format!("`{field}` is 0")),
        value => Ok(value),
    }
}

fn moment(field: &str, value: i64) -> Result<EpochSeconds, String> {
    positive(field, value).map(EpochSeconds::new)
}

fn progress(field: &str, value: i64) -> Result<Progress, String> {
    let value = number(field, value)?;
    let progress = Progress::clamped(value);
    match progress.get() == value {
        true => Ok(progress),
        false => Err(format!("`{field}` is larger than any progress")),
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
