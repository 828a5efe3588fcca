//! The other baseline: sled alone, one thread, one batch a group, one sync a group.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    load::Result,
    records::{self, EXTRA, Versions},
};

/// A sled database with the same records.
pub struct SledLoop {
    path: PathBuf,
    tree: sled::Db,
    versions: Versions,
}

impl SledLoop {
    pub fn open(dir: &Path, count: usize) -> Result<Self> {
        let tree = sled::Config::new()
            .path(dir)
            .segment_size(8 << 20)
            .cache_capacity(256 << 20)
            // As the store does.
            .flush_every_ms(Some(500))
            .open()?;
        let this = Self { path: dir.to_owned(), tree, versions: Versions::new(count, 0) };
        let mut share = this.versions.shares(1).remove(0);
        for _ in 0..count.div_ceil(512) {
            this.group(&mut share, 512)?;
        }
        Ok(this)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Groups of compare-and-sets, one after the other; gives sets a second.
    pub fn run(&self, group: usize, time: Duration) -> Result<f64> {
        let mut share = self.versions.shares(1).remove(0);
        let (mut sets, mut start) = (0, Instant::now());
        let warm = start + time / 4;
        let mut warming = true;
        loop {
            self.group(&mut share, group)?;
            sets += group;
            if warming && Instant::now() > warm {
                (warming, sets, start) = (false, 0, Instant::now());
            }
            if !warming && start.elapsed() > time {
                return Ok(sets as f64 / start.elapsed().as_secs_f64());
            }
        }
    }

    fn group(&self, share: &mut records::Share, size: usize) -> Result<()> {
        let mut batch = sled::Batch::default();
        for _ in 0..size {
            let record = share.next();
            let key = records::key(record.index);
            let stored = self
                .tree
                .get(&key)?
                .map_or(0, |value| i64::from_be_bytes(value[..8].try_into().expect("8 bytes")));
            if stored != record.version {
                return Err(format!("version {stored}, not {}", record.version).into());
            }
            let mut value = (record.version + 1).to_be_bytes().to_vec();
            value.extend_from_slice(EXTRA.as_bytes());
            batch.insert(key.as_bytes(), value);
            share.wrote(record);
        }
        self.tree.apply_batch(batch)?;
        self.tree.flush()?;
        Ok(())
    }
}
