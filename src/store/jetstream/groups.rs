//! What waits to be written to a partition at the same time is written in one batch: JetStream
//! replicates and syncs a batch as one, so many players cost little more than one.
//!
//! A batch with several players is stored wholly or not at all. Where one of them was written by
//! another server meanwhile, it is refused, and each is then written by itself.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    cluster::Cluster,
    wire::{Write, Written},
};

/// Most messages of a batch, of the 1000 that JetStream takes.
const MESSAGES_MAX: usize = 900;

/// Most bytes of a batch, but for its last part.
const BYTES_MAX: usize = 1 << 20;

/// Batches of a partition under way. While they are, the next one grows.
const UNDER_WAY_MAX: usize = 4;

/// Parts that wait for a batch.
const WAITING_MAX: usize = 4096;

/// What became of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grouped {
    /// As if it had been a batch of its own; [`Written::Stored`] has the sequence of its last message.
    Written(Written),
    /// It is not stored, and is to be written by itself.
    Alone,
}

/// Messages that belong together, and whom to tell.
struct Part {
    writes: Vec<Write>,
    answer: oneshot::Sender<Grouped>,
}

/// The batches of every partition.
pub(super) struct Groups {
    partitions: Vec<mpsc::Sender<Part>>,
}

impl Groups {
    pub(super) fn start(cluster: &Arc<Cluster>) -> Self {
        let partitions = cluster.partitions().map(|partition| {
            let (parts, waiting) = mpsc::channel(WAITING_MAX);
            tokio::spawn(run(cluster.clone(), cluster.names.stream(partition), waiting));
            parts
        });
        Self { partitions: partitions.collect() }
    }

    /// Writes a part together with others.
    pub(super) async fn write(&self, partition: u32, writes: Vec<Write>) -> Grouped {
        let (answer, answered) = oneshot::channel();
        let part = Part { writes, answer };
        match self.partitions[partition as usize].send(part).await {
            Ok(()) => answered.await.unwrap_or(Grouped::Written(Written::Unknown)),
            Err(_) => Grouped::Alone,
        }
    }
}

/// Makes batches of what waits until nobody can ask any more.
async fn run(cluster: Arc<Cluster>, stream: String, mut waiting: mpsc::Receiver<Part>) {
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
        let (cluster, stream) = (cluster.clone(), stream.clone());
        tokio::spawn(async move {
            write(&cluster, &stream, parts).await;
            drop(place);
        });
    }
}

fn size(part: &Part) -> usize {
    part.writes.iter().map(|write| write.value.len()).sum()
}

async fn write(cluster: &Cluster, stream: &str, parts: Vec<Part>) {
    let (ends, writes) = joined(&parts);
    let count = writes.len() as u64;
    let written = cluster.wire.write(stream, writes).await;
    let is_alone = parts.len() == 1;
    for (part, end) in parts.into_iter().zip(ends) {
        let _ = part.answer.send(match &written {
            Written::Stored(sequence) => {
                Grouped::Written(Written::Stored(sequence - (count - end)))
            }
            Written::Conflict | Written::UnderWay if !is_alone => Grouped::Alone,
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
