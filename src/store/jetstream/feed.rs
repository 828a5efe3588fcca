//! Feeds: read in pages from every partition and merged, trimmed, and followed.
//!
//! An event is found by its partition and sequence. Pages come from any replica, which may be a
//! moment behind; what this server knows to be there is waited for. Whether anything was removed
//! behind a cursor is asked of the leader after reading, so that a page never hides a hole.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::try_join_all};
use tokio::time::{interval, sleep};

use super::{
    cluster::{Cluster, Feed, read_row},
    names::Names,
    patience::Pauses,
    places::Places,
    wire::{Page, Write, Written, number},
};
use crate::{
    domain::{Cursor, Entry, EpochSeconds, Title},
    proto::rows::{CompletionRow, FeedPartRow},
    store::{
        FeedBounds, FeedError, Retention, StoreError, frame,
        rows::{entry_from_row, stored_at},
    },
};

/// Most bytes of messages in one page of a partition, but for its last.
const PAGE_BYTES_MAX: usize = 64 << 10;

/// Events that one step of retention looks at.
const TRIM_EVENTS: usize = 256;

/// Pause before a replica that is behind is asked again.
const BEHIND_PAUSE: Duration = Duration::from_millis(2);

/// How long to wait for a replica that is behind.
const BEHIND_TIME_MAX: Duration = Duration::from_secs(10);

/// How often a followed feed is looked at, in case that something said of it was lost.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// An event of one partition.
struct Placed {
    partition: usize,
    sequence: u64,
    stored_at: EpochSeconds,
    row: CompletionRow,
}

/// What follows some places, at most so many.
pub(super) async fn entries(
    cluster: &Cluster,
    title: &Title,
    after: &[u64],
    limit: usize,
) -> Result<Vec<Entry>, FeedError> {
    let limit = limit.max(1);
    let pages = cluster.partitions().map(|partition| {
        let after = after[partition as usize];
        part_page(cluster, partition, title, after, limit)
    });
    let mut parts = Vec::with_capacity(after.len());
    for (partition, page) in try_join_all(pages).await?.into_iter().enumerate() {
        let placed = page.messages.iter().map(|message| {
            let row: CompletionRow = read_row(message)?;
            let stored_at = stored_at(&row);
            Ok(Placed { partition, sequence: message.sequence, stored_at, row })
        });
        let placed = placed.collect::<Result<Vec<_>, StoreError>>()?;
        parts.push((placed.into_iter().peekable(), page.pending > 0));
    }
    check_not_removed(cluster, title, after).await?;
    let mut places = after.to_vec();
    let mut entries = Vec::new();
    while entries.len() < limit {
        // What a partition has behind its page may be older than what the others have.
        if parts.iter_mut().any(|(part, has_more)| *has_more && part.peek().is_none()) {
            break;
        }
        let oldest = parts
            .iter_mut()
            .filter_map(|(part, _)| part.peek().map(|it| (it.stored_at, it.partition)))
            .min();
        let Some((_, partition)) = oldest else { break };
        let Some(Placed { sequence, row, .. }) = parts[partition].0.next() else { break };
        places[partition] = sequence;
        let cursor = cluster.codec.encode(title, &places);
        let entry = entry_from_row(&row, title.clone(), cursor).ok_or_else(|| {
            let stream = cluster.names.stream(u32::try_from(partition).unwrap_or(u32::MAX));
            StoreError::Corrupt(format!("message {sequence} of {stream} is no possible event"))
        })?;
        entries.push(entry);
    }
    Ok(entries)
}

