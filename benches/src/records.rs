//! The records that every store under test holds: 8 nodes a player, each with a text of 64 bytes.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// Records of one player.
pub const NODES: usize = 8;

/// The title of all players.
pub const TITLE: &str = "bench";

/// The text stored with each record.
pub const EXTRA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The version of each record as its only writer knows it.
#[derive(Clone)]
pub struct Versions(Arc<[AtomicI64]>);

/// The part of the records that one caller writes, in random order, over and over.
pub struct Share {
    versions: Versions,
    order: Vec<u32>,
    next: usize,
}

/// One record to write.
#[derive(Clone, Copy)]
pub struct Record {
    pub index: u32,
    pub version: i64,
}

pub fn player(index: u32) -> String {
    format!("player-{:08}", index as usize / NODES)
}

pub fn node(index: u32) -> String {
    format!("node-{}", index as usize % NODES)
}

/// The key of a record where a store has flat keys.
pub fn key(index: u32) -> String {
    format!("{TITLE}/{}/{}", player(index), node(index))
}

impl Versions {
    pub fn new(count: usize, version: i64) -> Self {
        Self((0..count).map(|_| AtomicI64::new(version)).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn set(&self, index: u32, version: i64) {
        self.0[index as usize].store(version, Ordering::Relaxed);
    }

    /// Deals the records out to `callers`.
    pub fn shares(&self, callers: usize) -> Vec<Share> {
        let mut all: Vec<u32> = (0..u32::try_from(self.len()).expect("few records")).collect();
        fastrand::Rng::with_seed(7).shuffle(&mut all);
        let size = self.len() / callers;
        all.chunks(size)
            .take(callers)
            .map(|order| Share { versions: self.clone(), order: order.to_vec(), next: 0 })
            .collect()
    }
}

impl Share {
    /// The next record to write.
    pub fn next(&mut self) -> Record {
        let index = self.order[self.next];
        self.next = (self.next + 1) % self.order.len();
        Record { index, version: self.versions.0[index as usize].load(Ordering::Relaxed) }
    }

    /// Notes that a record was written.
    pub fn wrote(&self, record: Record) {
        self.versions.set(record.index, record.version + 1);
    }

    /// How many records are its own.
    pub fn count(&self) -> usize {
        self.order.len()
    }

    pub fn versions(&self) -> &Versions {
        &self.versions
    }
}
