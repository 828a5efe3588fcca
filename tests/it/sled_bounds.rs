//! Why the store keeps within bounds: sled alone, on a disk that loses power. Inside the bounds
//! nothing is lost; outside, a power cut takes what was flushed and synced.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    disk::{Cut, Faults, State},
    support::say,
    told::mount,
};

const KEYS: u32 = 2000;
const BATCH_ROWS: usize = 500;
const CUTS: [Cut; 3] = [Cut::Drop, Cut::Subset, Cut::Torn];

/// How sled is used.
#[derive(Clone, Copy, Debug)]
struct Use {
    segment_bytes: usize,
    value_bytes: usize,
    /// Between two syncs, in batches of at most [`BATCH_ROWS`].
    group_rows: usize,
}

/// The group that wrote each key last, of the groups that are flushed and synced.
type Synced = Arc<Mutex<BTreeMap<u32, u64>>>;

fn open(folder: &Path, way: Use) -> sled::Result<sled::Db> {
    let config = sled::Config::new().path(folder).segment_size(way.segment_bytes);
    // More often than the store's, to meet more of what it does.
    config.cache_capacity(64 << 20).flush_every_ms(Some(50)).open()
}

fn write_groups(db: &sled::Db, folder: &Path, way: Use, synced: &Synced, stop: &AtomicBool) {
    let log = File::open(folder.join("db")).unwrap();
    let mut random = fastrand::Rng::new();
    for group in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let keys: Vec<u32> = (0..way.group_rows).map(|_| random.u32(..KEYS)).collect();
        for keys in keys.chunks(BATCH_ROWS) {
            let mut batch = sled::Batch::default();
            for key in keys {
                let mut value = vec![b'x'; way.value_bytes];
                value[..8].copy_from_slice(&group.to_be_bytes());
                batch.insert(&key.to_be_bytes(), value);
            }
            db.apply_batch(batch).unwrap();
        }
        db.flush().unwrap();
        log.sync_data().unwrap();
        synced.lock().extend(keys.into_iter().map(|key| (key, group)));
    }
}

fn examine(folder: &Path, way: Use, synced: &BTreeMap<u32, u64>) -> Result<(), String> {
    let read = || {
        let db = open(folder, way)?;
        for (key, group) in synced {
            let value = db.get(key.to_be_bytes())?;
            let stored = value.and_then(|it| it.first_chunk().map(|it| u64::from_be_bytes(*it)));
            if stored.is_none_or(|stored| stored < *group) {
                return Ok(Err(format!("key {key} is of group {stored:?}, not {group}")));
            }
        }
        Ok(Ok(()))
    };
    let read: std::thread::Result<sled::Result<_>> = catch_unwind(AssertUnwindSafe(read));
    match read {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => Err(format!("sled says: {error}")),
        Err(_) => Err("sled panics".to_owned()),
    }
}

