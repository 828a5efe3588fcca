//! Reads over all players of a title: partition by partition, in the order of the stream. A player
//! who is written meanwhile moves to the end of that, and is met again there.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{cluster::Cluster, document::Document, names::Names, wire::READ_BYTES_MAX};
use crate::{
    domain::{NodeId, PlayerId, Title},
    store::{Bookmark, PlayerRecords, Rarity, StoreError, StoredRecord},
};

/// Documents of one page.
const PAGE: usize = 256;

/// Counts are used again for so many times as long as counting took.
const FRESH_TIMES: u32 = 20;

/// Counts that took no longer are never used again. Tests ask whether a count is right at once,
/// however long the machine takes for it.
const QUICK: Duration = Duration::from_millis(if cfg!(test) { 60_000 } else { 100 });

/// What was counted of titles last, and what is being counted.
#[derive(Default)]
pub(super) struct Counted {
    titles: Mutex<HashMap<Title, Counting>>,
}

/// Tells what was counted, in the end.
type Running = watch::Receiver<Option<Result<Arc<Count>, StoreError>>>;

#[derive(Default)]
struct Counting {
    last: Option<Arc<Count>>,
    running: Option<Running>,
}

struct Count {
    rarity: Rarity,
    began: Instant,
    took: Duration,
}

impl Count {
    /// Whether it may be told to somebody who asked at a time.
    fn is_good_for(&self, asked: Instant) -> bool {
        let is_quick = self.took <= QUICK;
        self.began >= asked || (!is_quick && self.began.elapsed() < self.took * (FRESH_TIMES + 1))
    }
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
        let sequence = sequence.parse().ok().filter(|it| i64::try_from(*it).is_ok())?;
        Some(Self { partition: partition.parse().ok()?, sequence })
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
        let page = cluster.wire.page(&stream, &subjects, from, PAGE, READ_BYTES_MAX).await?;
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
    let (mut count, mut met) = (0, Met::default());
    let has_one = |document: &Document| nodes.iter().any(|node| document.record(node).is_some());
    each(cluster, title, |player, document, is_late| {
        if has_one(document) && met.is_new(&player, is_late) {
            count += 1;
        }
    })
    .await?;
    Ok(count)
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

async fn count(cluster: &Cluster, title: &Title) -> Result<Rarity, StoreError> {
    let (mut rarity, mut met) = (Rarity::default(), Met::default());
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
    Ok(rarity)
}

// === impl Counted ===

impl Counted {
    /// How many players have completed what. Counting reads all of them, so what was counted is
    /// used for a while, the longer the longer it took. It may take longer than a request has, so
    /// it goes on when whoever asked has gone.
    pub(super) async fn rarity(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        title: &Title,
    ) -> Result<Rarity, StoreError> {
        let asked = Instant::now();
        loop {
            let mut running = {
                let mut titles = self.titles.lock();
                let counting = titles.entry(title.clone()).or_default();
                if let Some(last) = counting.last.as_ref().filter(|it| it.is_good_for(asked)) {
                    return Ok(last.rarity.clone());
                }
                // One whose sender is gone will tell nothing.
                counting.running.take_if(|running| running.has_changed().is_err());
                let start = || self.clone().start(cluster.clone(), title.clone());
                counting.running.get_or_insert_with(start).clone()
            };
            let gone = || StoreError::Unavailable("a count was not ended".to_owned());
            let told = running.wait_for(Option::is_some).await.map_err(|_| gone())?.clone();
            // It may have begun before this was asked, and miss what was stored since.
            let count = told.ok_or_else(gone)??;
            if count.is_good_for(asked) {
                return Ok(count.rarity.clone());
            }
        }
    }

    /// Begins to count.
    fn start(self: Arc<Self>, cluster: Arc<Cluster>, title: Title) -> Running {
        let (told, running) = watch::channel(None);
        tokio::spawn(async move {
            let began = Instant::now();
            let counted = count(&cluster, &title).await;
            let counted =
                counted.map(|rarity| Arc::new(Count { rarity, began, took: began.elapsed() }));
            let mut titles = self.titles.lock();
            let counting = titles.entry(title).or_default();
            counting.running = None;
            if let Ok(count) = &counted {
                counting.last = Some(count.clone());
            }
            drop(titles);
            told.send_replace(Some(counted));
        });
        running
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;
    use crate::{
        store::{Operations, Store, jetstream::JetStreamStore},
        testing::{TestClock, Update, cluster, title},
    };

    // On one thread: the count cannot end before whoever asked has gone.
    #[tokio::test]
    async fn a_count_goes_on_when_whoever_asked_has_gone() {
        let (_nats, address) = cluster(2).await;
        let store = JetStreamStore::open(&address, 1 << 20, TestClock::at(1)).await.unwrap();
        for player in ["a", "b"] {
            store.apply(Update::of("t", player).delta("n", 1, 1).build()).await.unwrap();
        }
        assert!(store.rarity(&title("t")).now_or_never().is_none(), "it takes a while");
        let last = || store.counted.titles.lock()[&title("t")].last.clone();
        let start = Instant::now();
        while last().is_none() {
            assert!(start.elapsed() < Duration::from_secs(30), "nothing is counted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(last().unwrap().rarity.players, 2);
        let quick = Count { rarity: Rarity::default(), began: start, took: Duration::ZERO };
        store.counted.titles.lock().get_mut(&title("t")).unwrap().last = Some(Arc::new(quick));
        // That count began before this set, and is not told to whoever asks after it.
        store.apply(Update::of("t", "c").delta("n", 2, 1).build()).await.unwrap();
        let title = title("t");
        let all = join_all((0..8).map(|_| store.rarity(&title))).await;
        for rarity in all {
            let rarity = rarity.unwrap();
            assert_eq!((rarity.players, rarity.completed.values().sum::<u64>()), (3, 2));
        }
    }

    #[test]
    fn a_slow_count_is_told_for_a_while() {
        let began = Instant::now();
        let count = |took| Count { rarity: Rarity::default(), began, took };
        let later = Instant::now() + Duration::from_secs(1);
        assert!(count(QUICK * 2).is_good_for(later), "it took long, a moment ago");
        assert!(!count(QUICK).is_good_for(later), "it is counted anew in no time");
        assert!(count(QUICK).is_good_for(began), "it was asked for before it began");
        assert!(!count(QUICK).is_good_for(began + Duration::from_nanos(1)));
    }
}
