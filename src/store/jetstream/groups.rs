//! What waits to be written to a partition at the same time is written in one batch: JetStream
//! replicates and syncs a batch as one, so many players cost little more than one.
//!
//! What waits to be read is read together likewise, from any replica: that is cheap, and may be a
//! moment old. Where it must not be, a message that says nothing is written first, by the same
//! majority as everything else, and only a replica that has it is believed: it has all that was
//! stored before.
//!
//! A batch with several players is stored wholly or not at all. Where one of them was written by
//! another server meanwhile, it is refused, and each is then written by itself.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures_util::future::try_join_all;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::{Instant, sleep},
};

use super::{
    cluster::Cluster,
    wire::{StoredMessage, Write, Written},
};
use crate::{metrics::METRICS, store::StoreError};

/// Most messages of a batch, of the 1000 that JetStream takes.
const MESSAGES_MAX: usize = 900;

/// Most bytes of a batch, but for its last part.
const BYTES_MAX: usize = 1 << 20;

/// Most subjects that are read together, of the 1024 that JetStream takes.
const TOGETHER_MAX: usize = 64;

/// Batches, and reads, of a partition under way. While they are, the next one grows.
const UNDER_WAY_MAX: usize = 4;

/// Pause before a replica that is behind is asked again, and how long to ask.
const BEHIND_PAUSE: Duration = Duration::from_millis(2);
const BEHIND_TIME_MAX: Duration = Duration::from_secs(2);

/// Parts that wait for a batch.
const WAITING_MAX: usize = 4096;

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grouped {
    /// As if it had been a batch of its own; [`Written::Stored`] has the sequence of its last
    /// message.
    Written(Written),
    /// The batch was refused for one of its parts. It is to be written by itself, and may be
    /// stored.
    Alone,
}

/// Messages that belong together, and whom to tell.
struct Part {
    writes: Vec<Write>,
    answer: oneshot::Sender<Grouped>,
}

/// A subject to read, and whom to tell.
struct Read {
    subject: String,
    answer: oneshot::Sender<Result<Option<StoredMessage>, StoreError>>,
}

/// The batches of every partition.
pub(super) struct Groups {
    partitions: Vec<mpsc::Sender<Part>>,
    reads: Vec<mpsc::Sender<Read>>,
    fresh_reads: Vec<mpsc::Sender<Read>>,
}

/// How new what is read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It may be a moment old: a write will show whether it holds.
    Any,
    /// Whatever was acknowledged before this was asked is in it.
    Now,
}

impl Groups {
    pub(super) fn start(cluster: &Arc<Cluster>) -> Self {
        let partitions = cluster.partitions().map(|_| {
            let (parts, waiting) = mpsc::channel(WAITING_MAX);
            tokio::spawn(run(cluster.clone(), waiting));
            parts
        });
        let reads = |freshness| {
            let start = |partition| {
                let (reads, waiting) = mpsc::channel(WAITING_MAX);
                tokio::spawn(run_reads(cluster.clone(), partition, freshness, waiting));
                reads
            };
            cluster.partitions().map(start).collect()
        };
        Self {
            partitions: partitions.collect(),
            reads: reads(Freshness::Any),
            fresh_reads: reads(Freshness::Now),
        }
    }

    /// The last message of a subject; asked once, together with others.
    pub(super) async fn read(
        &self,
        partition: u32,
        subject: String,
        freshness: Freshness,
    ) -> Result<Option<StoredMessage>, StoreError> {
        let gone = || StoreError::Unavailable("a read was not answered".to_owned());
        let (answer, answered) = oneshot::channel();
        let read = Read { subject, answer };
        let reads = match freshness {
            Freshness::Any => &self.reads,
            Freshness::Now => &self.fresh_reads,
        };
        reads[partition as usize].send(read).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Writes a part together with others.
    pub(super) async fn write(&self, partition: u32, writes: Vec<Write>) -> Grouped {
        let (answer, answered) = oneshot::channel();
        let part = Part { writes, answer };
        match self.partitions[partition as usize].send(part).await {
            Ok(()) => answered.await.unwrap_or(Grouped::Alone),
            Err(_) => Grouped::Alone,
        }
    }
}

/// Makes batches of what waits until nobody can ask any more.
async fn run(cluster: Arc<Cluster>, mut waiting: mpsc::Receiver<Part>) {
    let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut carried = None;
    while let Ok(place) = places.clone().acquire_owned().await {
        let first = match carried.take() {
            Some(part) => part,
            None => match waiting.recv().await {
                Some(part) => part,
                None => return,
            },
        };
        let (mut messages, mut bytes) = (first.writes.len(), size(&first));
        let mut parts = vec![first];
        while bytes < BYTES_MAX
            && let Ok(part) = waiting.try_recv()
        {
            messages += part.writes.len();
            bytes += size(&part);
            if messages > MESSAGES_MAX {
                carried = Some(part);
                break;
            }
            parts.push(part);
        }
        let cluster = cluster.clone();
        tokio::spawn(async move {
            write(&cluster, parts).await;
            drop(place);
        });
    }
}

/// Reads what waits until nobody can ask any more.
async fn run_reads(
    cluster: Arc<Cluster>,
    partition: u32,
    freshness: Freshness,
    mut waiting: mpsc::Receiver<Read>,
) {
    let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Some(first) = waiting.recv().await else { return };
        let mut reads = vec![first];
        while reads.len() < TOGETHER_MAX
            && let Ok(read) = waiting.try_recv()
        {
            reads.push(read);
        }
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let subjects: BTreeSet<_> = reads.iter().map(|read| read.subject.clone()).collect();
            let subjects: Vec<_> = subjects.into_iter().collect();
            let told = read(&cluster, partition, subjects, freshness).await;
            for read in reads {
                let _ = read.answer.send(match &told {
                    // Several may ask for the same.
                    Ok(found) => Ok(found.get(&read.subject).cloned()),
                    Err(error) => Err(error.clone()),
                });
            }
            drop(place);
        });
    }
}

