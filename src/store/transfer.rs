//! Moving a title from one store to another, in pieces that may come again: pure rules.
//!
//! An export is the feed from its old end, then every record, each behind all events that it has,
//! then the rest of the feed. Events keep their places. An event alone says what its record was
//! right after it, so whatever part of an export has arrived is a sound title: each completed
//! record has its completion, and each event its record. A record that comes behind brings the
//! rest.

use super::{ImportError, Imported, PAST_EVENTS_MAX, PastEvent, StoreError, StoredRecord, Times};
use crate::domain::{
    Entry, EpochSeconds, Event, NodeId, PlayerId, PlayerKey, REMEMBERED_UPDATES, Record,
    Remembered, State, SubscriptionName, Title, Version,
};

/// Places from here on are not known: such an event of a record is found by its version.
pub const UNPLACED: u64 = 1 << 62;

/// A piece of a title.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// Where the feed begins: what was before is gone.
    FeedStart {
        /// The last place that is gone; 0 where none is.
        position: u64,
    },
    /// What stands at a place of the feed; its cursor is that of the other store.
    Entry {
        /// The place.
        position: u64,
        /// What stands there.
        entry: Box<Entry>,
    },
    /// A record.
    Record {
        /// Whose.
        player: PlayerId,
        /// Of which node.
        node: NodeId,
        /// All of it.
        stored: Box<StoredRecord>,
    },
    /// A named subscription.
    Subscription {
        /// Its name.
        name: SubscriptionName,
        /// The place through which it is acked.
        position: u64,
    },
}

/// A title that items are stored in.
pub(super) trait Target {
    /// The ends of its feed (gone through, newest), and when the newest event was stored.
    fn ends(&mut self) -> (u64, u64, EpochSeconds);

    /// What time it is.
    fn now(&self) -> EpochSeconds;

    /// What stands at a place of its feed.
    fn event(&mut self, position: u64) -> Result<Option<Event>, StoreError>;

    /// A record; the default where there is none.
    fn record(&mut self, key: &PlayerKey, node: &NodeId) -> Result<StoredRecord, StoreError>;

    /// Begins a feed that has nothing behind a place.
    fn begin_feed(&mut self, position: u64);

    /// Puts an entry at the next place of the feed.
    fn append(&mut self, position: u64, entry: &Entry);

    /// Stores a record.
    fn put(
        &mut self,
        key: &PlayerKey,
        node: &NodeId,
        stored: StoredRecord,
    ) -> Result<(), StoreError>;

    /// Makes a subscription, unless there is one of that name; tells whether it did.
    fn subscribe(&mut self, name: SubscriptionName, position: u64) -> Result<bool, String>;

    /// Whether this step is as much as a store does at once.
    fn is_full(&self) -> bool;
}

/// What becomes of an item.
pub(super) enum Fate {
    Stored,
    /// It is there already.
    Present,
    /// What is there is newer.
    Kept,
    /// It says nothing.
    Nothing,
}

