//! Power cuts: what a disk may be left with at any moment holds everything that anybody was told
//! until then.

use std::{collections::BTreeMap, fs, path::Path, process::Command, sync::Arc, time::Duration};

use accolade::{
    clock::SystemClock,
    domain::{PlayerId, PlayerKey, Title},
    proto::v1::{
        BatchSetAchievementStorageRequest, Definition, NodeUpdate, WatchCompletionsRequest,
        node_update, set_achievement_storage_request::Change, watch_completions_response::Event,
    },
    store::{Store, sled::SledStore},
};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::{
    disk::{Cut, Disk, Faults, State},
    support::{BINARY, Server, StorageClient, delta, get},
};

const TITLE: &str = "t";
const WRITERS: usize = 8;

/// Long enough that most moments are in the middle of a sync.
const SYNC_TAKES: Duration = Duration::from_millis(2);

/// Each snapshot is cut in each of these ways.
const CUTS: [Cut; 3] = [Cut::Drop, Cut::Subset, Cut::Torn];

/// `make soak` sets more.
fn snapshots() -> usize {
    std::env::var("ACCOLADE_POWER_CUTS").map_or(120, |text| text.parse().expect("a number"))
}

/// What somebody was told, in whatever way.
#[derive(Clone, Default)]
struct Told {
    /// The newest version of each player's record of the node "n"; its progress is as high.
    versions: BTreeMap<String, i64>,
    /// The same of the nodes "a" and "b", which are only set together.
    pairs: BTreeMap<String, i64>,
    /// Who has completed "done", in the order of the feed.
    feed: Vec<String>,
    /// The newest revision of the catalogue.
    revision: i64,
}

type Ledger = Arc<Mutex<Told>>;

impl Told {
    fn version(&mut self, player: &str, version: i64) {
        let told = self.versions.entry(player.to_owned()).or_default();
        *told = version.max(*told);
    }
}

/// As [`examine`], of what a disk would be left with.
async fn examine_state(
    state: &State,
    scratch: &tempfile::TempDir,
    told: &Told,
) -> Result<(), String> {
    let folder = scratch.path().join("state");
    state.write_to(&folder).unwrap();
    examine(&folder.join("data"), told).await?;
    fs::remove_dir_all(&folder).unwrap();
    Ok(())
}

/// Opens what a cut has left, and finds everything in it that was told.
async fn examine(folder: &Path, told: &Told) -> Result<(), String> {
    let (folder, told) = (folder.to_owned(), told.clone());
    let store = tokio::task::spawn_blocking(move || {
        SledStore::open(&folder, 16 << 20, Arc::new(SystemClock)).map_err(|error| error.to_string())
    });
    let store = store.await.unwrap()?;
    let title = Title::parse(TITLE).unwrap();
    let key =
        |player: &str| PlayerKey { title: title.clone(), player: PlayerId::parse(player).unwrap() };
    let versions = async |player: &str| {
        let records = store.records(&key(player)).await.map_err(|error| error.to_string())?;
        let records = records.into_iter().map(|(node, state)| {
            let version = i64::try_from(state.version.get()).unwrap();
            (node.as_str().to_owned(), (version, i64::try_from(state.progress.get()).unwrap()))
        });
        Ok::<BTreeMap<_, _>, String>(records.collect())
    };
    for (player, told) in &told.versions {
        let stored = versions(player).await?;
        let (version, progress) = stored.get("n").copied().unwrap_or_default();
        if version < *told || progress != version {
            return Err(format!("{player}: told {told}, stored {version}, progress {progress}"));
        }
    }
    for (player, told) in &told.pairs {
        let stored = versions(player).await?;
        let [a, b] = ["a", "b"].map(|node| stored.get(node).copied().unwrap_or_default().0);
        if a < *told || a != b {
            return Err(format!("{player}: told {told} of both, stored {a} and {b}"));
        }
    }
    let mut cursor = store.feed_bounds(&title).await.map_err(|error| error.to_string())?.oldest;
    let mut feed = Vec::new();
    loop {
        let page = store.completions(&title, &cursor, 1000).await;
        let page = page.map_err(|error| error.to_string())?;
        let Some(last) = page.last() else { break };
        cursor = last.cursor.clone();
        feed.extend(page.iter().map(|it| it.key.player.as_str().to_owned()));
    }
    // Retention may have taken the oldest away; from the first that is there, nothing is missing.
    let retained = feed.first().and_then(|first| told.feed.iter().position(|it| it == first));
    let expected = retained.map_or(&[][..], |place| &told.feed[place..]);
    if !feed.starts_with(expected) || (retained.is_none() && !told.feed.is_empty()) {
        return Err(format!("the feed was told as {:?}, and is {feed:?}", told.feed));
    }
    let catalogs = store.catalogs().await.map_err(|error| error.to_string())?;
    let revision = catalogs.iter().find(|it| it.title == title).map_or(0, |it| it.revision);
    if i64::try_from(revision).unwrap() < told.revision {
        return Err(format!("catalogue: told revision {}, stored {revision}", told.revision));
    }
    tokio::task::spawn_blocking(move || drop(store)).await.unwrap();
    Ok(())
}

