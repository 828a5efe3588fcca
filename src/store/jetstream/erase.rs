//! Erasing a player: events first, then the document that names them, so that an erasure that is
//! cut short can be repeated.

use super::{
    cluster::{Cluster, read_row},
    feed,
    players::Players,
};
use crate::{
    domain::PlayerKey,
    proto::rows::CompletionRow,
    store::{Erased, StoreError},
};

/// Removes a player's records and what they have in the feed. Where it is cut short, it is not
/// known how far it came.
pub(super) async fn erase(
    cluster: &Cluster,
    players: &Players,
    player: &PlayerKey,
) -> Result<Erased, StoreError> {
    erase_all(cluster, players, player).await.map_err(|error| match error {
        StoreError::Unavailable(cause) => {
            tracing::warn!(%cause, "an erasure was cut short");
            StoreError::OutcomeUnknown
        }
        error => error,
    })
}

async fn erase_all(
    cluster: &Cluster,
    players: &Players,
    player: &PlayerKey,
) -> Result<Erased, StoreError> {
    let partition = cluster.names.partition(player);
    let (stream, subject) =
        (cluster.names.stream(partition), cluster.names.document(partition, player));
    let mut erased = Erased::default();
    // Of the document that was to be removed last: an attempt whose answer was lost may have been
    // the one.
    let mut records = 0;
    loop {
        let known = players.read(player).await?;
        if known.sequence == 0 {
            erased.records += records;
            return Ok(erased);
        }
        records = known.document.records.len() as u64;
        // An export that was begun before is told to begin anew.
        count_erasure(cluster, partition, player, 0).await?;
        let mut removed = 0;
        for event in known.document.records.values().flat_map(|stored| stored.events()) {
            removed += u64::from(remove(cluster, partition, player, event.sequence).await?);
        }
        let gone = cluster.wire.purge(&stream, &subject, known.sequence).await?;
        players.forget(player);
        count_erasure(cluster, partition, player, removed).await?;
        erased.events += removed;
        // Where somebody has written it meanwhile, there is more to erase.
        if gone > 0 {
            erased.records += records;
            return Ok(erased);
        }
    }
}

async fn count_erasure(
    cluster: &Cluster,
    partition: u32,
    player: &PlayerKey,
    removed: u64,
) -> Result<(), StoreError> {
    let change = |row: &mut crate::proto::rows::FeedPartRow| {
        row.erasures += 1;
        row.removed += removed;
    };
    feed::change_row(cluster, partition, &player.title, change).await
}

/// Removes an event of a player, and nothing else that may stand there; tells whether it did.
async fn remove(
    cluster: &Cluster,
    partition: u32,
    player: &PlayerKey,
    sequence: u64,
) -> Result<bool, StoreError> {
    let stream = cluster.names.stream(partition);
    let subject = cluster.names.events(partition, &player.title);
    let found = cluster.wire.next(&stream, &subject, sequence).await?;
    let Some(found) = found.filter(|found| found.sequence == sequence) else { return Ok(false) };
    let row: CompletionRow = read_row(&found)?;
    let whose = row.reset.as_ref().map_or(&row.player_id, |reset| &reset.player_id);
    if *whose != player.player.as_str() {
        return Ok(false);
    }
    if !cluster.wire.delete(&stream, sequence).await? {
        // An attempt whose answer was lost may have been the one; or it was refused.
        let found = cluster.wire.next(&stream, &subject, sequence).await?;
        if found.is_some_and(|found| found.sequence == sequence) {
            return Err(StoreError::Unavailable("an event could not be removed".to_owned()));
        }
    }
    Ok(true)
}
