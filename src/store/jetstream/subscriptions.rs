//! Named subscriptions: a small document each, in the partition of their title.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use super::{
    cluster::{Cluster, read_row},
    feed,
    names::Names,
    patience::Pauses,
    places::Places,
    wire::{Write, Written},
};
use crate::{
    domain::{Cursor, EpochSeconds, SubscriptionName, Title},
    proto::rows::SubscriptionPartsRow,
    store::{FeedError, SUBSCRIPTIONS_MAX, StoreError, Subscription, SubscriptionError, frame},
};

/// How long to try to write one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Finds or makes a subscription; with `after` it is moved there.
pub(super) async fn open(
    cluster: &Cluster,
    title: &Title,
    name: &SubscriptionName,
    after: Option<&Cursor>,
) -> Result<Subscription, SubscriptionError> {
    let after = match after {
        Some(after) => {
            // Reading there tells whether the cursor works.
            let places = cluster.codec.decode(title, after).ok_or(FeedError::NotACursor)?;
            feed::entries(cluster, title, &places, 1).await?;
            Some(places)
        }
        None => None,
    };
    let row = change(cluster, title, name, &Move::Open(after)).await?;
    told(cluster, title, name.clone(), row).await
}

/// Moves a subscription forward.
pub(super) async fn ack(
    cluster: &Cluster,
    title: &Title,
    name: &SubscriptionName,
    through: &Cursor,
    claim: u64,
) -> Result<Subscription, SubscriptionError> {
    let through = cluster.codec.decode(title, through).ok_or(FeedError::NotACursor)?;
    feed::check_reached(cluster, title, &through).await?;
    let row = change(cluster, title, name, &Move::Forward(through, claim)).await?;
    told(cluster, title, name.clone(), row).await
}

/// Every subscription of a title, in the order of their names' bytes.
pub(super) async fn all(cluster: &Cluster, title: &Title) -> Result<Vec<Subscription>, StoreError> {
    let (stream, subjects) =
        (cluster.names.stream(cluster.names.home(title)), cluster.names.subscriptions(title));
    // The leader names them: a replica might not have a new one yet.
    let (counts, _) = cluster.wire.counts(&stream, &subjects).await?;
    let mut all = BTreeMap::new();
    for (subject, _) in counts {
        let message = cluster.wire.last(&stream, &subject).await?;
        if let (Some(message), Some(name)) = (message, Names::subscription_of(&subject)) {
            all.insert(name, read_row::<SubscriptionPartsRow>(&message)?);
        }
    }
    let mut subscriptions = Vec::with_capacity(all.len());
    for (name, row) in all {
        subscriptions.push(told(cluster, title, name, row).await?);
    }
    Ok(subscriptions)
}

/// Forgets a subscription; tells a number above all of its claims.
pub(super) async fn delete(
    cluster: &Cluster,
    title: &Title,
    name: &SubscriptionName,
) -> Result<u64, SubscriptionError> {
    let stream = cluster.names.stream(cluster.names.home(title));
    let subject = cluster.names.subscription(title, name);
    let message = cluster.wire.last(&stream, &subject).await?;
    let mut through = message.ok_or(SubscriptionError::NotFound)?.sequence;
    loop {
        cluster.wire.purge(&stream, &subject, through).await?;
        match cluster.wire.last(&stream, &subject).await? {
            // It was moved meanwhile.
            Some(message) => through = message.sequence,
            None => return Ok(count(cluster, title).await?.1),
        }
    }
}

/// How many there are, and the last sequence of their partition.
async fn count(cluster: &Cluster, title: &Title) -> Result<(usize, u64), StoreError> {
    let (stream, subjects) =
        (cluster.names.stream(cluster.names.home(title)), cluster.names.subscriptions(title));
    let (counts, last) = cluster.wire.counts(&stream, &subjects).await?;
    Ok((counts.len(), last))
}

/// What becomes of a subscription.
pub(super) enum Move {
    /// It is made where there is none, at the feed's end or where it says; and moved there.
    Open(Option<Places>),
    /// It is moved there, and nowhere back, by whoever has this claim.
    Forward(Places, u64),
    /// It is made there, where there is none.
    Make(Places),
}

