//! Makes what sled writes last when sled believes that it does.
//!
//! This module defines two functions of the C library for the whole program, because sled 0.34.7
//! asks too little of the system. [`syncs`] lets the store check at start that sled really comes
//! here.
//!
//! - `sync_file_range` is what sled calls after each write to its log. That call starts write-back
//!   but neither waits for the disk's cache nor saves the file's size, so it promises nothing at a
//!   power cut, although sled decides by it which segments it may use again. Here it means
//!   `fdatasync`.
//! - `rename` is how sled, while it opens, puts a new snapshot in the place of the old one; then it
//!   fills unused segments with zeroes. If a power cut kept the zeroes and the old snapshot, sled
//!   would miss a segment near the end of its log, and take the log for empty. Here the name lasts
//!   before `rename` returns.

use std::{
    ffi::{CStr, OsStr, c_char},
    fs::File,
    io,
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        raw::{c_int, c_uint},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

static SYNCS: AtomicU64 = AtomicU64::new(0);

/// How often sled has synced its log in this process.
pub(super) fn syncs() -> u64 {
    SYNCS.load(Ordering::SeqCst)
}

/// Takes the place of the C library's function of this name.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: RawFd, _offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
    SYNCS.fetch_add(1, Ordering::SeqCst);
    // A test takes the sync away, to see that tests of power cuts miss it.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("no-sync", |_| 0);
    // SAFETY: the caller owns `fd` and keeps it open for the length of this call; `ManuallyDrop`
    // keeps us from closing it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    result(file.sync_data())
}

/// Takes the place of the C library's function of this name.
///
/// # Safety
///
/// Both are paths that end with a zero byte, as the C library asks.
#[unsafe(no_mangle)]
unsafe extern "C" fn rename(old: *const c_char, new: *const c_char) -> c_int {
    // SAFETY: the caller promises what this function needs, which is the same.
    if unsafe { libc::renameat(libc::AT_FDCWD, old, libc::AT_FDCWD, new) } != 0 {
        return -1;
    }
    // A test takes the sync away, to see that tests of power cuts miss it.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("no-sync-of-names", |_| 0);
    // SAFETY: as the caller promises.
    let new = unsafe { CStr::from_ptr(new) };
    let folder = Path::new(OsStr::from_bytes(new.to_bytes())).parent();
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    result(File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()))
}

/// What the C library returns. On failure `errno` is still that of the call that failed.
fn result(done: io::Result<()>) -> c_int {
    if done.is_ok() { 0 } else { -1 }
}
