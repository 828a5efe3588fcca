//! Room for opening on a full disk. sled writes while it opens: without a few megabytes for that,
//! a full disk would keep everybody from reading what is there. So a file of that size lies beside
//! the store while there is room for it, and is given up when there is none.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::Path,
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::bounds::SEGMENT_BYTES;

/// What opening may take: sled fills what is torn with zeroes, the rest of its last segment and the
/// one behind it, begins another, and writes a snapshot.
const BALLAST_BYTES: u64 = 4 * SEGMENT_BYTES as u64;

/// With less room than this, opening needs the ballast; with less beside it, it is not laid in.
const ROOM_BYTES_MIN: u64 = BALLAST_BYTES;

/// Gives the ballast up where the disk has too little room for opening.
pub(super) fn make_room(dir: &Path) -> io::Result<()> {
    if room(dir)? >= ROOM_BYTES_MIN {
        return Ok(());
    }
    match fs::remove_file(dir.join("ballast")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        removed => removed?,
    }
    tracing::warn!(?dir, "the disk is full: the ballast is given up, so that the folder opens");
    File::open(dir)?.sync_all()
}

/// Lays the ballast in where it is missing and the disk has room for it. The store works without.
pub(super) fn keep_room(dir: &Path) {
    let path = dir.join("ballast");
    if let Err(error) = lay_in(dir, &path) {
        tracing::warn!(%error, ?path, "there is no ballast: a full disk may keep it from opening");
        let _ = fs::remove_file(&path);
    }
}

fn lay_in(dir: &Path, path: &Path) -> io::Result<()> {
    let is_there = fs::metadata(path).is_ok_and(|file| file.len() == BALLAST_BYTES);
    if is_there || room(dir)? < BALLAST_BYTES + ROOM_BYTES_MIN {
        return Ok(());
    }
    let mut file = File::create(path)?;
    if fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES).is_ok() {
        return Ok(());
    }
    // Not every file system can set blocks aside.
    let zeroes = vec![0; 1 << 20];
    for _ in 0..BALLAST_BYTES >> 20 {
        file.write_all(&zeroes)?;
    }
    Ok(())
}

fn room(dir: &Path) -> io::Result<u64> {
    let disk = statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