/// Cuts the power at this many moments, each in three ways; tells the first loss.
fn cut_power(way: Use, moments: usize) -> Result<usize, String> {
    let (mounted, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&mounted) else { return Ok(0) };
    let folder = disk.path().join("sled");
    let db = open(&folder, way).unwrap();
    db.flush().unwrap();
    // Names and what else comes with the creation are not what is tested here.
    for name in ["conf", "db", "blobs", "."] {
        File::open(folder.join(name)).unwrap().sync_all().unwrap();
    }
    File::open(disk.path()).unwrap().sync_all().unwrap();
    disk.set_faults(Faults { sync_takes: Duration::from_millis(1), ..Faults::default() });
    let (synced, stop) = (Synced::default(), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (folder, synced, stop) = (folder.clone(), synced.clone(), stop.clone());
        thread::spawn(move || write_groups(&db, &folder, way, &synced, &stop))
    };
    let mut random = fastrand::Rng::new();
    let mut states = 0;
    let mut found = Ok(0);
    'moments: for _ in 0..moments {
        thread::sleep(Duration::from_micros(random.u64(1000..40_000)));
        let told = synced.lock().clone();
        let snapshot = disk.snapshot();
        for cut in CUTS {
            let state = scratch.path().join(format!("{states}"));
            snapshot.cut(cut, &mut random).write_to(&state).unwrap();
            states += 1;
            if let Err(problem) = examine(&state.join("sled"), way, &told) {
                found = Err(format!("state {states}, {cut:?}: {problem}"));
                break 'moments;
            }
            fs::remove_dir_all(&state).unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    found.map(|_| states)
}

#[test]
fn a_power_cut_spares_what_keeps_within_the_bounds_and_nothing_else() {
    // As the store does: see `bounds.rs`.
    let inside = Use { segment_bytes: 8 << 20, value_bytes: 1000, group_rows: 500 };
    let states = cut_power(inside, 40).unwrap();
    if states == 0 {
        return;
    }

    let blobs = Use { segment_bytes: 512 << 10, value_bytes: 9000, group_rows: 20 };
    let lost = cut_power(blobs, 100).expect_err("sled does not sync blobs");
    say(&format!("{states} states inside the bounds; with blobs: {lost}"));

    // With sled's own sync, which promises nothing: groups of more than a segment.
    fail::cfg("no-sync", "return").unwrap();
    let groups = Use { segment_bytes: 512 << 10, value_bytes: 1000, group_rows: 4000 };
    let lost = cut_power(groups, 100);
    fail::remove("no-sync");
    let lost = lost.expect_err("sled uses segments again before their successors are safe");
    say(&format!("with groups larger than a segment: {lost}"));
}

/// Overwrites one key again and again, and cuts the power just after such a folder was opened: all
/// bytes are there, and no name that was not synced. Tells the first loss.
fn cut_power_after_opening(moments: usize) -> Result<usize, String> {
    // So small that most of these moments are in a segment before which there is an unused one.
    let way = Use { segment_bytes: 64 << 10, value_bytes: 1000, group_rows: 1 };
    let (mounted, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&mounted) else { return Ok(0) };
    let mut random = fastrand::Rng::new();
    let folder = scratch.path().join("used");
    drop(open(&folder, way).unwrap());
    let db = reopen(&folder, way);
    for moment in 0..moments {
        for _ in 0..random.u32(1..40) {
            let mut value = vec![b'x'; way.value_bytes];
            value[..8].copy_from_slice(&(moment as u64).to_be_bytes());
            db.insert(0_u32.to_be_bytes(), value).unwrap();
        }
        db.flush().unwrap();
        disk.load(&State::default());
        let opened = disk.path().join("sled");
        fs::create_dir(&opened).unwrap();
        for file in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            if file.path().is_file() {
                let copy = opened.join(file.file_name());
                fs::copy(file.path(), &copy).unwrap();
                File::open(copy).unwrap().sync_all().unwrap();
            }
        }
        for folder in [&opened, disk.path()] {
            File::open(folder).unwrap().sync_all().unwrap();
        }
        drop(open(&opened, way).unwrap());
        let state = scratch.path().join("cut");
        disk.snapshot().cut(Cut::Names, &mut random).write_to(&state).unwrap();
        examine(&state.join("sled"), way, &BTreeMap::from([(0, moment as u64)]))
            .map_err(|problem| format!("moment {moment}: {problem}"))?;
        fs::remove_dir_all(&state).unwrap();
    }
    Ok(moments)
}

/// As [`open`], of a folder that was just closed: sled lets go of its files a little later.
fn reopen(folder: &Path, way: Use) -> sled::Db {
    let attempts = (0..3000).find_map(|_| {
        thread::sleep(Duration::from_millis(10));
        open(folder, way).ok()
    });
    attempts.expect("half a minute is enough")
}

#[test]
fn a_power_cut_after_opening_may_take_the_names_of_that_time() {
    if cut_power_after_opening(100).unwrap() == 0 {
        return;
    }
    fail::cfg("no-sync-of-names", "return").unwrap();
    let lost = cut_power_after_opening(2000);
    fail::remove("no-sync-of-names");
    say(&format!("without the sync: {}", lost.expect_err("the old snapshot misses a segment")));
}