type Found = HashMap<String, StoredMessage>;

/// A message that was written first; whoever has it has all that was stored before.
struct Mark {
    subject: String,
    sequence: u64,
}

/// Reads subjects together; in parts, where they are too large.
async fn read(
    cluster: &Cluster,
    partition: u32,
    subjects: Vec<String>,
    freshness: Freshness,
) -> Result<Found, StoreError> {
    let mark = match freshness {
        Freshness::Any => None,
        Freshness::Now => {
            let subject = cluster.names.mark(partition);
            let sequence = cluster.wire.mark(&subject).await?;
            Some(Mark { subject, sequence })
        }
    };
    let mut found = Found::new();
    let mut parts = vec![subjects];
    while let Some(mut part) = parts.pop() {
        let is_whole = match &mark {
            None => read_any(cluster, partition, &part, &mut found).await?,
            Some(mark) => read_now(cluster, partition, &part, mark, &mut found).await?,
        };
        if !is_whole {
            let rest = part.split_off(part.len() / 2);
            if part.is_empty() {
                let subject = &rest[0];
                return Err(StoreError::Corrupt(format!("`{subject}` is larger than a message")));
            }
            parts.extend([part, rest]);
        }
    }
    Ok(found)
}

/// Adds what any replica has; tells whether it could be read together.
async fn read_any(
    cluster: &Cluster,
    partition: u32,
    subjects: &[String],
    found: &mut Found,
) -> Result<bool, StoreError> {
    let stream = cluster.names.stream(partition);
    let Some(messages) = cluster.wire.last_of_any(&stream, subjects).await? else {
        return Ok(false);
    };
    found.extend(messages.into_iter().map(|message| (message.subject.clone(), message)));
    Ok(true)
}

/// Adds what is true at a moment behind all who wait; tells whether it could be read together.
async fn read_now(
    cluster: &Cluster,
    partition: u32,
    subjects: &[String],
    mark: &Mark,
    found: &mut Found,
) -> Result<bool, StoreError> {
    let mut asked = subjects.to_vec();
    let start = Instant::now();
    while start.elapsed() < BEHIND_TIME_MAX {
        asked.push(mark.subject.clone());
        let mut here = Found::new();
        if !read_any(cluster, partition, &asked, &mut here).await? {
            return Ok(false);
        }
        asked.pop();
        let has_mark = here.remove(&mark.subject).is_some_and(|it| it.sequence >= mark.sequence);
        if has_mark {
            asked.retain(|subject| !here.contains_key(subject));
            found.extend(here);
            asked = not_proven(cluster, mark, asked).await?;
            if asked.is_empty() {
                return Ok(true);
            }
        }
        // The replica that was asked is behind, or something was replaced just then.
        sleep(BEHIND_PAUSE).await;
    }
    Err(StoreError::Unavailable("a replica does not catch up with its leader".to_owned()))
}

/// Those of some subjects that may be there, though they were not found. A document is replaced
/// with every write, and who reads it at that moment may see neither; so silence is no proof that
/// there is none. A write is, which asks for it.
async fn not_proven(
    cluster: &Cluster,
    mark: &Mark,
    missing: Vec<String>,
) -> Result<Vec<String>, StoreError> {
    let proofs = missing.iter().map(|subject| cluster.wire.mark_without(&mark.subject, subject));
    let proofs = try_join_all(proofs).await?;
    let unproven = missing.into_iter().zip(proofs).filter(|(_, is_proven)| !is_proven);
    Ok(unproven.map(|(subject, _)| subject).collect())
}

fn size(part: &Part) -> usize {
    part.writes.iter().map(|write| write.value.len()).sum()
}

async fn write(cluster: &Cluster, parts: Vec<Part>) {
    let (ends, writes) = joined(&parts);
    let count = writes.len() as u64;
    let start = Instant::now();
    let written = cluster.wire.write(writes).await;
    if matches!(written, Written::Stored(_)) {
        METRICS.group(parts.len(), start.elapsed());
    }
    let is_alone = parts.len() == 1;
    for (part, end) in parts.into_iter().zip(ends) {
        let _ = part.answer.send(match &written {
            Written::Stored(sequence) => {
                Grouped::Written(Written::Stored(sequence - (count - end)))
            }
            Written::Conflict if !is_alone => Grouped::Alone,
            other => Grouped::Written(other.clone()),
        });
    }
}

/// The messages of all parts one after the other, and how many there are up to the end of each.
fn joined(parts: &[Part]) -> (Vec<u64>, Vec<Write>) {
    let mut writes = Vec::new();
    let mut ends = Vec::with_capacity(parts.len());
    for part in parts {
        writes.extend(part.writes.iter().cloned());
        ends.push(writes.len() as u64);
    }
    (ends, writes)
}
