//! Storing what another store gave. Sequences of JetStream are its own, so an event is recognised
//! by its player, node and version; each keeps its place of before beside it, by which named
//! subscriptions find theirs.
//!
//! A step is one batch in each partition. Whatever of it is there already is found again: a step
//! that was cut short, or had no answer, is simply done again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    cluster::{Cluster, read_row},
    document::{PENDING, Writer},
    feed,
    patience::Pauses,
    players::{Known, Players},
    subscriptions::{self, Move},
    wire::{Write, Written},
};
use crate::{
    domain::{EpochSeconds, NodeId, PlayerId, PlayerKey, SubscriptionName, Title},
    proto::rows::CompletionRow,
    store::{
        FeedError, ImportError, Imported, SUBSCRIPTIONS_MAX, StoreError, StoredRecord,
        SubscriptionError, Times, frame,
        rows::event_to_row,
        transfer::{
            Fate, Item, Merged, Trouble, UNPLACED, after_event, check_times, merge, placed,
        },
    },
};

/// Most items of one step.
const ITEMS_MAX: usize = 256;

/// Documents of a step take no more bytes, but for its first.
const DOCUMENTS_BYTES_MAX: usize = 4 << 20;

/// Documents that are read at once.
const READS: usize = 16;

/// How long one step is tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// The place of completions that had left the feed of the store that they come from. No event has
/// it (`layout.rs`).
pub(super) const GONE: u64 = 1;

/// What a step makes of one partition.
#[derive(Default)]
struct Part {
    /// Encoded.
    events: Vec<Bytes>,
    /// When the last of them was stored.
    newest_stored_at: EpochSeconds,
    trimmed_through: u64,
    /// Whether the last event there is was not imported.
    has_own: bool,
    changed: Vec<PlayerId>,
}

struct Step<'a> {
    cluster: &'a Cluster,
    title: &'a Title,
    parts: Vec<Part>,
    documents: BTreeMap<PlayerId, Known>,
}

/// Stores items, or the first of them.
pub(super) async fn import(
    cluster: &Cluster,
    players: &Players,
    title: &Title,
    mut items: Vec<Item>,
    times: Times,
) -> Result<(Imported, Vec<Item>), ImportError> {
    if let Some(Item::Subscription { .. }) = items.first() {
        let rest = items.split_off(1);
        let Some(Item::Subscription { name, position }) = items.pop() else {
            unreachable!("it is the first")
        };
        let is_new = subscribe(cluster, title, &name, position).await;
        let is_new = is_new.map_err(|error| match error {
            SubscriptionError::Feed(FeedError::Store(error)) => error.into(),
            error => ImportError::Refused { index: 0, problem: error.to_string() },
        })?;
        let (stored, present) = (u64::from(is_new), u64::from(!is_new));
        return Ok((Imported { stored, present, kept: 0 }, rest));
    }
    let is_subscription = |item: &Item| matches!(item, Item::Subscription { .. });
    let count = items.iter().position(is_subscription).unwrap_or(items.len()).min(ITEMS_MAX);
    let mut pauses = Pauses::new(PATIENCE);
    loop {
        let mut step = Step::begin(cluster, players, title, &items[..count]).await?;
        let (imported, taken) = step.take(&items[..count], times)?;
        let Some(error) = step.write(players).await? else {
            return Ok((imported, items.split_off(taken)));
        };
        if !pauses.wait().await {
            // Some partitions may have their part.
            tracing::warn!(%error, "a step of an import could not be written");
            return Err(StoreError::OutcomeUnknown.into());
        }
    }
}

/// Whose an item is.
fn player_of(item: &Item) -> Option<&PlayerId> {
    match item {
        Item::Entry { entry, .. } => entry.event.of().map(|(key, ..)| &key.player),
        Item::Record { player, .. } => Some(player),
        Item::FeedStart { .. } | Item::Subscription { .. } => None,
    }
}

