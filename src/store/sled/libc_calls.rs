//! Makes what sled writes last when sled believes that it does.
//!
//! This module defines functions of the C library for the whole program, because sled 0.34.7 asks
//! too little of the system. [`syncs`] lets the store check at start that sled really comes here.
//!
//! - `sync_file_range` is what sled calls after each write to its log. That call starts write-back
//!   but neither waits for the disk's cache nor saves the file's size, so it promises nothing at a
//!   power cut, although sled decides by it which segments it may use again. Here it means
//!   `fdatasync`.
//! - `fsync` is what sled's flusher calls, twice a second. The system tells of a failed write once,
//!   to one of those who sync then: perhaps to the flusher, which goes on as if nothing were. So on
//!   Linux it comes here too; see [`LogSyncs`].
//! - `rename` is how sled, while it opens, puts a new snapshot in the place of the old one; then it
//!   fills unused segments with zeroes. If a power cut kept the zeroes and the old snapshot, sled
//!   would miss a segment near the end of its log, and take the log for empty. Here the name lasts
//!   before `rename` returns.

use std::{
    collections::BTreeMap,
    ffi::{CStr, OsStr, c_char},
    fs::File,
    io,
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        raw::{c_int, c_uint},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

static SYNCS: AtomicU64 = AtomicU64::new(0);

/// How often sled has synced its log in this process.
pub(super) fn syncs() -> u64 {
    SYNCS.load(Ordering::SeqCst)
}

/// Device and inode.
type FileId = (u64, u64);

static LOGS: Mutex<BTreeMap<FileId, Arc<Syncs>>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Syncs {
    flushes: AtomicU64,
    failed: AtomicBool,
    /// Held for reading by each sync that is under way.
    under_way: RwLock<()>,
}

impl Syncs {
    /// Syncs a log. Fails where this sync fails, one that was under way at the same time, or any
    /// before: which of them the system tells is chance.
    fn sync(&self, log: &File) -> io::Result<()> {
        let under_way = self.under_way.read();
        let done = log.sync_data();
        if done.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        drop(under_way);
        // All that were under way have said by now whether they failed.
        drop(self.under_way.write());
        match self.failed.load(Ordering::SeqCst) {
            true => Err(done.err().unwrap_or_else(|| io::Error::from_raw_os_error(libc::EIO))),
            false => Ok(()),
        }
    }
}

/// The syncs of one log, from now on until this is dropped.
pub(super) struct LogSyncs {
    id: FileId,
    syncs: Arc<Syncs>,
}

// === impl LogSyncs ===

impl LogSyncs {
    pub(super) fn of(log: &File) -> io::Result<Self> {
        let (id, syncs) = (file_id(log)?, Arc::<Syncs>::default());
        LOGS.lock().insert(id, Arc::clone(&syncs));
        Ok(Self { id, syncs })
    }

    /// How often sled's flusher came by.
    pub(super) fn flushes(&self) -> u64 {
        self.syncs.flushes.load(Ordering::Relaxed)
    }

    /// Whether one has failed.
    pub(super) fn have_failed(&self) -> bool {
        self.syncs.failed.load(Ordering::SeqCst)
    }
}

impl Drop for LogSyncs {
    fn drop(&mut self) {
        let mut logs = LOGS.lock();
        // The same file may have been opened anew meanwhile.
        if logs.get(&self.id).is_some_and(|syncs| Arc::ptr_eq(syncs, &self.syncs)) {
            logs.remove(&self.id);
        }
    }
}

fn file_id(file: &File) -> io::Result<FileId> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn syncs_of(file: &File) -> Option<Arc<Syncs>> {
    let id = file_id(file).ok()?;
    LOGS.lock().get(&id).cloned()
}

/// # Safety
///
/// The caller owns `fd` and keeps it open for as long as the result is used.
unsafe fn borrow(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: as the caller promises; `ManuallyDrop` keeps us from closing it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// Takes the place of the C library's function of this name.
#[unsafe(no_mangle)]
extern "C" fn sync_file_range(fd: RawFd, _offset: i64, _bytes: i64, _flags: c_uint) -> c_int {
    SYNCS.fetch_add(1, Ordering::SeqCst);
    // A test takes the sync away, to see that tests of power cuts miss it.
    #[cfg(feature = "failpoints")]
    fail::fail_point!("no-sync", |_| 0);
    // SAFETY: sled keeps its log open for the length of this call.
    let log = unsafe { borrow(fd) };
    result(syncs_of(&log).map_or_else(|| log.sync_data(), |syncs| syncs.sync(&log)))
}

/// Takes the place of the C library's function of this name.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn fsync(fd: RawFd) -> c_int {
    // SAFETY: whoever syncs a file keeps it open for the length of this call.
    let file = unsafe { borrow(fd) };
    let Some(syncs) = syncs_of(&file) else {
        // SAFETY: the call takes any number, and refuses what is no descriptor.
        return if unsafe { libc::syscall(libc::SYS_fsync, fd) } == 0 { 0 } else { -1 };
    };
    // Bytes and size are all that sled needs of its log; times would cost a commit of the journal.
    let done = syncs.sync(&file);
    syncs.flushes.fetch_add(1, Ordering::Relaxed);
    result(done)
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

/// What the C library returns, with the error in `errno`.
fn result(done: io::Result<()>) -> c_int {
    let Err(error) = done else { return 0 };
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    #[cfg(target_os = "linux")]
    // SAFETY: gives a place of this thread's own.
    unsafe {
        *libc::__errno_location() = errno;
    }
    #[cfg(target_os = "macos")]
    // SAFETY: as above.
    unsafe {
        *libc::__error() = errno;
    }
    -1
}
