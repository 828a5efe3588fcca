//! What only this store promises: nothing is shown before it is durable, a failed write ends all
//! writes, a folder survives what crashes leave in it, and damage does not pass for data.

use std::{fs, sync::mpsc as std_mpsc, time::Duration};

use super::{bounds::GROUP_BYTES_MAX, *};
use crate::{
    domain::{Change, EpochSeconds, PROGRESS_MAX, Verdict},
    proto::rows::CompletionRow,
    store::ApplyError,
    testing::{TestClock, Update, catalog, player, title},
};

const CACHE: u64 = 1 << 20;

fn open(dir: &Path) -> SledStore {
    SledStore::open(dir, CACHE, TestClock::at(1000)).unwrap()
}

/// Opens a store whose log is synced by `sync`, given the real one.
fn open_with(
    dir: &Path,
    sync: impl FnMut(&mut SyncLog) -> io::Result<()> + Send + 'static,
) -> SledStore {
    open_with_limit(dir, COMMIT_TIME_MAX, sync)
}

/// The same; a commit that takes longer counts as hanging.
fn open_with_limit(
    dir: &Path,
    commit_time_max: Duration,
    sync: impl FnMut(&mut SyncLog) -> io::Result<()> + Send + 'static,
) -> SledStore {
    let opened = open::open(dir, CACHE).unwrap();
    let blobs = opened.store.join("blobs");
    let changed = fs::metadata(&blobs).unwrap().modified().unwrap();
    let tree = (*opened.db).clone();
    let mut real: SyncLog = Box::new(move || tree.flush().map(drop).map_err(io::Error::other));
    let mut sync = sync;
    let sync: SyncLog = Box::new(move || sync(&mut real));
    let clock = TestClock::at(1000);
    SledStore::start(opened, CACHE, clock, sync, (blobs, changed), commit_time_max)
}

async fn progress(store: &SledStore, id: &str) -> Option<u64> {
    let records = store.records(&player("t", id)).await.unwrap();
    records.first().map(|(_, state)| state.progress.get())
}