/// Sets, gets, conflicts, batches and completions of one caller, until the server is gone.
async fn write(server_url: String, ledger: Ledger, generation: usize, writer: usize) {
    let Ok(mut client) = StorageClient::connect(server_url).await else { return };
    for n in 0.. {
        let player = format!("w{writer}-{}", n % 5);
        let mut request = delta(TITLE, &player, "n", 1);
        match n % 10 {
            3 => {
                // A conflict tells what is stored.
                request.expected_version = Some(1 << 40);
                let Ok(answer) = client.set_achievement_storage(request).await else { return };
                let entity = answer.into_inner().entity.unwrap();
                ledger.lock().version(&player, entity.version);
            }
            5 => {
                let update = |node: &str| NodeUpdate {
                    node_id: node.to_owned(),
                    change: Some(node_update::Change::Delta(1)),
                    ..NodeUpdate::default()
                };
                let request = BatchSetAchievementStorageRequest {
                    title: TITLE.to_owned(),
                    player_id: player.clone(),
                    updates: ["a", "b"].map(update).to_vec(),
                    ..BatchSetAchievementStorageRequest::default()
                };
                let answer = client.batch_set_achievement_storage(request).await;
                let Ok(answer) = answer else { return };
                let version = answer.into_inner().results[0].updated.as_ref().unwrap().version;
                let mut told = ledger.lock();
                let pair = told.pairs.entry(player).or_default();
                *pair = version.max(*pair);
            }
            7 => {
                let player = format!("w{writer}-{generation}-{n}");
                let mut finish = delta(TITLE, &player, "done", 1);
                finish.change = Some(Change::Finish(true));
                // Large values among small ones.
                finish.extra = Some("x".repeat(fastrand::usize(..16_000)));
                finish.expected_version = Some(0);
                if client.set_achievement_storage(finish).await.is_err() {
                    return;
                }
            }
            9 => {
                for record in get(&mut client, TITLE, &player).await {
                    if record.achievement_id == "n" {
                        ledger.lock().version(&player, record.version);
                    }
                }
            }
            _ => {
                let Ok(answer) = client.set_achievement_storage(request).await else { return };
                let updated = answer.into_inner().updated.unwrap();
                ledger.lock().version(&player, updated.version);
            }
        }
    }
}

/// Hears the feed from where the ledger is.
async fn subscribe(server: &Server, ledger: Ledger) -> tokio::task::JoinHandle<()> {
    let after = Some(String::new());
    let request = WatchCompletionsRequest { title: TITLE.to_owned(), after, ..Default::default() };
    let watch = server.completions().await.watch_completions(request).await.unwrap();
    let mut watch = watch.into_inner();
    // What is retained is told once more: what was heard before must come again, in its order.
    let mut heard = None;
    tokio::spawn(async move {
        while let Ok(Some(message)) = watch.message().await {
            if let Some(Event::Completion(completion)) = message.event {
                let (mut told, player) = (ledger.lock(), completion.player_id);
                let known = told.feed.iter().position(|it| *it == player);
                let place = heard.or(known).unwrap_or(told.feed.len());
                match told.feed.get(place) {
                    Some(known) => assert_eq!(*known, player, "another order"),
                    None => told.feed.push(player),
                }
                heard = Some(place + 1);
            }
        }
    })
}