/// What follows a place in one partition, with everything that is known to be there.
async fn part_page(
    cluster: &Cluster,
    partition: u32,
    title: &Title,
    after: u64,
    limit: usize,
) -> Result<Page, FeedError> {
    let (stream, subject) =
        (cluster.names.stream(partition), cluster.names.events(partition, title));
    let feed = cluster.feed(title);
    let newest = &feed.parts[partition as usize].newest;
    let mut waited = Duration::ZERO;
    loop {
        let page = cluster.wire.page(&stream, &subject, after + 1, limit, PAGE_BYTES_MAX).await?;
        let last = page.messages.last().map_or(after, |last| last.sequence);
        let known = newest.load(Ordering::SeqCst);
        // Whoever reads after this, of whatever replica, gets as far.
        if !page.messages.is_empty() {
            feed.hear(partition, last);
        }
        if page.pending > 0 || last >= known {
            if page.messages.is_empty() {
                check_not_ahead(cluster, partition, title, after).await?;
            }
            return Ok(page);
        }
        // The replica is behind, or the newest event was erased.
        let next = cluster.wire.next(&stream, &subject, last + 1).await?;
        if next.is_none() {
            let _ = newest.compare_exchange(known, last, Ordering::SeqCst, Ordering::SeqCst);
        } else if waited > BEHIND_TIME_MAX {
            let error = "a replica does not catch up with its leader".to_owned();
            return Err(StoreError::Unavailable(error).into());
        } else {
            sleep(BEHIND_PAUSE).await;
            waited += BEHIND_PAUSE;
        }
    }
}

/// Refuses a place that a partition has not reached.
async fn check_not_ahead(
    cluster: &Cluster,
    partition: u32,
    title: &Title,
    after: u64,
) -> Result<(), FeedError> {
    if after <= cluster.see(partition, 0) {
        return Ok(());
    }
    let (stream, subject) =
        (cluster.names.stream(partition), cluster.names.events(partition, title));
    let (_, last) = cluster.wire.counts(&stream, &subject).await?;
    match after <= cluster.see(partition, last) {
        true => Ok(()),
        false => Err(FeedError::InFuture { oldest: oldest(cluster, title).await? }),
    }
}

/// Refuses places that partitions have not reached.
pub(super) async fn check_reached(
    cluster: &Cluster,
    title: &Title,
    places: &[u64],
) -> Result<(), FeedError> {
    for (partition, place) in cluster.partitions().zip(places) {
        check_not_ahead(cluster, partition, title, *place).await?;
    }
    Ok(())
}

/// Refuses places behind which retention has removed something.
async fn check_not_removed(
    cluster: &Cluster,
    title: &Title,
    after: &[u64],
) -> Result<(), FeedError> {
    let trimmed = trimmed_through(cluster, title).await?;
    match trimmed.iter().zip(after).all(|(trimmed, after)| after >= trimmed) {
        true => Ok(()),
        false => Err(FeedError::Expired { oldest: cluster.codec.encode(title, &trimmed) }),
    }
}

/// The places through which retention has removed everything.
pub(super) async fn trimmed_through(
    cluster: &Cluster,
    title: &Title,
) -> Result<Places, StoreError> {
    let rows = cluster.partitions().map(|partition| cluster.feed_row(partition, title));
    let rows = try_join_all(rows).await?;
    Ok(rows.into_iter().map(|(row, _)| row.trimmed_through).collect())
}

async fn oldest(cluster: &Cluster, title: &Title) -> Result<Cursor, StoreError> {
    Ok(cluster.codec.encode(title, &trimmed_through(cluster, title).await?))
}

/// Where a feed ends now in each partition.
pub(super) async fn newest(cluster: &Cluster, title: &Title) -> Result<Places, StoreError> {
    let feed = cluster.feed(title);
    let parts = cluster.partitions().map(|partition| newest_of(cluster, &feed, partition, title));
    try_join_all(parts).await
}

async fn newest_of(
    cluster: &Cluster,
    feed: &Feed,
    partition: u32,
    title: &Title,
) -> Result<u64, StoreError> {
    let Some(newest) = cluster.newest(partition, title).await? else {
        // All are gone; whoever begins now begins behind them.
        return Ok(cluster.feed_row(partition, title).await?.0.trimmed_through);
    };
    feed.hear(partition, newest.sequence);
    cluster.see(partition, newest.sequence);
    Ok(newest.sequence)
}