async fn feed_len(store: &SledStore) -> usize {
    let oldest = store.feed_bounds(&title("t")).await.unwrap().oldest;
    store.entries(&title("t"), &oldest, 1000).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_or_shown_before_it_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (reached, at_sync) = std_mpsc::sync_channel(100);
    let (go_on, may_go_on) = std_mpsc::sync_channel::<()>(100);
    let store = Arc::new(open_with(dir.path(), move |real| {
        reached.send(()).unwrap();
        may_go_on.recv().unwrap();
        real()
    }));
    go_on.send(()).unwrap();
    store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await.unwrap();
    at_sync.recv().unwrap();

    let setting = store.clone();
    let update = Update::of("t", "p").delta("n", 10, 9).build();
    let answer = tokio::spawn(async move { setting.apply(update).await });
    at_sync.recv_timeout(Duration::from_secs(10)).unwrap();
    let (tree, key) = (store.view.tree(), keys::completion(&title("t"), 1));
    assert!(tree.get(key).unwrap().is_some(), "the group is applied, and stands before its sync");
    assert!(!answer.is_finished(), "no answer yet");
    assert_eq!(progress(&store, "p").await, Some(1), "readers see what is durable");
    assert_eq!(feed_len(&store).await, 0, "and so do subscribers");

    go_on.send(()).unwrap();
    let applied = answer.await.unwrap().unwrap();
    assert!(applied.outcomes[0].0.newly_completed);
    assert_eq!(progress(&store, "p").await, Some(10));
    assert_eq!(feed_len(&store).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_all_writes_and_no_reads() {
    let dir = tempfile::tempdir().unwrap();
    let mut calls = 0;
    let store = open_with(dir.path(), move |real| {
        calls += 1;
        if calls == 2 { Err(io::Error::other("no space left")) } else { real() }
    });
    store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await.unwrap();
    for _ in 0..2 {
        let refused = store.apply(Update::of("t", "p").delta("n", 10, 9).build()).await;
        assert!(matches!(refused, Err(ApplyError::Store(StoreError::Poisoned))));
    }
    assert_eq!(*store.health().borrow(), StoreHealth::Poisoned);
    assert_eq!(progress(&store, "p").await, Some(1), "what failed stays hidden");
    assert_eq!(feed_len(&store).await, 0);
    let refused = store.replace_catalog(&title("t"), 0, Arc::new(catalog(&[("n", 1)]))).await;
    assert!(matches!(refused, Err(CatalogError::Store(StoreError::Poisoned))));
    let trimmed = store.trim_feed(&title("t"), Retention::default()).await;
    assert!(matches!(trimmed, Err(StoreError::Poisoned)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_committer_ends_all_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(dir.path(), |_| panic!("a test's panic"));
    let refused = store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await;
    assert!(matches!(refused, Err(ApplyError::Store(StoreError::Poisoned))));
    let mut health = store.health();
    health.wait_for(|health| *health == StoreHealth::Poisoned).await.unwrap();
    assert_eq!(progress(&store, "p").await, None);
}

/// sled does not wake its waiter after some failures; then no answer comes from the committer.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_not_end_ends_all_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (end, may_end) = std_mpsc::sync_channel::<()>(1);
    let store = open_with_limit(dir.path(), Duration::from_secs(1), move |real| {
        let _ = may_end.recv();
        real()
    });
    let refused = store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await;
    assert!(matches!(refused, Err(ApplyError::Store(StoreError::Poisoned))));
    assert_eq!(*store.health().borrow(), StoreHealth::Poisoned);
    assert_eq!(progress(&store, "p").await, None, "reads go on");
    drop(store);
    drop(end);
}

#[tokio::test]
async fn a_blob_ends_all_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    fs::write(dir.path().join("store/blobs/1"), b"x").unwrap();
    let refused = store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await;
    assert!(matches!(refused, Err(ApplyError::Store(StoreError::Poisoned))));
}

/// Goal: a page is never empty where the feed goes on, whatever is wrong with the rows.
#[tokio::test]
async fn a_hole_in_the_feed_is_an_error_and_not_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..3 {
        store.apply(Update::of("t", &format!("p{n}")).delta("n", 1, 1).build()).await.unwrap();
    }
    store.view.tree().remove(keys::completion(&title("t"), 2)).unwrap();
    let oldest = store.feed_bounds(&title("t")).await.unwrap().oldest;
    let page = store.entries(&title("t"), &oldest, 10).await.unwrap();
    assert_eq!(page.len(), 1);
    let next = store.entries(&title("t"), &page[0].cursor, 10).await;
    assert!(matches!(next, Err(FeedError::Store(StoreError::Corrupt(_)))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_holds_no_more_bytes_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let (reached, at_sync) = std_mpsc::sync_channel(100);
    let (go_on, may_go_on) = std_mpsc::sync_channel::<()>(100);
    let store = Arc::new(open_with(dir.path(), move |real| {
        let _ = reached.send(());
        let _ = may_go_on.recv();
        real()
    }));
    let extra = "x".repeat(60 << 10);
    let updates = 40;
    let mut answers = Vec::new();
    for n in 0..updates {
        let update = Update::of("t", &format!("p{n}"));
        let update = update.set("n", 1, Some(Change::Finish), Some(&extra), Some(0));
        answers.push(store.submit(update.build()).await.unwrap());
        if n == 0 {
            // The first group waits; the queue fills behind it.
            at_sync.recv().unwrap();
        }
    }
    drop(go_on);
    for answer in answers {
        answer.await.unwrap();
    }
    let syncs = at_sync.try_iter().count();
    let behind = (updates - 1) * 2 * extra.len();
    let fewest = behind.div_ceil(GROUP_BYTES_MAX);
    assert!((fewest..=2 * fewest).contains(&syncs), "{behind} bytes in {syncs} groups");
    drop(store);
    assert_eq!(open_report(dir.path()).events, 40);
}

fn open_report(dir: &Path) -> Report {
    SledStore::verify(dir, CACHE, &mut |_| {}).unwrap()
}

#[tokio::test]
async fn a_batch_too_large_for_one_step_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let extra = "x".repeat(64 << 10);
    let mut update = Update::of("t", "p");
    for n in 0..20 {
        update = update.set(&format!("n{n}"), 1, Some(Change::Finish), Some(&extra), Some(0));
    }
    let refused = store.apply(update.build()).await;
    assert!(matches!(refused, Err(ApplyError::TooLarge { .. })), "{refused:?}");
    assert_eq!(progress(&store, "p").await, None);
    store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await.unwrap();
}

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let update = Update::of("t", "p").delta("n", 1, 1).id("r").build();
    let (before, newest) = {
        let store = open(dir.path());
        store.replace_catalog(&title("t"), 0, Arc::new(catalog(&[("n", 1)]))).await.unwrap();
        let applied = store.apply(update.clone()).await.unwrap();
        (applied, store.feed_bounds(&title("t")).await.unwrap().newest)
    };
    let store = open(dir.path());
    let again = store.apply(update).await.unwrap();
    assert!(again.replayed, "a retry is recognised across a restart");
    assert_eq!(again.outcomes, before.outcomes);
    assert_eq!(store.feed_bounds(&title("t")).await.unwrap().newest, newest);
    assert_eq!(store.catalogs().await.unwrap()[0].revision, 1);
    let keep = Retention { count: Some(0), ..Retention::default() };
    assert_eq!(store.trim_feed(&title("t"), keep).await.unwrap(), 1);
    drop(store);

    let clock = TestClock::at(5);
    let store = SledStore::open(dir.path(), CACHE, clock).unwrap();
    let bounds = store.feed_bounds(&title("t")).await.unwrap();
    assert_eq!((&bounds.oldest, &bounds.newest), (&newest, &newest), "places are remembered");
    let late = store.apply(Update::of("t", "q").delta("n", 1, 1).build()).await.unwrap();
    let at = late.outcomes[0].0.after.completed_at;
    assert_eq!(at, EpochSeconds::new(1000), "and so is the time of the last completion");
}

#[test]
fn a_folder_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path());
    let second = SledStore::open(dir.path(), CACHE, TestClock::at(0));
    assert!(matches!(second, Err(OpenError::InUse(_))));
}

