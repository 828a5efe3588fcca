//! Creating and opening a data folder.
//!
//! | in the folder | what |
//! |---|---|
//! | `lock` | held by the process that has the folder open |
//! | `mark` | what is known to be durable: see `mark.rs` |
//! | `ballast` | room for opening on a full disk: see `ballast.rs` |
//! | `store/` | sled's files |
//! | `store.creating/` | a creation that was cut short; removed |
//! | `store/quarantine/` | snapshots that sled could not read; kept for inspection |
//!
//! A store is made under another name, synced and renamed, because sled cannot open a folder whose
//! `conf` was torn while it was first written.

use std::{
    any::Any,
    ffi::OsStr,
    fs::{self, File, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use sled::Db;

use super::{
    ballast,
    bounds::SEGMENT_BYTES,
    catalogs,
    error::{OpenError, at, unreadable},
    folder::{create_dir, files, read_files, remove_dir, sync_dir, sync_tree, write_back},
    frame,
    keys::Key,
    libc_calls::{self, LogSyncs},
    mark::{self, DISTRUST_UNTOLD, Mark},
    verify::{Report, verify},
    watchdog::FAILURE_POLL,
};
use crate::{
    proto::rows::StoreRow,
    store::{StoreError, crash_point::crash_point},
};

/// How long to wait for another process to let go of the folder: one that is just stopping.
const FOLDER_ATTEMPTS: u32 = 200;

/// How long to wait for a sled of this process to let go of its log: it has nothing left to do.
const LOG_ATTEMPTS: u32 = 3000;

const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How often sled's flusher comes by; sled's own default. It writes and syncs, which each group has
/// done already, and for at most half of this time it empties segments of which little is still
/// used. Nothing else in sled keeps up with records that are overwritten.
const FLUSH_MILLIS: u64 = 500;

/// A data folder that is open and sound.
pub(super) struct Opened {
    pub(super) db: Db,
    /// Knows of failures on sled's own threads.
    pub(super) config: sled::Config,
    pub(super) report: Report,
    pub(super) row: StoreRow,
    pub(super) mark: Option<Mark>,
    /// Our own handle to sled's log, to sync it.
    pub(super) log: File,
    /// What became of sled's syncs.
    pub(super) syncs: LogSyncs,
    /// sled's own folder.
    pub(super) store: PathBuf,
    /// Dropped last: the folder is ours until sled has closed.
    pub(super) lock: File,
}

/// Opens a data folder, and makes it first where it does not exist.
pub(super) fn open(dir: &Path, cache_bytes: u64) -> Result<Opened, OpenError> {
    create_dir(dir)?;
    let lock = lock(dir)?;
    // A sled that is closed because something failed panics where its last sync fails too.
    let opened = catch_unwind(AssertUnwindSafe(|| open_or_make(dir, lock, cache_bytes)));
    let opened = opened.unwrap_or_else(|panic| Err(unreadable(dir)(panic_text(&*panic))));
    if matches!(opened, Err(OpenError::Io { .. } | OpenError::Unreadable { .. }))
        && let Err(error) = mark::distrust(&mark::path(dir))
    {
        tracing::error!(%error, "{DISTRUST_UNTOLD}");
    }
    opened
}

fn open_or_make(dir: &Path, lock: File, cache_bytes: u64) -> Result<Opened, OpenError> {
    let store = dir.join("store");
    remove_dir(&dir.join("store.creating"))?;
    ballast::make_room(dir).map_err(at(dir))?;
    let mark = mark::path(dir);
    if mark::is_distrusted(&mark).map_err(at(&mark))? {
        if store.exists() {
            tracing::warn!(?store, "a write failed before the last stop: writing everything back");
            // A sled that is just closing must not write what is overwritten here.
            let log = store.join("db");
            wait_until_closed(&File::open(&log).map_err(at(&log))?, &store)?;
            write_back(&store)?;
        }
        mark::trust(&mark).map_err(at(&mark))?;
    }
    if !store.exists() {
        create_store(dir, &store)?;
    }
    // Also of a store that a process made and was killed before it could sync the rename.
    sync_dir(dir)?;

    let mut opened = open_existing(lock, store, cache_bytes, &mut |_| {})?;
    let Opened { db, config, store, .. } = &opened;
    let broken = |error: StoreError| unreadable(store)(error.to_string());
    let failed = |error: sled::Error| unreadable(store)(error.to_string());
    for (key, _) in catalogs::leftovers(db).map_err(broken)?.into_iter().flatten() {
        db.remove(key).map_err(failed)?;
    }
    crash_point!("verified");
    let open_count = opened.row.open_count + 1;
    // The changes are what verify found; a store of a version that did not count begins here.
    let row = StoreRow { open_count, changes: opened.report.changes, ..opened.row };
    let syncs_before = libc_calls::syncs();
    write_store_row(db, config, row).map_err(failed)?;
    if cfg!(target_os = "linux") && libc_calls::syncs() == syncs_before {
        return Err(OpenError::NotSynced);
    }
    crash_point!("counted");
    opened.log.sync_data().map_err(at(store))?;
    opened.mark = Some(Mark::open(&mark, row.store_id).map_err(at(&mark))?);
    opened.row = row;
    ballast::keep_room(dir);
    Ok(opened)
}

/// Opens and checks a data folder that exists, and writes nothing of our own.
pub(super) fn inspect(
    dir: &Path,
    cache_bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Opened, OpenError> {
    let store = dir.join("store");
    if !store.is_dir() {
        return Err(OpenError::NoDataFolder(dir.to_owned()));
    }
    open_existing(lock(dir)?, store, cache_bytes, progress)
}

fn open_existing(
    lock: File,
    store: PathBuf,
    cache_bytes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Opened, OpenError> {
    let log_path = store.join("db");
    let log = File::options().read(true).write(true).open(&log_path).map_err(at(&log_path))?;
    wait_until_closed(&log, &store)?;
    // What cannot be read sled takes for the end of its log, and overwrites. So everything is read
    // once before sled may touch it; then it is in memory, or the error is told.
    read_files(&store)?;
    // What a crash left in the page cache must not be lost by the next power cut.
    log.sync_data().map_err(at(&log_path))?;
    check_blobs(&store)?;
    crash_point!("before-sled");
    let syncs = LogSyncs::of(&log).map_err(at(&log_path))?;
    let (db, config) = open_sled(&store, cache_bytes)?;
    crash_point!("recovered");
    log.sync_data().map_err(at(&log_path))?;
    sync_dir(&store)?;

    let broken = |error: StoreError| unreadable(&store)(error.to_string());
    let mut report = verify(&db, progress).map_err(broken)?;
    if let Some(row) = report.store {
        let path = mark::path(store.parent().unwrap_or(Path::new("")));
        let durable = mark::read(&path, row.store_id).map_err(at(&path))?;
        if let Some(durable) = durable.filter(|durable| *durable > row.groups) {
            report.problem(format!(
                "{durable} groups were durable, {} are there: the log has lost its end (to go on \
                 without what is lost, remove `{}`)",
                row.groups,
                path.display()
            ));
        }
    }
    let Some(row) = report.store.filter(|_| report.problems.is_empty()) else {
        return Err(OpenError::Damaged { path: store, problems: report.problems });
    };
    Ok(Opened { db, config, report, row, mark: None, log, syncs, store, lock })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(at(&path))?;
    take_lock(&file, dir, FOLDER_ATTEMPTS)?;
    Ok(file)
}

fn take_lock(file: &File, dir: &Path, attempts: u32) -> Result<(), OpenError> {
    for attempt in 1..=attempts {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(source)) => return Err(at(dir)(source)),
            Err(TryLockError::WouldBlock) if attempt == attempts => break,
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
        }
    }
    Err(OpenError::InUse(dir.to_owned()))
}

/// Waits until a sled that was dropped has let go of its files: its background threads go on for
/// a moment, and its own lock on the log is what they release last.
fn wait_until_closed(log: &File, store: &Path) -> Result<(), OpenError> {
    take_lock(log, store, LOG_ATTEMPTS)?;
    log.unlock().map_err(at(store))
}

fn create_store(dir: &Path, store: &Path) -> Result<(), OpenError> {
    let creating = dir.join("store.creating");
    {
        let (db, config) = open_sled(&creating, 1 << 20)?;
        let row = StoreRow { store_id: fastrand::u64(..), ..StoreRow::default() };
        let written = write_store_row(&db, &config, row);
        written.map_err(|error| unreadable(&creating)(error.to_string()))?;
    }
    let log = creating.join("db");
    wait_until_closed(&File::open(&log).map_err(at(&log))?, &creating)?;
    sync_tree(&creating)?;
    crash_point!("made");
    fs::rename(&creating, store).map_err(at(store))?;
    crash_point!("renamed");
    Ok(())
}

/// On a thread of its own: where sled fails on one of its threads, it may never come back.
fn write_store_row(db: &Db, config: &sled::Config, row: StoreRow) -> sled::Result<()> {
    let (done, is_done) = mpsc::sync_channel(1);
    let tree = (**db).clone();
    let writing = move || {
        let key = Key::Store.encode();
        let value = frame::encode(&key, &row);
        let written = tree.insert(key, value).and_then(|_| tree.flush()).map(drop);
        // Whoever is told must be the last who holds the tree.
        drop(tree);
        let _ = done.send(written);
    };
    let started = thread::Builder::new().name("open".to_owned()).spawn(writing);
    started.expect("a thread can be started while the store opens");
    loop {
        match is_done.recv_timeout(FAILURE_POLL) {
            Ok(written) => return written,
            Err(RecvTimeoutError::Timeout) => config.global_error()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(sled::Error::ReportableBug("sled panicked".to_owned()));
            }
        }
    }
}

fn open_sled(store: &Path, cache_bytes: u64) -> Result<(Db, sled::Config), OpenError> {
    remove_half_written_snapshots(store)?;
    let db = match try_open_sled(store, cache_bytes) {
        Err(sled::Error::Corruption { .. }) => {
            quarantine_snapshots(store)?;
            try_open_sled(store, cache_bytes)
        }
        other => other,
    };
    db.map_err(|error| unreadable(store)(error.to_string()))
}

/// sled panics on some kinds of damage; that is an error of the folder, not of this program.
fn try_open_sled(store: &Path, cache_bytes: u64) -> sled::Result<(Db, sled::Config)> {
    let config = sled::Config::new()
        .path(store)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(cache_bytes)
        .flush_every_ms(Some(FLUSH_MILLIS))
        .use_compression(false);
    let opened = catch_unwind(AssertUnwindSafe(|| config.open()))
        .unwrap_or_else(|panic| Err(sled::Error::ReportableBug(panic_text(&*panic))));
    opened.map(|db| (db, config))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_else(|| "sled panicked".to_owned())
}

/// A snapshot that a crash cut short keeps sled from opening; sled makes a new one.
fn remove_half_written_snapshots(store: &Path) -> Result<(), OpenError> {
    for path in snapshots(store)? {
        if path.extension() == Some(OsStr::new("generating")) {
            fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// Without its snapshot, sled rebuilds everything from the log.
fn quarantine_snapshots(store: &Path) -> Result<(), OpenError> {
    let quarantine = store.join("quarantine");
    fs::create_dir_all(&quarantine).map_err(at(&quarantine))?;
    for path in snapshots(store)? {
        tracing::warn!(?path, "sled could not read this snapshot; rebuilding from the log");
        let name = path.file_name().unwrap_or_default();
        fs::rename(&path, quarantine.join(name)).map_err(at(&path))?;
    }
    sync_dir(store)
}

fn snapshots(store: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let mut paths = files(store)?;
    paths.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("snap."))
    });
    Ok(paths)
}

fn check_blobs(store: &Path) -> Result<(), OpenError> {
    let blobs = store.join("blobs");
    let is_empty = match fs::read_dir(&blobs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        entries => entries.map_err(at(&blobs))?.next().is_none(),
    };
    match is_empty {
        true => Ok(()),
        false => Err(unreadable(store)("it has files in `blobs`, which are never synced".into())),
    }
}
