//! What operators do, each as one step for the committer.

use std::collections::HashMap;

use async_trait::async_trait;

use super::{
    SledStore,
    bounds::ERASE_RECORDS_MAX,
    commit::{Committer, Group},
    feeds::FeedEnds,
    keys,
    read::{failed, read_entry, read_records, read_row},
    rows::stored_at,
    scans::{owned, read_players},
    subscriptions,
    view::Change,
    work::Room,
};
use crate::{
    domain::{
        Cursor, Entry, EpochSeconds, Event, NodeId, PlayerId, PlayerKey, Reset, ResetRuling,
        ResetUpdate, SubscriptionName, Title, Verdict, decide_reset,
    },
    proto::rows::CompletionRow,
    store::{
        Bookmark, Erased, ImportError, Imported, Operations, PlayerRecords, Rarity, ResetDone,
        ResetError, StoreError, StoredRecord, Times,
        transfer::{self, Item, Target},
    },
};

/// Takes a record back to its beginning, and says so in the feed.
pub(super) fn reset(
    committer: &mut Committer,
    group: &mut Group,
    update: &ResetUpdate,
) -> Result<ResetDone, ResetError> {
    let ResetUpdate { key, node, .. } = update;
    let stored = committer.record(key, node, group)?;
    let (feed, mut ends) = committer.feed(&key.title, group);
    let now = committer.clock.now().max(ends.newest_stored_at);
    let nothing = StoredRecord::default();
    let before = stored.as_deref().unwrap_or(&nothing);
    let ResetRuling { replayed, outcome, write } = decide_reset(update, &before.record, now);
    let Some(record) = write else {
        let told = before.events().find(|event| event.version == outcome.after.version);
        let told = told.filter(|_| replayed && outcome.verdict == Verdict::Stored);
        let cursor = told.map(|event| committer.cursors.encode(&key.title, event.sequence));
        return Ok(ResetDone { replayed, outcome, cursor });
    };
    ends.head += 1;
    ends.newest_stored_at = now;
    let after = before.reset(record, ends.head, ends.trimmed_through).ok_or(ResetError::TooMany)?;
    let event = Event::Reset(Reset::of(update, &outcome, now));
    group.write_event(&key.title, ends.head, &event, now);
    group.write_record(key, node, stored, after, 0);
    group.feeds.insert(key.title.clone(), (feed, ends));
    let cursor = Some(committer.cursors.encode(&key.title, ends.head));
    Ok(ResetDone { replayed, outcome, cursor })
}

/// Removes records of a player, each with its events. Alone in its group: the tree then holds
/// everything that was applied before.
pub(super) fn erase(
    committer: &mut Committer,
    group: &mut Group,
    player: &PlayerKey,
) -> Result<Erased, StoreError> {
    let tree = committer.view.tree().clone();
    let mut records = read_records(&tree, player, ERASE_RECORDS_MAX + 1)?;
    let is_last = records.len() <= ERASE_RECORDS_MAX;
    records.truncate(ERASE_RECORDS_MAX);
    let (feed, mut ends) = committer.feed(&player.title, group);
    let mut erased = Erased { records: records.len() as u64, events: 0 };
    let mut places = Vec::new();
    for event in records.iter().flat_map(|(_, stored)| stored.events()) {
        if event.sequence > ends.trimmed_through {
            let key = keys::completion(&player.title, event.sequence);
            let value = tree.get(&key).map_err(failed)?;
            let missing = || StoreError::Corrupt(format!("event {} is missing", event.sequence));
            let row: CompletionRow = read_row(&key, &value.ok_or_else(missing)?)?;
            places.push((event.sequence, stored_at(&row)));
        }
    }
    if records.is_empty() {
        return Ok(erased);
    }
    // Nothing above has touched the group.
    // An export that is begun before this is durable is outdated as well.
    ends.erasures = feed.count_erasure() + 1;
    group.write_feed(&player.title, ends);
    group.feeds.insert(player.title.clone(), (feed, ends));
    for (sequence, stored_at) in places {
        group.write_event(&player.title, sequence, &Event::Erased, stored_at);
        erased.events += 1;
    }
    let players = if is_last { -1 } else { 0 };
    let mut changes = Vec::with_capacity(records.len());
    for (node, stored) in records {
        group.write(keys::record(player, &node), None);
        group.stored += 1;
        group.removed = group.removed.wrapping_add(stored.record.state.version.get() + 1);
        changes.push(Change { node, before: Some(stored), after: None });
    }
    group.change(player, changes, players);
    Ok(erased)
}

/// Stores items of another store, all or none. Alone in its group.
pub(super) fn import(
    committer: &mut Committer,
    group: &mut Group,
    title: &Title,
    items: Vec<Item>,
    times: Times,
) -> Result<(Imported, Vec<Item>), ImportError> {
    // Apart from the group, which stays empty where something is refused.
    let appended = HashMap::new();
    let mut target = GroupTarget { committer, group: Group::default(), title, appended };
    let imported = transfer::import(&mut target, title, items, times);
    let GroupTarget { committer, group: staged, .. } = target;
    match imported {
        Ok(_) => *group = staged,
        // An import only makes subscriptions; these are made no more.
        Err(_) => staged.subscriptions.iter().for_each(|(key, _)| {
            committer.subscriptions.remove(key);
        }),
    }
    imported
}

/// Ends a restoration: cursors of the store `ancestor_id` work from now on, as far as each title's
/// feed goes. Alone in its group.
pub(super) fn finish_restore(
    committer: &mut Committer,
    group: &mut Group,
    ancestor_id: u64,
    titles: &[Title],
) {
    committer.row.ancestor_id = ancestor_id;
    for title in titles {
        let (_, ends) = committer.feed(title, group);
        group.write_feed(title, FeedEnds { restored_through: ends.head, ..ends });
    }
}