/// Applies one catalogue after the other, all with the same nodes and of more than one chunk.
async fn apply_catalogs(server_url: String, ledger: Ledger) {
    use accolade::proto::v1::{ApplyCatalogRequest, catalog_service_client::CatalogServiceClient};
    let Ok(mut client) = CatalogServiceClient::connect(server_url).await else { return };
    for n in 0.. {
        let definitions = definitions(n);
        let title = TITLE.to_owned();
        let request = ApplyCatalogRequest { title, definitions, ..Default::default() };
        let Ok(answer) = client.apply_catalog(request).await else { return };
        ledger.lock().revision = answer.into_inner().revision;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn definitions(n: usize) -> Vec<Definition> {
    let node = |(id, max_progress): (&str, i64)| Definition {
        node_id: id.to_owned(),
        max_progress,
        description: format!("{n} {}", "x".repeat(2000)),
        ..Definition::default()
    };
    [("n", 1 << 50), ("a", 1 << 50), ("b", 1 << 50), ("done", 1)].map(node).to_vec()
}

/// Runs the service on the disk, looks at what power cuts would leave, goes on with one of those,
/// and so on. Tells the first thing that is wrong.
async fn cut_power(
    disk: &Disk,
    args: &[&str],
    faults: Faults,
    snapshots: usize,
) -> Result<usize, String> {
    const OF_A_GENERATION: usize = 10;
    let mut random = fastrand::Rng::new();
    let scratch = tempfile::tempdir().unwrap();
    let ledger = Ledger::default();
    let mut states = 0;
    for generation in 0..snapshots.div_ceil(OF_A_GENERATION) {
        let data = disk.path().join("data");
        let log = scratch.path().join(format!("{generation}.log"));
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen=127.0.0.1:0", "--data"]).arg(&data).args(args);
        let server = Server::run(command, &log)?;
        if generation == 0 {
            server
                .apply(TITLE, &[("n", 1 << 50), ("a", 1 << 50), ("b", 1 << 50), ("done", 1)])
                .await;
        }
        disk.set_faults(faults);
        let mut work = JoinSet::new();
        for writer in 0..WRITERS {
            work.spawn(write(server.url(), ledger.clone(), generation, writer));
        }
        work.spawn(apply_catalogs(server.url(), ledger.clone()));
        let subscriber = subscribe(&server, ledger.clone()).await;
        for _ in 0..OF_A_GENERATION {
            tokio::time::sleep(Duration::from_micros(random.u64(1000..30_000))).await;
            // What is told after this line may be on the disk or not.
            let told = ledger.lock().clone();
            let snapshot = disk.snapshot();
            for cut in CUTS {
                let state = snapshot.cut(cut, &mut random);
                let found = examine_state(&state, &scratch, &told).await;
                found.map_err(|problem| format!("state {states}, {cut:?}: {problem}"))?;
                states += 1;
            }
        }
        server.kill();
        while work.join_next().await.is_some() {}
        subscriber.await.map_err(|error| error.to_string())?;
        // What came after the last snapshot is lost with it, to those as well who were told of it.
        let told = ledger.lock().clone();
        let snapshot = disk.snapshot();
        let state = snapshot.cut(CUTS[generation % 3], &mut random);
        let found = examine_state(&state, &scratch, &told).await;
        found.map_err(|problem| format!("after the kill: {problem}"))?;
        states += 1;
        disk.load(&state);
    }
    Ok(states)
}

fn mount(folder: &tempfile::TempDir) -> Option<Disk> {
    match Disk::mount(folder.path()) {
        Ok(disk) => Some(disk),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

const HONEST: Faults = Faults {
    ignore_syncs: false,
    sync_takes: SYNC_TAKES,
    forget_failed: false,
    fail: None,
    short_write: None,
    capacity: None,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_takes_nothing_that_anybody_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = mount(&folder) else { return };
    let states = cut_power(&disk, &[], HONEST, snapshots()).await.unwrap();
    println!("{} power cuts, {states} states of the disk: everything told was there", snapshots());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_retention_works_leaves_no_hole() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = mount(&folder) else { return };
    let args = ["--retention-count=300"];
    cut_power(&disk, &args, HONEST, snapshots() / 4).await.unwrap();
}

/// The test would notice: on a disk that answers syncs and does not do them, something is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_sync_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = mount(&folder) else { return };
    let lying = Faults { ignore_syncs: true, ..HONEST };
    let lost = cut_power(&disk, &[], lying, 20).await.expect_err("syncs are not done");
    println!("found out: {lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_during_the_first_start_leaves_a_folder_that_opens() {
    let mut random = fastrand::Rng::new();
    for round in 0..snapshots().div_ceil(4) {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let Some(disk) = mount(&folder) else { return };
        disk.set_faults(HONEST);
        let (data, log) = (folder.path().join("data"), scratch.path().join("log"));
        let starting = std::thread::spawn(move || {
            let mut command = Command::new(BINARY);
            command.args(["serve", "--listen=127.0.0.1:0", "--data"]).arg(&data);
            Server::run(command, &log)
        });
        let mut states = Vec::new();
        while !starting.is_finished() {
            states.push(disk.snapshot().cut(CUTS[states.len() % 3], &mut random));
            tokio::time::sleep(Duration::from_millis(random.u64(1..20))).await;
        }
        drop(starting.join().unwrap().unwrap());
        for state in states {
            let found = examine_state(&state, &scratch, &Told::default()).await;
            found.unwrap_or_else(|problem| panic!("round {round}: {problem}"));
        }
    }
}