pub(super) async fn bounds(cluster: &Cluster, title: &Title) -> Result<FeedBounds, StoreError> {
    let oldest = trimmed_through(cluster, title).await?;
    let newest = newest(cluster, title).await?;
    let encode = |places: &[u64]| cluster.codec.encode(title, places);
    Ok(FeedBounds { oldest: encode(&oldest), newest: encode(&newest) })
}

/// Removes events of the old end, a bounded number of them; tells how many.
pub(super) async fn trim(
    cluster: &Cluster,
    title: &Title,
    keep: Retention,
) -> Result<usize, StoreError> {
    let partitions = u64::from(cluster.names.partitions);
    let keep = Retention { count: keep.count.map(|count| count.div_ceil(partitions)), ..keep };
    for partition in cluster.partitions() {
        let removed = trim_part(cluster, partition, title, keep).await?;
        if removed > 0 {
            return Ok(removed);
        }
    }
    Ok(0)
}

async fn trim_part(
    cluster: &Cluster,
    partition: u32,
    title: &Title,
    keep: Retention,
) -> Result<usize, StoreError> {
    let (stream, subject) =
        (cluster.names.stream(partition), cluster.names.events(partition, title));
    let mut pauses = Pauses::new(BEHIND_TIME_MAX);
    // A step of which it is not known whether it was stored.
    let mut unknown = None;
    loop {
        let (row, sequence) = cluster.feed_row(partition, title).await?;
        // A step that was cut short has said what goes, and left it there.
        let first = cluster.wire.next(&stream, &subject, 1).await?;
        if first.is_some_and(|first| first.sequence <= row.trimmed_through) {
            cluster.wire.purge(&stream, &subject, row.trimmed_through).await?;
        }
        if let Some((_, removed)) = unknown.filter(|(told, _)| *told == row) {
            return Ok(removed);
        }
        let from = row.trimmed_through + 1;
        let page = cluster.wire.page(&stream, &subject, from, TRIM_EVENTS, PAGE_BYTES_MAX).await?;
        let mut next = row;
        let mut count = page.messages.len() as u64 + page.pending;
        let mut removed = 0;
        for message in &page.messages {
            let stored_at = stored_at(&read_row(message)?);
            if keep.keeps(count, stored_at) {
                break;
            }
            count -= 1;
            removed += 1;
            next.trimmed_through = message.sequence;
            next.trimmed_stored_at = stored_at.get();
        }
        if removed == 0 {
            return Ok(0);
        }
        next.removed += removed as u64;
        match write_row(cluster, partition, title, &next, sequence).await {
            Written::Stored(_) => {
                cluster.wire.purge(&stream, &subject, next.trimmed_through).await?;
                return Ok(removed);
            }
            // Another server trims this feed as well.
            Written::Conflict => {}
            Written::Unknown(_) => unknown = Some((next, removed)),
            Written::NotSent(error) => return Err(StoreError::Unavailable(error)),
        }
        if !pauses.wait().await {
            let error = "the state of a feed could not be written".to_owned();
            return Err(StoreError::Unavailable(error));
        }
    }
}

/// Replaces what is known of a partition's feed, where it still stands at a sequence.
async fn write_row(
    cluster: &Cluster,
    partition: u32,
    title: &Title,
    row: &FeedPartRow,
    sequence: u64,
) -> Written {
    let subject = cluster.names.feed(partition, title);
    let value = Bytes::from(frame::encode(subject.as_bytes(), row));
    cluster.wire.write(vec![Write { subject, value, replaces: Some(sequence) }]).await
}