#[test]
fn a_folder_that_does_not_exist_is_made_by_open_and_not_by_verify() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    assert!(matches!(
        SledStore::verify(&path, CACHE, &mut |_| {}),
        Err(OpenError::NoDataFolder(_))
    ));
    drop(open(&path));
    assert_eq!(open_report(&path).records, 0);
}

#[tokio::test]
async fn what_a_crash_leaves_behind_is_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("store.creating")).unwrap();
    fs::write(dir.path().join("store.creating/conf"), b"torn").unwrap();
    let store = open(dir.path());
    store.replace_catalog(&title("t"), 0, Arc::new(catalog(&[("n", 1)]))).await.unwrap();
    store.apply(Update::of("t", "p").delta("n", 1, 1).build()).await.unwrap();
    // A replacement that was cut off before its title row.
    let chunk = Key::CatalogChunk { title: title("t"), revision: 2, chunk: 0 }.encode();
    let row = crate::proto::rows::CatalogChunkRow { piece: vec![1, 2, 3] };
    store.view.tree().insert(&chunk, frame::encode(&chunk, &row)).unwrap();
    store.view.tree().flush().unwrap();
    drop(store);

    fs::write(dir.path().join("store/snap.00000000DEADBEEF.generating"), b"half").unwrap();
    let store = open(dir.path());
    assert_eq!(store.view.tree().get(&chunk).unwrap(), None);
    assert_eq!(store.catalogs().await.unwrap()[0].revision, 1);
    assert_eq!(progress(&store, "p").await, Some(1));
    assert!(!dir.path().join("store.creating").exists());
}

#[tokio::test]
async fn a_snapshot_that_sled_cannot_read_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..50 {
        store.apply(Update::of("t", &format!("p{n}")).delta("n", 1, 1).build()).await.unwrap();
    }
    drop(store);
    drop(open(dir.path()));
    let files = || fs::read_dir(dir.path().join("store")).unwrap().map(|it| it.unwrap().path());
    let is_snapshot = |path: &std::path::PathBuf| {
        path.file_name().unwrap().to_string_lossy().starts_with("snap.")
    };
    let snapshots: Vec<_> = files().filter(is_snapshot).collect();
    assert!(!snapshots.is_empty(), "sled has written a snapshot");
    for path in &snapshots {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(path, bytes).unwrap();
    }
    let store = open(dir.path());
    assert_eq!(feed_len(&store).await, 50);
    assert!(dir.path().join("store/quarantine").exists());
}

#[test]
fn blobs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("store/blobs/1"), b"x").unwrap();
    let refused = SledStore::open(dir.path(), CACHE, TestClock::at(0));
    assert!(matches!(refused, Err(OpenError::Unreadable { .. })));
}

/// Makes a sound store, lets `spoil` at its tree, and expects the problem to be named.
async fn check_damage(spoil: impl FnOnce(&sled::Tree), problem: &str) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..3 {
        store.apply(Update::of("t", &format!("p{n}")).delta("n", 1, 1).build()).await.unwrap();
    }
    spoil(store.view.tree());
    store.view.tree().flush().unwrap();
    drop(store);
    match SledStore::open(dir.path(), CACHE, TestClock::at(0)) {
        Err(OpenError::Damaged { problems, .. }) => {
            assert!(problems.iter().any(|it| it.contains(problem)), "{problem}: {problems:?}");
        }
        other => panic!("{problem}: {:?}", other.err()),
    }
}