/// Why an item has no fate.
pub(super) enum Trouble {
    Refused(String),
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<String> for Trouble {
    fn from(problem: String) -> Self {
        Self::Refused(problem)
    }
}

/// How far a clock may be behind that of the store that an item comes from.
const AHEAD_SECONDS_MAX: u64 = 24 * 3600;

/// Stores items in a title, or the first of them, where all are too much for one step. Where one is
/// refused, what the target was given is to be dropped.
pub(super) fn import(
    target: &mut dyn Target,
    title: &Title,
    items: Vec<Item>,
    times: Times,
) -> Result<(Imported, Vec<Item>), ImportError> {
    let mut imported = Imported::default();
    let mut items = items.into_iter().enumerate();
    while !target.is_full() {
        let Some((index, item)) = items.next() else { break };
        let checked = check_times(target.now(), &item, times);
        match checked.and_then(|()| import_item(target, title, item)) {
            Ok(Fate::Stored) => imported.stored += 1,
            Ok(Fate::Present) => imported.present += 1,
            Ok(Fate::Kept) => imported.kept += 1,
            Ok(Fate::Nothing) => {}
            Err(Trouble::Refused(problem)) => return Err(ImportError::Refused { index, problem }),
            Err(Trouble::Store(error)) => return Err(error.into()),
        }
    }
    Ok((imported, items.map(|(_, item)| item).collect()))
}

/// Refuses an event that was stored before it happened, and times of the future.
pub(super) fn check_times(now: EpochSeconds, item: &Item, times: Times) -> Result<(), Trouble> {
    let newest = match item {
        Item::Entry { entry, .. } => {
            let happened_at = match &entry.event {
                Event::Completion(completion) => completion.completed_at,
                Event::Reset(reset) => reset.reset_at,
                Event::Erased => entry.stored_at,
            };
            if happened_at > entry.stored_at {
                return Err(Trouble::Refused(
                    "was stored before it happened; import the file as it was exported".to_owned(),
                ));
            }
            entry.stored_at
        }
        Item::Record { stored, .. } => {
            let Record { state, reset_at, .. } = &stored.record;
            state.completed_at.max(*reset_at)
        }
        Item::FeedStart { .. } | Item::Subscription { .. } => return Ok(()),
    };
    if times == Times::Trusted {
        return Ok(());
    }
    match newest.get() <= now.get().saturating_add(AHEAD_SECONDS_MAX) {
        true => Ok(()),
        false => Err(Trouble::Refused(format!(
            "is of second {}, more than a day from now; set the clocks right",
            newest.get()
        ))),
    }
}

fn import_item(target: &mut dyn Target, title: &Title, item: Item) -> Result<Fate, Trouble> {
    let (trimmed_through, head, newest_stored_at) = target.ends();
    match item {
        Item::FeedStart { position: 0 } => Ok(Fate::Nothing),
        Item::FeedStart { position } if position <= head => Ok(Fate::Present),
        Item::FeedStart { position } if head > 0 => Err(Trouble::Refused(format!(
            "begins the feed with event {}, and the title goes on with {}: import into a title \
             that has no completions",
            position + 1,
            head + 1
        ))),
        Item::FeedStart { position } => {
            target.begin_feed(position);
            Ok(Fate::Stored)
        }
        Item::Entry { position, .. } if position <= trimmed_through => Ok(Fate::Present),
        Item::Entry { position, entry } if position <= head => {
            let here = target.event(position)?;
            match (&entry.event, here) {
                (_, Some(Event::Erased)) => Ok(Fate::Present),
                (event, Some(here)) if *event == here => Ok(Fate::Present),
                (Event::Erased, Some(here)) => Err(was_erased(&here)),
                _ => Err(Trouble::Refused(format!(
                    "is event {position}, and the title has another one there: import into a \
                     title that has no completions of its own"
                ))),
            }
        }
        Item::Entry { position, .. } if position != head + 1 => Err(Trouble::Refused(format!(
            "is event {position}, and {} comes next: import the whole export, from its beginning",
            head + 1
        ))),
        Item::Entry { position, entry } => {
            if let Some((key, node, _)) = entry.event.of() {
                let stored = target.record(key, node)?;
                let after = after_event(&stored, &entry.event, position, trimmed_through)?;
                target.put(key, node, after)?;
            }
            // Servers that share a store stamp events by clocks of their own, so one may be a
            // little older than the one before.
            let stored_at = entry.stored_at.max(newest_stored_at);
            target.append(position, &Entry { stored_at, ..*entry });
            Ok(Fate::Stored)
        }
        Item::Record { player, node, stored } => {
            let key = PlayerKey { title: title.clone(), player };
            for event in stored.events() {
                let is_here = (trimmed_through + 1..=head).contains(&event.sequence);
                if is_here && target.event(event.sequence)? == Some(Event::Erased) {
                    // The player was erased here. (What has no event left comes back.)
                    return Ok(Fate::Kept);
                }
            }
            let here = target.record(&key, &node)?;
            let stored = placed(*stored, &here, trimmed_through)?;
            match merge(&here, stored, trimmed_through, head)? {
                Merged::Present => Ok(Fate::Present),
                Merged::Kept => Ok(Fate::Kept),
                Merged::Write(stored) => {
                    target.put(&key, &node, stored)?;
                    Ok(Fate::Stored)
                }
            }
        }
        Item::Subscription { position, .. } if position > head => Err(Trouble::Refused(format!(
            "stands at event {position}, and the feed ends at {head}: import the whole export"
        ))),
        Item::Subscription { name, position } => match target.subscribe(name, position)? {
            true => Ok(Fate::Stored),
            false => Ok(Fate::Present),
        },
    }
}

/// What becomes of a record that is imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// It is there already.
    Present,
    /// What is there is newer.
    Kept,
    /// It is to be stored.
    Write(StoredRecord),
}

fn was_erased(here: &Event) -> Trouble {
    let player = here.of().map(|(key, ..)| key.player.clone());
    Trouble::Refused(format!("is an event that was erased; erase player {player:?} here first"))
}