/// Changes what is known of a partition's feed, whoever else does so at the same time.
pub(super) async fn change_row(
    cluster: &Cluster,
    partition: u32,
    title: &Title,
    change: impl Fn(&mut FeedPartRow),
) -> Result<(), StoreError> {
    let mut pauses = Pauses::new(BEHIND_TIME_MAX);
    // What was written and may be stored. Found there, it is not changed once more; where another
    // server has changed it on, this cannot be told.
    let mut unknown = None;
    loop {
        let (mut row, sequence) = cluster.feed_row(partition, title).await?;
        if unknown == Some(row) {
            return Ok(());
        }
        change(&mut row);
        match write_row(cluster, partition, title, &row, sequence).await {
            Written::Stored(_) => return Ok(()),
            Written::Unknown(_) => unknown = Some(row),
            Written::Conflict | Written::NotSent(_) => {}
        }
        if !pauses.wait().await {
            let error = "the state of a feed could not be written".to_owned();
            return Err(StoreError::Unavailable(error));
        }
    }
}

/// How many events of a feed there ever were, in all partitions.
pub(super) async fn total(cluster: &Cluster, title: &Title) -> Result<u64, StoreError> {
    let parts = cluster.partitions().map(|partition| async move {
        let (stream, subject) =
            (cluster.names.stream(partition), cluster.names.events(partition, title));
        let (row, _) = cluster.feed_row(partition, title).await?;
        let counts = cluster.wire.counts(&stream, &subject).await?;
        let there: u64 = counts.0.into_iter().map(|(_, count)| count).sum();
        Ok::<_, StoreError>(row.removed + there)
    });
    Ok(try_join_all(parts).await?.into_iter().sum())
}

/// How many events of a feed are there behind some places.
pub(super) async fn pending(
    cluster: &Cluster,
    title: &Title,
    after: &[u64],
) -> Result<u64, StoreError> {
    let parts = cluster.partitions().map(|partition| async move {
        let (stream, subject) =
            (cluster.names.stream(partition), cluster.names.events(partition, title));
        let from = after[partition as usize] + 1;
        let page = cluster.wire.page(&stream, &subject, from, 1, 1).await?;
        Ok::<_, StoreError>(page.messages.len() as u64 + page.pending)
    });
    Ok(try_join_all(parts).await?.into_iter().sum())
}

/// Wakes whoever waits for events of a title that any server stores, for as long as somebody does.
pub(super) fn follow(cluster: &Arc<Cluster>, title: &Title, feed: &Arc<Feed>) {
    if !feed.is_followed.swap(true, Ordering::SeqCst) {
        tokio::spawn(listen(cluster.clone(), title.clone(), feed.clone()));
    }
}

async fn listen(cluster: Arc<Cluster>, title: Title, feed: Arc<Feed>) {
    while let Err(error) = listen_once(&cluster, &title, &feed).await {
        if feed.changes.receiver_count() == 0 {
            break;
        }
        tracing::debug!(%error, "a feed is not heard of; its events are looked for meanwhile");
        sleep(LOOK_INTERVAL).await;
        let _ = newest(&cluster, &title).await;
    }
    feed.is_followed.store(false, Ordering::SeqCst);
    // Somebody may have come right before that.
    if feed.changes.receiver_count() > 0 {
        follow(&cluster, &title, &feed);
    }
}

/// Listens until nobody waits any more.
async fn listen_once(cluster: &Cluster, title: &Title, feed: &Feed) -> Result<(), StoreError> {
    let mut heard = cluster.wire.listen(cluster.names.on_events(title)).await?;
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            message = heard.next() => {
                let message = message
                    .ok_or_else(|| StoreError::Unavailable("the connection ended".to_owned()))?;
                let sequence = number(&message, "Nats-Sequence")?;
                let partition = Names::partition_of(&message.subject);
                let partition = partition.filter(|it| *it < cluster.names.partitions);
                if let Some(partition) = partition {
                    cluster.see(partition, sequence);
                    feed.hear(partition, sequence);
                }
            }
            _ = looks.tick() => {
                if feed.changes.receiver_count() == 0 {
                    return Ok(());
                }
                // Wakes whoever waits for what nothing was heard of.
                newest(cluster, title).await?;
            }
        }
    }
}
