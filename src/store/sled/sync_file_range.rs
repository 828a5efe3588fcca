//! Makes sled's `flush` mean what it says.
//!
//! sled 0.34.7 calls `sync_file_range` after each write to its log. That call starts write-back but
//! neither waits for the disk's cache nor saves the file's size, so it promises nothing at a power
//! cut, although sled decides by it which segments it may use again. This module defines the symbol
//! for the whole program, with the meaning of `fdatasync`. [`calls`] lets the store check at start
//! that sled really comes here.

use std::{
    fs::File,
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        raw::{c_int, c_uint},
    },
    sync::atomic::{AtomicU64, Ordering},
};

static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often sled has synced its log in this process.
pub(super) fn calls() -> u64 {
    CALLS.load(Ordering::SeqCst)
}

/// Takes the place of the C library's function of this name.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: RawFd, _offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
    CALLS.fetch_add(1, Ordering::SeqCst);
    // A test takes the sync away, to see that tests of power cuts miss it.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("no-sync", |_| 0);
    // SAFETY: the caller owns `fd` and keeps it open for the length of this call; `ManuallyDrop`
    // keeps us from closing it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    // On failure, `errno` is still that of fdatasync, which is what the caller reads.
    match file.sync_data() {
        Ok(()) => 0,
        Err(_) => -1,
    }
}
