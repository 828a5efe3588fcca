//! Named subscriptions: where each stands, as readers see it (durable), and how it is moved.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::{
    commit::{Committer, Group},
    frame,
    keys::Key,
};
use crate::{
    domain::{Cursor, EpochSeconds, SubscriptionName, Title},
    proto::rows::SubscriptionRow,
    store::{FeedError, SUBSCRIPTIONS_MAX, Subscription, SubscriptionError},
};

/// A title's subscription.
pub(super) type SubscriptionKey = (Title, SubscriptionName);

/// What is stored of each.
pub(super) type Places = BTreeMap<SubscriptionKey, SubscriptionRow>;

/// What a group does to one; `None` where it goes.
pub(super) type Moved = (SubscriptionKey, Option<SubscriptionRow>);

/// The durable places of all subscriptions.
#[derive(Default)]
pub(super) struct Subscriptions {
    places: RwLock<Places>,
}

impl Subscriptions {
    pub(super) fn new(places: Places) -> Self {
        Self { places: RwLock::new(places) }
    }

    /// Shows what became durable.
    pub(super) fn publish(&self, moved: Vec<Moved>) {
        let mut places = self.places.write();
        for (key, row) in moved {
            match row {
                Some(row) => drop(places.insert(key, row)),
                None => drop(places.remove(&key)),
            }
        }
    }

    /// Those of a title, in the order of their names.
    pub(super) fn of(&self, title: &Title) -> Vec<(SubscriptionName, SubscriptionRow)> {
        let places = self.places.read();
        let of_title = places.iter().filter(|((of, _), _)| of == title);
        of_title.map(|((_, name), row)| (name.clone(), *row)).collect()
    }
}

/// Whether a subscription of a cursor behind the feed's old end is moved there all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Allowed,
    Refused,
}

/// Finds or makes a subscription; with `after` it is moved there.
pub(super) fn open(
    committer: &mut Committer,
    group: &mut Group,
    key: SubscriptionKey,
    after: Option<&Cursor>,
) -> Result<Subscription, SubscriptionError> {
    let (title, _) = &key;
    let sequence =
        after.map(|after| place(committer, title, after, Behind::Refused)).transpose()?;
    let stored = committer.subscriptions.get(&key).copied();
    if stored.is_none() {
        check_count(committer, title)?;
    }
    // Only what is durable has been seen by anybody.
    let head = committer.feeds.of(title).ends().head;
    let sequence = sequence.or(stored.map(|row| row.sequence)).unwrap_or(head);
    let row = match stored {
        Some(row) if row.sequence == sequence => row,
        stored => move_to(committer, group, &key, stored, sequence),
    };
    Ok(told(committer, key, row))
}

/// Makes a subscription of another store, unless there is one of that name; tells whether it did.
pub(super) fn import(
    committer: &mut Committer,
    group: &mut Group,
    key: &SubscriptionKey,
    sequence: u64,
) -> Result<bool, SubscriptionError> {
    if committer.subscriptions.contains_key(key) {
        return Ok(false);
    }
    check_count(committer, &key.0)?;
    move_to(committer, group, key, None, sequence);
    Ok(true)
}

/// Moves a subscription forward.
pub(super) fn ack(
    committer: &mut Committer,
    group: &mut Group,
    key: SubscriptionKey,
    through: &Cursor,
) -> Result<Subscription, SubscriptionError> {
    // What was delivered may have left the feed since.
    let sequence = place(committer, &key.0, through, Behind::Allowed)?;
    let stored = committer.subscriptions.get(&key).copied();
    let stored = stored.ok_or(SubscriptionError::NotFound)?;
    let row = match sequence > stored.sequence {
        true => move_to(committer, group, &key, Some(stored), sequence),
        false => stored,
    };
    Ok(told(committer, key, row))
}

/// Forgets a subscription.
pub(super) fn delete(
    committer: &mut Committer,
    group: &mut Group,
    key: SubscriptionKey,
) -> Result<(), SubscriptionError> {
    let row = committer.subscriptions.remove(&key).ok_or(SubscriptionError::NotFound)?;
    // The row of the store counts the moves of those that are gone.
    group.stored += 1;
    group.removed += row.moves + 1;
    group.write(Key::Subscription(key.0.clone(), key.1.clone()).encode(), None);
    group.subscriptions.push((key, None));
    Ok(())
}

fn check_count(committer: &Committer, title: &Title) -> Result<(), SubscriptionError> {
    let known = committer.subscriptions.keys().filter(|(of, _)| of == title).count();
    match known < SUBSCRIPTIONS_MAX {
        true => Ok(()),
        false => Err(SubscriptionError::TooMany),
    }
}

fn move_to(
    committer: &mut Committer,
    group: &mut Group,
    key: &SubscriptionKey,
    stored: Option<SubscriptionRow>,
    sequence: u64,
) -> SubscriptionRow {
    let moves = stored.map_or(0, |row| row.moves) + 1;
    let row = SubscriptionRow { sequence, moves, moved_at: committer.clock.now().get() };
    let encoded = Key::Subscription(key.0.clone(), key.1.clone()).encode();
    let value = frame::encode(&encoded, &row);
    group.write(encoded, Some(value));
    group.stored += 1;
    group.subscriptions.push((key.clone(), Some(row)));
    committer.subscriptions.insert(key.clone(), row);
    row
}

/// The place that a cursor names.
fn place(
    committer: &Committer,
    title: &Title,
    cursor: &Cursor,
    behind: Behind,
) -> Result<u64, FeedError> {
    let ends = committer.feeds.of(title).ends();
    let oldest = || committer.cursors.encode(title, ends.trimmed_through);
    let decoded = committer.cursors.decode(title, cursor, ends.restored_through);
    match decoded.ok_or(FeedError::NotACursor)? {
        sequence if sequence > ends.head => Err(FeedError::InFuture { oldest: oldest() }),
        sequence if sequence < ends.trimmed_through && behind == Behind::Refused => {
            Err(FeedError::Expired { oldest: oldest() })
        }
        sequence => Ok(sequence),
    }
}

fn told(committer: &Committer, key: SubscriptionKey, row: SubscriptionRow) -> Subscription {
    let (title, name) = key;
    let head = committer.feeds.of(&title).ends().head;
    Subscription {
        name,
        cursor: committer.cursors.encode(&title, row.sequence),
        lag: head.saturating_sub(row.sequence),
        moved_at: EpochSeconds::new(row.moved_at),
        claim: 0,
    }
}
