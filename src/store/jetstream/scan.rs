//! Reads over all players of a title: partition by partition, in the order of the stream. A player
//! who is written meanwhile moves to the end of that, and is met again there.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::{cluster::Cluster, document::Document, names::Names};
use crate::{
    domain::{NodeId, PlayerId, Title},
    store::{Bookmark, PlayerRecords, Rarity, StoreError, StoredRecord},
};

/// Documents of one page.
const PAGE: usize = 256;

/// Most bytes of one page, but for its last document.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Counts are used again for so many times as long as counting took.
const FRESH_TIMES: u32 = 20;

/// Counts that took no longer are never used again.
const QUICK: Duration = Duration::from_millis(100);

/// What was counted of titles last.
#[derive(Default)]
pub(super) struct Counted {
    titles: Mutex<HashMap<Title, Arc<AsyncMutex<Option<Count>>>>>,
}

struct Count {
    rarity: Rarity,
    at: Instant,
    took: Duration,
}

/// A place among the players: a partition, and a sequence of its stream.
#[derive(Clone, Copy)]
struct Place {
    partition: u32,
    sequence: u64,
}

impl Place {
    fn parse(bookmark: &Bookmark) -> Option<Self> {
        let (partition, sequence) = bookmark.0.split_once('-')?;
        Some(Self { partition: partition.parse().ok()?, sequence: sequence.parse().ok()? })
    }

    fn bookmark(self) -> Bookmark {
        Bookmark(format!("{}-{}", self.partition, self.sequence))
    }
}

/// A document's records, to be given away.
pub(super) fn owned(document: &Document) -> Vec<(NodeId, StoredRecord)> {
    let records = document.records.iter();
    records.map(|(node, stored)| (node.clone(), (**stored).clone())).collect()
}

/// Some players with all of their records, and where to go on.
pub(super) async fn players(
    cluster: &Cluster,
    title: &Title,
    after: Option<&Bookmark>,
) -> Result<(Vec<PlayerRecords>, Option<Bookmark>), StoreError> {
    let place = match after {
        Some(after) => Place::parse(after)
            .ok_or_else(|| StoreError::Failed("a bookmark is of another store".to_owned()))?,
        None => Place { partition: 0, sequence: 0 },
    };
    let (documents, next) = page(cluster, title, place).await?;
    let players = documents.iter().map(|(player, document, _)| (player.clone(), owned(document)));
    Ok((players.collect(), next.map(Place::bookmark)))
}

/// The documents behind a place, and where to go on.
async fn page(
    cluster: &Cluster,
    title: &Title,
    mut place: Place,
) -> Result<(Vec<(PlayerId, Document, Place)>, Option<Place>), StoreError> {
    while place.partition < cluster.names.partitions {
        let stream = cluster.names.stream(place.partition);
        let subjects = cluster.names.documents(place.partition, title);
        let from = place.sequence + 1;
        let page = cluster.wire.page(&stream, &subjects, from, PAGE, PAGE_BYTES_MAX).await?;
        let mut documents = Vec::with_capacity(page.messages.len());
        for message in &page.messages {
            place.sequence = message.sequence;
            let document = Document::decode(&message.subject, &message.value, message.sequence)?;
            let player = Names::player_of(&message.subject).ok_or_else(|| {
                StoreError::Corrupt(format!("`{}` is no player's", message.subject))
            })?;
            documents.push((player, document, place));
        }
        if !documents.is_empty() {
            return Ok((documents, Some(place)));
        }
        // The replica that was asked may not have what was written last.
        let next = cluster.wire.next(&stream, &subjects, from).await?;
        if next.is_none() {
            place = Place { partition: place.partition + 1, sequence: 0 };
        }
    }
    Ok((Vec::new(), None))
}

/// Tells every player's document to `see`, and whether it was written since this began.
async fn each(
    cluster: &Cluster,
    title: &Title,
    mut see: impl FnMut(PlayerId, &Document, bool),
) -> Result<(), StoreError> {
    // What is written behind these is late: its player may have been met before.
    let mut ends = Vec::new();
    for partition in cluster.partitions() {
        let (stream, subject) = (cluster.names.stream(partition), cluster.names.first(partition));
        ends.push(cluster.wire.counts(&stream, &subject).await?.1);
    }
    let mut place = Place { partition: 0, sequence: 0 };
    loop {
        let (documents, next) = page(cluster, title, place).await?;
        for (player, document, place) in documents {
            see(player, &document, place.sequence > ends[place.partition as usize]);
        }
        match next {
            Some(next) => place = next,
            None => return Ok(()),
        }
    }
}

/// How many players have a record of any of these nodes.
pub(super) async fn count_players(
    cluster: &Cluster,
    title: &Title,
    nodes: &BTreeSet<NodeId>,
) -> Result<u64, StoreError> {
    // Whoever is met twice is counted once.
    let mut found = BTreeSet::new();
    let has_one = |document: &Document| nodes.iter().any(|node| document.record(node).is_some());
    each(cluster, title, |player, document, _| {
        if has_one(document) {
            found.insert(player);
        }
    })
    .await?;
    Ok(found.len() as u64)
}

/// Players who were met while counting: whoever is written meanwhile may be met again. Of the first
/// million it is known for sure; of others by a bit each, in 16 MiB however many they are, so a few
/// of those who are written for the first time meanwhile may be left out: of 10 million players,
/// one in thirteen of them.
#[derive(Default)]
struct Met {
    first: HashSet<u64>,
    bits: Vec<u64>,
}

impl Met {
    const FIRST_MAX: usize = 1_000_000;
    const BITS: u64 = 1 << 27;

    fn is_new(&mut self, player: &PlayerId, is_late: bool) -> bool {
        let mut hasher = DefaultHasher::new();
        player.hash(&mut hasher);
        let hash = hasher.finish();
        if self.first.contains(&hash) {
            return false;
        }
        if self.first.len() < Self::FIRST_MAX {
            return self.first.insert(hash);
        }
        if self.bits.is_empty() {
            self.bits.resize(usize::try_from(Self::BITS / 64).unwrap_or(1), 0);
        }
        let bit = hash % Self::BITS;
        let word = &mut self.bits[usize::try_from(bit / 64).unwrap_or(0)];
        let mask = 1 << (bit % 64);
        let is_met = *word & mask != 0;
        *word |= mask;
        !(is_late && is_met)
    }
}

// === impl Counted ===

impl Counted {
    /// How many players have completed what. Counting reads all of them, so what was counted is
    /// used for a while, the longer the longer it took.
    pub(super) async fn rarity(
        &self,
        cluster: &Cluster,
        title: &Title,
    ) -> Result<Rarity, StoreError> {
        let counted = self.titles.lock().entry(title.clone()).or_default().clone();
        // One counts, and the others wait for it.
        let mut counted = counted.lock().await;
        if let Some(Count { rarity, at, took }) = &*counted
            && *took > QUICK
            && at.elapsed() < *took * FRESH_TIMES
        {
            return Ok(rarity.clone());
        }
        let start = Instant::now();
        let mut rarity = Rarity::default();
        let mut met = Met::default();
        each(cluster, title, |player, document, is_late| {
            if !met.is_new(&player, is_late) {
                return;
            }
            rarity.players += 1;
            for (node, stored) in &document.records {
                if stored.completion_sequence != 0 {
                    *rarity.completed.entry(node.clone()).or_default() += 1;
                }
            }
        })
        .await?;
        *counted =
            Some(Count { rarity: rarity.clone(), at: Instant::now(), took: start.elapsed() });
        Ok(rarity)
    }
}