#[tokio::test]
async fn damage_is_named_and_not_served() {
    let record = || keys::record(&player("t", "p1"), &crate::testing::node_id("n"));
    let completion = |sequence| keys::completion(&title("t"), sequence);
    check_damage(|tree| drop(tree.remove(record())), "does not agree").await;
    check_damage(|tree| drop(tree.remove(completion(3))), "which the feed lacks").await;
    check_damage(|tree| drop(tree.remove(completion(2))), "follows a hole").await;
    check_damage(|tree| drop(tree.remove(Key::Store.encode())), "no row of its own").await;
    check_damage(|tree| drop(tree.insert([9, 9], b"x".to_vec())), "does not know").await;
    let exceed = |tree: &sled::Tree| {
        let key = completion(1);
        let mut row: CompletionRow =
            frame::decode(&key, &tree.get(&key).unwrap().unwrap()).unwrap();
        row.progress = PROGRESS_MAX + 1;
        let value = frame::encode(&key, &row);
        tree.insert(key, value).unwrap();
    };
    check_damage(exceed, "no possible event").await;
    let flip = |tree: &sled::Tree| {
        let mut value = tree.get(record()).unwrap().unwrap().to_vec();
        *value.last_mut().unwrap() ^= 1;
        tree.insert(record(), value).unwrap();
    };
    check_damage(flip, "checksum").await;
    let swap = |tree: &sled::Tree| {
        let value = tree.get(completion(1)).unwrap().unwrap();
        tree.insert(completion(2), value).unwrap();
    };
    check_damage(swap, "checksum").await;
}

#[tokio::test]
async fn an_update_nobody_waits_for_is_stored_wholly_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..200 {
        let update = Update::of("t", "p").delta("a", 1_000_000, 1).delta("b", 1_000_000, 1);
        let applying = store.apply(update.build());
        let _ = tokio::time::timeout(Duration::from_micros(n * 5), applying).await;
    }
    // Behind everything that was handed over.
    let last = store.apply(Update::of("t", "p").delta("c", 10, 1).build()).await.unwrap();
    assert_eq!(last.outcomes[0].0.verdict, Verdict::Stored);
    let records = store.records(&player("t", "p")).await.unwrap();
    assert_eq!(records[0].1, records[1].1, "both nodes of a batch, or none");
}

/// sled's threads hold its log for a moment after it was dropped: opening the folder again must
/// wait for them, not fail.
#[tokio::test]
async fn opening_waits_for_a_store_that_is_just_closing() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let log = File::open(dir.path().join("store/db")).unwrap();
    log.lock().unwrap();
    let lock = File::open(dir.path().join("lock")).unwrap();
    let closing = thread::spawn(move || {
        // The one who opens has the folder; then it comes to the log.
        while lock.try_lock().is_ok() {
            lock.unlock().unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(300));
        drop(log);
    });
    let store = open(dir.path());
    closing.join().unwrap();
    assert_eq!(progress(&store, "p").await, None);
}

/// The flusher syncs the log each time that it comes by.
#[cfg(target_os = "linux")]
#[test]
fn a_flusher_that_does_not_come_back_is_noticed() {
    use super::watchdog::FAILURE_POLL;

    let log = tempfile::tempfile().unwrap();
    let syncs = Arc::new(LogSyncs::of(&log).unwrap());
    let mut failure = sled_failure(::sled::Config::new(), syncs, 3 * FAILURE_POLL);
    for _ in 0..3 {
        assert_eq!(failure(), None);
    }
    log.sync_all().unwrap();
    for _ in 0..4 {
        assert_eq!(failure(), None);
    }
    assert_eq!(failure().as_deref(), Some("sled's flusher has ended"));
}

/// Runs itself once more, as a process whose flusher panics.
#[cfg(unix)]
#[test]
fn a_flusher_that_panics_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;

    const CHILD: &str = "ACCOLADE_TEST_FLUSHER_PANICS";
    if std::env::var_os(CHILD).is_some() {
        abort_where_the_flusher_panics();
        let others = thread::Builder::new().name("other".to_owned()).spawn(|| panic!("of another"));
        others.unwrap().join().unwrap_err();
        let flusher = thread::Builder::new().name("log flusher".to_owned());
        let _ = flusher.spawn(|| panic!("of the flusher")).unwrap().join();
        std::process::exit(0);
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let name = &format!("{module}::a_flusher_that_panics_ends_the_process");
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let status = again.args([name, "--exact"]).env(CHILD, "1").output().unwrap().status;
    assert_eq!(status.signal(), Some(6), "{status:?}: SIGABRT");
}