impl Move {
    /// Where it goes, and whether that is anything new.
    async fn of(
        &self,
        cluster: &Cluster,
        title: &Title,
        row: Option<&SubscriptionPartsRow>,
    ) -> Result<(Places, bool), SubscriptionError> {
        let is_there = row.is_some();
        if !is_there && count(cluster, title).await?.0 >= SUBSCRIPTIONS_MAX {
            return Err(match self {
                Self::Forward(..) => SubscriptionError::NotFound,
                Self::Open(_) | Self::Make(_) => SubscriptionError::TooMany,
            });
        }
        let here = row.map(|row| row.sequences.clone());
        Ok(match (self, here) {
            // Each consumer has a claim of its own, which is written even where nothing moves.
            (Self::Open(None), Some(here)) => (here, true),
            (Self::Make(_), Some(here)) => (here, false),
            (Self::Open(Some(to)), _) | (Self::Make(to), None) => (to.clone(), true),
            (Self::Open(None), None) => (feed::newest(cluster, title).await?, true),
            (Self::Forward(..), None) => return Err(SubscriptionError::NotFound),
            (Self::Forward(_, claim), Some(_)) if row.is_some_and(|row| row.claim != *claim) => {
                return Err(SubscriptionError::TakenOver);
            }
            (Self::Forward(to, _), Some(here)) => {
                let both = here.iter().zip(to).map(|(here, to)| *here.max(to));
                let both: Places = both.collect();
                let is_new = both != here;
                (both, is_new)
            }
        })
    }
}

/// Moves a subscription, whoever else moves it at the same time.
pub(super) async fn change(
    cluster: &Cluster,
    title: &Title,
    name: &SubscriptionName,
    to: &Move,
) -> Result<SubscriptionPartsRow, SubscriptionError> {
    let stream = cluster.names.stream(cluster.names.home(title));
    let subject = cluster.names.subscription(title, name);
    let mut pauses = Pauses::new(PATIENCE);
    let mut is_unknown = false;
    loop {
        let message = cluster.wire.last(&stream, &subject).await?;
        let row = message.as_ref().map(read_row::<SubscriptionPartsRow>).transpose()?;
        let claim = row.as_ref().map_or(0, |row| row.claim);
        let (sequences, is_moved) = to.of(cluster, title, row.as_ref()).await?;
        let row = match row {
            Some(row) if !is_moved => return Ok(row),
            row => row,
        };
        let claim = match (to, &row) {
            // Above all claims of one of that name before.
            (Move::Open(_), None) => count(cluster, title).await?.1 + 1,
            (Move::Open(_), Some(_)) => claim + 1,
            _ => claim,
        };
        let row = match row {
            // Only the claim is another.
            Some(row) if row.sequences == sequences => SubscriptionPartsRow { claim, ..row },
            _ => {
                let behind = feed::pending(cluster, title, &sequences).await?;
                let ordinal = feed::total(cluster, title).await?.saturating_sub(behind);
                let moved_at = cluster.clock.now().get();
                SubscriptionPartsRow { sequences, moved_at, ordinal, claim }
            }
        };
        let write = Write {
            subject: subject.clone(),
            value: Bytes::from(frame::encode(subject.as_bytes(), &row)),
            replaces: Some(message.map_or(0, |message| message.sequence)),
        };
        match cluster.wire.write(vec![write]).await {
            Written::Stored(_) => return Ok(row),
            // Read anew it shows what became of it.
            Written::Unknown(_) | Written::Conflict => is_unknown = true,
            Written::NotSent(_) => {}
        }
        if !pauses.wait().await {
            let error = StoreError::Unavailable("a subscription could not be written".to_owned());
            return Err(if is_unknown { StoreError::OutcomeUnknown } else { error }.into());
        }
    }
}

/// A subscription as it is told. Events that retention has removed are behind it all the same.
async fn told<E: From<StoreError>>(
    cluster: &Cluster,
    title: &Title,
    name: SubscriptionName,
    row: SubscriptionPartsRow,
) -> Result<Subscription, E> {
    let SubscriptionPartsRow { sequences, moved_at, ordinal, claim } = row;
    if sequences.len() != cluster.names.partitions as usize {
        let error = format!("subscription {name:?} is of another number of partitions");
        return Err(StoreError::Corrupt(error).into());
    }
    let trimmed = feed::trimmed_through(cluster, title).await?;
    let lag = match trimmed.iter().zip(&sequences).all(|(trimmed, it)| it >= trimmed) {
        true => feed::pending(cluster, title, &sequences).await?,
        false => feed::total(cluster, title).await?.saturating_sub(ordinal),
    };
    let cursor = cluster.codec.encode(title, &sequences);
    Ok(Subscription { name, cursor, lag, moved_at: EpochSeconds::new(moved_at), claim })
}