impl<'a> Step<'a> {
    /// Reads everything that items are about.
    async fn begin(
        cluster: &'a Cluster,
        players: &Players,
        title: &'a Title,
        items: &[Item],
    ) -> Result<Self, StoreError> {
        let trimmed = feed::trimmed_through(cluster, title).await?;
        let parts = trimmed.into_iter();
        let parts = parts.map(|trimmed_through| Part { trimmed_through, ..Part::default() });
        let mut parts: Vec<_> = parts.collect();
        if items.iter().any(|item| matches!(item, Item::Entry { .. })) {
            for (partition, part) in cluster.partitions().zip(&mut parts) {
                let newest = cluster.newest(partition, title).await?;
                let newest = newest.as_ref().map(read_row::<CompletionRow>).transpose()?;
                part.has_own = newest.is_some_and(|row| row.source_position == 0);
            }
        }
        let ids: BTreeSet<_> = items.iter().filter_map(player_of).cloned().collect();
        let reads = ids.into_iter().map(|player| async move {
            let key = PlayerKey { title: title.clone(), player };
            let known = players.read(&key).await?;
            Ok::<_, StoreError>((key.player, known))
        });
        let documents = stream::iter(reads).buffer_unordered(READS).try_collect().await?;
        Ok(Self { cluster, title, parts, documents })
    }

    /// Takes items, as many as are written at once; tells how many those are.
    fn take(&mut self, items: &[Item], times: Times) -> Result<(Imported, usize), ImportError> {
        let mut imported = Imported::default();
        let mut bytes = 0;
        for (index, item) in items.iter().enumerate() {
            if bytes > DOCUMENTS_BYTES_MAX {
                return Ok((imported, index));
            }
            bytes += player_of(item).map_or(0, |player| self.documents[player].bytes);
            let checked = check_times(self.cluster.clock.now(), item, times);
            match checked.and_then(|()| self.take_item(item)) {
                Ok(Fate::Stored) => imported.stored += 1,
                Ok(Fate::Present) => imported.present += 1,
                Ok(Fate::Kept) => imported.kept += 1,
                Ok(Fate::Nothing) => {}
                Err(Trouble::Refused(problem)) => {
                    return Err(ImportError::Refused { index, problem });
                }
                Err(Trouble::Store(error)) => return Err(error.into()),
            }
        }
        Ok((imported, items.len()))
    }

    fn take_item(&mut self, item: &Item) -> Result<Fate, Trouble> {
        match item {
            // Places begin where they begin here.
            Item::FeedStart { .. } | Item::Subscription { .. } => Ok(Fate::Nothing),
            Item::Entry { position, entry } => {
                let Some((key, node, version)) = entry.event.of() else {
                    return Ok(Fate::Nothing);
                };
                let partition = self.cluster.names.partition(key);
                let here = self.record(&key.player, node);
                if here.events().any(|event| event.version == version) {
                    return Ok(Fate::Present);
                }
                let part = &mut self.parts[partition as usize];
                if here.record.state.version >= version && part.trimmed_through > 0 {
                    // It may have been here, and have left the feed.
                    return Ok(Fate::Kept);
                }
                if part.has_own {
                    let problem = "is an event that is not here, and the title has completions of \
                                   its own: import into a title that has none";
                    return Err(Trouble::Refused(problem.to_owned()));
                }
                let place = PENDING + part.events.len() as u64;
                let after = after_event(&here, &entry.event, place, part.trimmed_through)?;
                let mut row = event_to_row(&entry.event, entry.stored_at);
                row.source_position = *position;
                let subject = self.cluster.names.events(partition, self.title);
                part.events.push(frame::encode(subject.as_bytes(), &row).into());
                part.newest_stored_at = part.newest_stored_at.max(entry.stored_at);
                self.put(key.player.clone(), node, after);
                Ok(Fate::Stored)
            }
            Item::Record { player, node, stored } => {
                let key = PlayerKey { title: self.title.clone(), player: player.clone() };
                let here = self.record(player, node);
                let partition = self.cluster.names.partition(&key) as usize;
                let gone = self.parts[partition].trimmed_through.max(GONE);
                let item = placed(unplaced(stored), &here, gone)?;
                match merge(&here, item, gone, u64::MAX)? {
                    Merged::Present => Ok(Fate::Present),
                    Merged::Kept => Ok(Fate::Kept),
                    Merged::Write(stored) => {
                        self.put(player.clone(), node, stored);
                        Ok(Fate::Stored)
                    }
                }
            }
        }
    }

    fn record(&self, player: &PlayerId, node: &NodeId) -> StoredRecord {
        self.documents[player].document.record(node).cloned().unwrap_or_default()
    }

    fn put(&mut self, player: PlayerId, node: &NodeId, stored: StoredRecord) {
        let key = PlayerKey { title: self.title.clone(), player: player.clone() };
        let known = self.documents.get_mut(&player).expect("it was read");
        known.document.records.insert(node.clone(), stored.into());
        let part = &mut self.parts[self.cluster.names.partition(&key) as usize];
        if !part.changed.contains(&player) {
            part.changed.push(player);
        }
    }

