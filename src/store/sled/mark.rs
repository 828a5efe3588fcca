//! A mark beside the store: how many groups have become durable.
//!
//! sled takes whatever it cannot read in its log for the torn end of it, and goes on without it and
//! what follows. What was durable and is gone must not be taken for a crash's leftovers, so the
//! last group that became durable is also noted here, outside the log. The mark is not synced: a
//! power cut may leave an older one, which is as true. A torn one is passed over.
//!
//! It also tells the next start that a write failed: what a failed sync should have saved stays in
//! the page cache as if it had been, so what is read then may be in memory only. The machine's next
//! start takes away both, what is in memory and, if it was not synced, this note.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// The groups, then a checksum over store and groups. A file of one byte more is distrusted.
const BYTES: usize = 12;

/// What to do where even that could not be noted.
pub(super) const DISTRUST_UNTOLD: &str = "the next start cannot be told that a write failed: \
    before it, unmount the file system, or restart the machine, so that nothing is read that only \
    memory holds";

/// The file, open for writing.
pub(super) struct Mark {
    file: File,
    store_id: u64,
}

/// Where a store in this folder has its mark.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("mark")
}

/// How many groups of this store are known to have become durable, where there is a mark.
pub(super) fn read(path: &Path, store_id: u64) -> io::Result<Option<u64>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let groups = bytes.first_chunk().map(|groups| u64::from_le_bytes(*groups));
    Ok(groups.filter(|groups| bytes.starts_with(&encode(store_id, *groups))))
}

/// Whether a write failed since the folder was last opened.
pub(super) fn is_distrusted(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        metadata => Ok(metadata?.len() > BYTES as u64),
    }
}

/// As [`Mark::distrust`], where the store is not open.
pub(super) fn distrust(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all_at(&[0], BYTES as u64)
}

/// Takes [`distrust`] back: everything has been written anew and is durable.
pub(super) fn trust(path: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(BYTES as u64)
}

fn encode(store_id: u64, groups: u64) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&groups.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&store_id.to_le_bytes());
    hasher.update(&bytes[..8]);
    bytes[8..].copy_from_slice(&hasher.finalize().to_le_bytes());
    bytes
}

// === impl Mark ===

impl Mark {
    pub(super) fn open(path: &Path, store_id: u64) -> io::Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        Ok(Self { file, store_id })
    }

    /// So many groups are durable.
    pub(super) fn set(&self, groups: u64) -> io::Result<()> {
        self.file.write_all_at(&encode(self.store_id, groups), 0)
    }

    /// The next start must not trust what it reads.
    pub(super) fn distrust(&self) -> io::Result<()> {
        self.file.write_all_at(&[0], BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_set_and_passed_over_where_it_is_torn_or_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert_eq!(read(&path, 7).unwrap(), None);
        let mark = Mark::open(&path, 7).unwrap();
        assert_eq!(read(&path, 7).unwrap(), None);
        for groups in [1, 300, u64::MAX] {
            mark.set(groups).unwrap();
            assert_eq!(read(&path, 7).unwrap(), Some(groups));
            assert_eq!(read(&path, 8).unwrap(), None);
        }
        assert!(!is_distrusted(&path).unwrap());
        mark.distrust().unwrap();
        mark.set(6).unwrap();
        assert!(is_distrusted(&path).unwrap());
        assert_eq!(read(&path, 7).unwrap(), Some(6));
        trust(&path).unwrap();
        assert!(!is_distrusted(&path).unwrap());
        assert_eq!(read(&path, 7).unwrap(), Some(6));
        mark.file.set_len(11).unwrap();
        assert_eq!(read(&path, 7).unwrap(), None);
        mark.set(5).unwrap();
        mark.file.write_all_at(&[9], 0).unwrap();
        assert_eq!(read(&path, 7).unwrap(), None);
    }
}
