//! Bits that flip and files that get shorter while the store is closed: refused, or exactly right.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::*;
use crate::testing::{TestClock, Update, memory_dir, player, title};

const CACHE: u64 = 1 << 20;
const PLAYERS: usize = 60;

/// `make soak` sets more.
fn cases() -> u64 {
    std::env::var("ACCOLADE_CORRUPTIONS").map_or(1200, |text| text.parse().expect("a number"))
}

/// Everything that a store shows.
type Shown = (BTreeMap<String, Vec<(NodeId, State)>>, Vec<Entry>, Vec<String>);

async fn shown(store: &SledStore) -> Result<Shown, String> {
    let mut records = BTreeMap::new();
    for n in 0..PLAYERS {
        let id = format!("p{n}");
        let of = store.records(&player("t", &id)).await.map_err(|error| error.to_string())?;
        records.insert(id, of);
    }
    let bounds = store.feed_bounds(&title("t")).await.map_err(|error| error.to_string())?;
    let feed = store.entries(&title("t"), &bounds.oldest, 10_000).await;
    let catalogs = store.catalogs().await.map_err(|error| error.to_string())?;
    let catalogs = catalogs.iter().map(|stored| format!("{stored:?}")).collect();
    Ok((records, feed.map_err(|error| error.to_string())?, catalogs))
}

/// A store over several generations, with a snapshot and a log behind it.
async fn fill(dir: &Path) -> Shown {
    for generation in 0..3 {
        let store = SledStore::open(dir, CACHE, TestClock::at(1000)).unwrap();
        let catalog = Arc::new(crate::testing::catalog(&[("n", 10)]));
        store.replace_catalog(&title("t"), generation, catalog).await.unwrap();
        for n in 0..4 * PLAYERS {
            let update = Update::of("t", &format!("p{}", n % PLAYERS));
            store.apply(update.delta("n", 10, 1).build()).await.unwrap();
        }
        store
            .trim_feed(&title("t"), Retention { count: Some(50), stored_since: None })
            .await
            .unwrap();
    }
    let store = SledStore::open(dir, CACHE, TestClock::at(1000)).unwrap();
    shown(&store).await.unwrap()
}

/// What became of a store that was damaged: `None` where it was refused.
fn open_damaged(dir: &Path) -> Option<Result<Shown, String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let opened = SledStore::open(dir, CACHE, TestClock::at(1000)).ok()?;
    Some(runtime.block_on(shown(&opened)))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
            continue;
        }
        // The ballast holds nothing.
        if from.file_name().is_some_and(|name| name == "ballast") {
            continue;
        }
        let bytes = fs::read(&from).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        fs::write(&to, &bytes[..used]).unwrap();
        File::options().write(true).open(&to).unwrap().set_len(bytes.len() as u64).unwrap();
    }
}

/// Damages the copy, and compares what is left of it with what was there.
fn judge(right: &Shown, original: &Path, what: &str, damage: impl FnOnce(&Path)) -> bool {
    let scratch = memory_dir();
    let dir = scratch.path().join("data");
    copy(original, &dir);
    damage(&dir);
    // sled may panic later than at open; then nothing wrong was said.
    match catch_unwind(AssertUnwindSafe(|| open_damaged(&dir))) {
        Ok(Some(Ok(found))) => {
            let wrong = right.0.iter().find(|(id, records)| found.0.get(*id) != Some(records));
            assert_eq!(wrong, None, "{what}: it opens, and this is missing or wrong");
            assert!(found.1 == right.1, "{what}: it opens, and the feed is wrong");
            assert!(found.2 == right.2, "{what}: it opens, and catalogues are wrong");
            true
        }
        Ok(None | Some(Err(_))) | Err(_) => false,
    }
}

#[test]
fn damage_to_any_file_is_refused_or_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("data");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let right = runtime.block_on(fill(&original));
    assert!(judge(&right, &original, "no damage", |_| {}));

    let store = original.join("store");
    let mut files = vec![original.join("mark"), store.join("db"), store.join("conf")];
    files.extend(fs::read_dir(&store).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        path.file_name().unwrap().to_string_lossy().starts_with("snap.").then_some(path)
    }));
    let seed = fastrand::u64(..);
    let is_harmless = |case: u64| {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(case));
        // Mostly the log, where nearly everything is.
        let file =
            if case.is_multiple_of(5) { &files[random.usize(..files.len())] } else { &files[1] };
        let bytes = fs::read(file).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        let at = random.usize(..used);
        let name = file.strip_prefix(&original).unwrap().to_owned();
        let is_cut = case % 6 == 5;
        let bit = 1_u8 << random.u8(..8);
        let what =
            format!("seed {seed}, case {case}: {} at {at} of {used}, cut {is_cut}", name.display());
        judge(&right, &original, &what, |dir| {
            let path = dir.join(&name);
            let mut bytes = bytes.clone();
            match is_cut {
                true => bytes.truncate(at),
                false => bytes[at] ^= bit,
            }
            fs::write(path, bytes).unwrap();
        })
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let work =
        |worker: u64| (worker..cases()).step_by(workers).filter(|case| is_harmless(*case)).count();
    let work = &work;
    let harmless: usize = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..workers as u64).map(|worker| scope.spawn(move || work(worker))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let refused = cases() - harmless as u64;
    // Shown also where the test passes, which `println!` is not.
    let line = format!("{refused} times refused, {harmless} times nothing was missing");
    let _ = writeln!(io::stderr(), "\n{line}");
    assert!(refused > cases() / 3, "{refused} refused, {harmless} harmless");
}

/// sled may go back to the moment of creation, before anything was counted.
#[test]
fn a_log_that_is_gone_from_its_first_entries_on_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("data");
    let right = tokio::runtime::Runtime::new().unwrap().block_on(fill(&original));
    let mut refused = 0;
    for at in 140..180 {
        let unharmed = judge(&right, &original, &format!("at {at}"), |dir| {
            let path = dir.join("store/db");
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        });
        refused += usize::from(!unharmed);
    }
    assert!(refused > 0, "nothing depends on these bytes");
}