    /// Writes what was taken, a batch in each partition. Where one could not be, tells why, and all
    /// is to be done again.
    async fn write(self, players: &Players) -> Result<Option<String>, ImportError> {
        let Self { cluster, title, parts, mut documents } = self;
        for (partition, part) in cluster.partitions().zip(parts) {
            let Part { events, newest_stored_at, changed, .. } = part;
            if changed.is_empty() {
                continue;
            }
            let count = events.len();
            let subject = cluster.names.events(partition, title);
            let mut writes: Vec<_> = events
                .into_iter()
                .map(|value| Write { subject: subject.clone(), value, replaces: None })
                .collect();
            let keys: Vec<_> = changed
                .into_iter()
                .map(|player| PlayerKey { title: title.clone(), player })
                .collect();
            for key in &keys {
                let known = documents.get_mut(&key.player).expect("it was read");
                // Nobody's, so that no set takes it for one that was based on what it wrote itself.
                known.document.sign(Writer { id: fastrand::u64(..), number: 1 });
                let subject = cluster.names.document(partition, key);
                // Its events stand before it, and so do the documents before it.
                let value = known.document.encode(&subject, writes.len());
                let bytes_max = players.document_bytes_max();
                if value.len() > bytes_max {
                    let problem = format!(
                        "and those before it make {} bytes of player {:?}, and this store keeps \
                         {bytes_max} of one",
                        value.len(),
                        key.player
                    );
                    return Err(ImportError::Refused { index: 0, problem });
                }
                let replaces = Some(known.sequence);
                writes.push(Write { subject, value: value.into(), replaces });
            }
            let after_events = (writes.len() - count) as u64;
            let written = cluster.wire.write(writes).await;
            for key in &keys {
                players.forget(key);
            }
            match written {
                Written::Stored(sequence) if count > 0 => {
                    cluster.note(partition, title, sequence - after_events, newest_stored_at);
                }
                Written::Stored(_) => {}
                Written::Conflict => {
                    return Ok(Some("players are written meanwhile".to_owned()));
                }
                Written::NotSent(error) | Written::Unknown(error) => return Ok(Some(error)),
            }
        }
        Ok(None)
    }
}

/// A record whose events are to be found here.
fn unplaced(stored: &StoredRecord) -> StoredRecord {
    let mut stored = stored.clone();
    for (place, event) in (UNPLACED..).zip(&mut stored.past) {
        event.sequence = place;
    }
    if stored.completion_sequence != 0 {
        stored.completion_sequence = UNPLACED + stored.past.len() as u64;
    }
    stored
}

/// Makes a subscription that is acked through a place of the other store's feed, unless there is
/// one of that name; tells whether it did.
async fn subscribe(
    cluster: &Cluster,
    title: &Title,
    name: &SubscriptionName,
    position: u64,
) -> Result<bool, SubscriptionError> {
    let known = subscriptions::all(cluster, title).await?;
    if known.iter().any(|known| known.name == *name) {
        return Ok(false);
    }
    if known.len() >= SUBSCRIPTIONS_MAX {
        return Err(SubscriptionError::TooMany);
    }
    let mut places = feed::trimmed_through(cluster, title).await?;
    let newest = feed::newest(cluster, title).await?;
    for partition in cluster.partitions() {
        let index = partition as usize;
        places[index] =
            through(cluster, partition, title, position, places[index], newest[index]).await?;
    }
    subscriptions::change(cluster, title, name, &Move::Make(places)).await?;
    Ok(true)
}

/// The last place between two that an event has which came from a place up to `position`.
async fn through(
    cluster: &Cluster,
    partition: u32,
    title: &Title,
    position: u64,
    mut low: u64,
    mut high: u64,
) -> Result<u64, StoreError> {
    let (stream, subject) =
        (cluster.names.stream(partition), cluster.names.events(partition, title));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let found = cluster.wire.next(&stream, &subject, middle).await?;
        let row = found.as_ref().map(read_row::<CompletionRow>).transpose()?;
        match (found, row) {
            (Some(found), Some(row))
                if found.sequence <= high && (1..=position).contains(&row.source_position) =>
            {
                low = found.sequence;
            }
            _ => high = middle - 1,
        }
    }
    Ok(low)
}