/// A title as it is at the end of a group.
struct GroupTarget<'a> {
    committer: &'a mut Committer,
    group: Group,
    title: &'a Title,
    /// What this step has put into the feed.
    appended: HashMap<u64, Event>,
}

impl GroupTarget<'_> {
    fn move_feed(&mut self, ends: FeedEnds) {
        let (feed, _) = self.committer.feed(self.title, &self.group);
        self.group.feeds.insert(self.title.clone(), (feed, ends));
    }
}

impl Target for GroupTarget<'_> {
    fn ends(&mut self) -> (u64, u64, EpochSeconds) {
        let (_, ends) = self.committer.feed(self.title, &self.group);
        (ends.trimmed_through, ends.head, ends.newest_stored_at)
    }

    fn now(&self) -> EpochSeconds {
        self.committer.clock.now()
    }

    fn event(&mut self, position: u64) -> Result<Option<Event>, StoreError> {
        if let Some(event) = self.appended.get(&position) {
            return Ok(Some(event.clone()));
        }
        let key = keys::completion(self.title, position);
        let value = self.committer.view.tree().get(&key).map_err(failed)?;
        let read = |value: sled::IVec| {
            read_entry(&key, &value, self.committer.cursors, self.title, position)
        };
        Ok(value.map(read).transpose()?.map(|entry| entry.event))
    }

    fn record(&mut self, key: &PlayerKey, node: &NodeId) -> Result<StoredRecord, StoreError> {
        let stored = self.committer.record(key, node, &self.group)?;
        Ok(stored.map_or_else(StoredRecord::default, |stored| (*stored).clone()))
    }

    fn begin_feed(&mut self, position: u64) {
        let (_, ends) = self.committer.feed(self.title, &self.group);
        let ends = FeedEnds { trimmed_through: position, head: position, ..ends };
        self.group.write_feed(self.title, ends);
        self.group.stored = self.group.stored.wrapping_add(position);
        self.move_feed(ends);
    }

    fn append(&mut self, position: u64, entry: &Entry) {
        self.group.write_event(self.title, position, &entry.event, entry.stored_at);
        let (_, ends) = self.committer.feed(self.title, &self.group);
        let newest_stored_at = entry.stored_at;
        self.move_feed(FeedEnds { head: position, newest_stored_at, ..ends });
        self.appended.insert(position, entry.event.clone());
    }

    fn put(
        &mut self,
        key: &PlayerKey,
        node: &NodeId,
        stored: StoredRecord,
    ) -> Result<(), StoreError> {
        let before = self.committer.record(key, node, &self.group)?;
        let players = i64::from(self.committer.is_new(key, &self.group)?);
        self.group.write_record(key, node, before, stored, players);
        Ok(())
    }

    fn subscribe(&mut self, name: SubscriptionName, position: u64) -> Result<bool, String> {
        let key = (self.title.clone(), name);
        let made = subscriptions::import(self.committer, &mut self.group, &key, position);
        made.map_err(|error| error.to_string())
    }

    fn is_full(&self) -> bool {
        !self.group.takes_item()
    }
}

#[async_trait]
impl Operations for SledStore {
    async fn reset(&self, update: ResetUpdate) -> Result<ResetDone, ResetError> {
        let reset =
            move |committer: &mut Committer, group: &mut Group| reset(committer, group, &update);
        self.work(Room::Shared, reset).await
    }

    async fn erase_player(&self, player: &PlayerKey) -> Result<Erased, StoreError> {
        let player = player.clone();
        let erase =
            move |committer: &mut Committer, group: &mut Group| erase(committer, group, &player);
        self.work(Room::Alone, erase).await
    }

    async fn rarity(&self, title: &Title) -> Result<Rarity, StoreError> {
        Ok(self.counts.of(title))
    }

    fn id(&self) -> u64 {
        self.store_id
    }

    async fn erasures(&self, title: &Title) -> Result<u64, StoreError> {
        Ok(self.feeds.of(title).erasures())
    }

    fn position(&self, title: &Title, cursor: &Cursor) -> Option<u64> {
        self.cursors.decode(title, cursor, self.feeds.of(title).ends().restored_through)
    }

    async fn full_records(
        &self,
        title: &Title,
        after: Option<&Bookmark>,
    ) -> Result<(Vec<PlayerRecords>, Option<Bookmark>), StoreError> {
        let after = after.map(|after| PlayerId::parse(&after.0)).transpose();
        let after = after.map_err(|error| StoreError::Failed(format!("a bookmark {error}")))?;
        let title = title.clone();
        let players = self.read(move |view| read_players(view, &title, after)).await?;
        let last = players.last().map(|(player, _)| Bookmark(player.as_str().to_owned()));
        Ok((players, last))
    }

    async fn player_records(
        &self,
        player: &PlayerKey,
    ) -> Result<Vec<(NodeId, StoredRecord)>, StoreError> {
        let player = player.clone();
        self.read(move |view| Ok(owned(&view.read_aside(&player)?))).await
    }

    async fn import(
        &self,
        title: &Title,
        items: Vec<Item>,
        times: Times,
    ) -> Result<(Imported, Vec<Item>), ImportError> {
        let title = title.clone();
        let import = move |committer: &mut Committer, group: &mut Group| {
            import(committer, group, &title, items, times)
        };
        self.work(Room::Alone, import).await
    }
}