/// The record right after an event, which stands at `position`.
pub(super) fn after_event(
    stored: &StoredRecord,
    event: &Event,
    position: u64,
    trimmed_through: u64,
) -> Result<StoredRecord, String> {
    let Some((key, node, version)) = event.of() else {
        return Err("is an erased event, which has no record".to_owned());
    };
    let here = stored.record.state.version;
    if here >= version {
        let (player, here) = (&key.player, here.get());
        return Err(format!(
            "is an event of version {} of {player:?} {node:?}, which is at version {here} here: \
             import into a title that has no sets of its own",
            version.get()
        ));
    }
    // Ids of before go on being recognised; that of this version comes with the record.
    let recognised =
        |update: &&Remembered| update.version.get() + REMEMBERED_UPDATES > version.get();
    let remembered = stored.record.remembered.iter().filter(recognised).cloned().collect();
    let late = stored.record.late.clone();
    match event {
        Event::Completion(_) if stored.completion_sequence != 0 => Err(format!(
            "completes {:?} {node:?} a second time without a reset; import the file as it was \
                 exported",
            key.player
        )),
        Event::Completion(completion) => Ok(StoredRecord {
            record: Record {
                state: State {
                    progress: completion.progress,
                    completed_at: completion.completed_at,
                    extra: completion.extra.clone(),
                    version,
                },
                completed_version: version,
                remembered,
                reset_at: stored.record.reset_at,
                late,
            },
            completion_sequence: position,
            past: stored.past.clone(),
        }),
        Event::Reset(reset) => {
            let state = State { version, ..State::default() };
            let (completed_version, reset_at) = (Version::default(), reset.reset_at);
            let record = Record { state, completed_version, remembered, reset_at, late };
            let after = stored.reset(record, position, trimmed_through);
            after.ok_or_else(|| "is one event more than a record may have".to_owned())
        }
        Event::Erased => unreachable!("it has no record"),
    }
}

/// A record of which each event has a place here: that of the event of its version. One that is not
/// here has left the other store's feed, and stands before `gone_through`.
pub(super) fn placed(
    mut item: StoredRecord,
    here: &StoredRecord,
    gone_through: u64,
) -> Result<StoredRecord, String> {
    let place = |event: &PastEvent| match event.sequence < UNPLACED {
        true => Some(event.sequence),
        false => {
            let here = here.events().find(|it| it.version == event.version);
            here.map(|it| it.sequence)
        }
    };
    item.past.retain_mut(|event| {
        let found = place(event);
        found.inspect(|found| event.sequence = *found).is_some()
    });
    if let Some(completion) = item.completion() {
        item.completion_sequence = match place(&completion) {
            Some(sequence) => sequence,
            None if gone_through == 0 => return Err(WITHOUT_EVENTS.to_owned()),
            None => {
                item.past.clear();
                gone_through
            }
        };
    }
    Ok(item)
}

const WITHOUT_EVENTS: &str = "is a record that does not go with the events before it; import the \
                              whole export, from its beginning";

/// What becomes of a record that meets the one that is `stored`, in a feed that goes from
/// `trimmed_through` to `head`.
pub(super) fn merge(
    stored: &StoredRecord,
    item: StoredRecord,
    trimmed_through: u64,
    head: u64,
) -> Result<Merged, String> {
    let version = |of: &StoredRecord| of.record.state.version;
    if version(stored) > version(&item) {
        return Ok(Merged::Kept);
    }
    let retained = |of: &StoredRecord| -> Vec<_> {
        of.events().filter(|event| event.sequence > trimmed_through).collect()
    };
    let has_come = item.events().all(|event| event.sequence <= head);
    let (here, there) = (retained(stored), retained(&item));
    // Events that have left the other store's feed may still be in this one.
    if !has_come || !here.ends_with(&there) {
        return Err(WITHOUT_EVENTS.to_owned());
    }
    let mut item = item;
    item.past.splice(..0, here[..here.len() - there.len()].iter().copied());
    if item.past.len() > PAST_EVENTS_MAX {
        return Err("has more events here than a record may have".to_owned());
    }
    if !item.is_sound() {
        return Err(WITHOUT_EVENTS.to_owned());
    }
    if *stored == item {
        return Ok(Merged::Present);
    }
    match version(stored) == version(&item) && stored.record.state != item.record.state {
        true => Ok(Merged::Kept),
        false => Ok(Merged::Write(item)),
    }
}
