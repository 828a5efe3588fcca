//! A busy service, and what everybody was told by it: whatever happens to the service then, all of
//! that must still be so.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use accolade::{
    clock::SystemClock,
    domain::{PlayerId, PlayerKey, Title},
    proto::v1::{
        ApplyCatalogRequest, BatchSetAchievementStorageRequest, Definition, ErasePlayerRequest,
        GetAchievementStorageRequest, NodeUpdate, ResetAchievementRequest, WatchCompletionsRequest,
        catalog_service_client::CatalogServiceClient,
        completion_service_client::CompletionServiceClient, node_update,
        set_achievement_storage_request::Change, watch_completions_response::Event,
    },
    store::{FeedSource, Store, sled::SledStore},
};
use parking_lot::Mutex;
use tonic::Code;

use crate::support::{AdminClient, LONG_PATIENCE, StorageClient, delta, reason, say};

pub const TITLE: &str = "t";
pub const WRITERS: usize = 8;

/// The nodes of the title, with their targets.
pub const NODES: [(&str, i64); 5] =
    [("n", 1 << 50), ("a", 1 << 50), ("b", 1 << 50), ("done", 1), ("back", 1)];

/// What somebody was told, in whatever way.
#[derive(Clone, Default)]
pub struct Told {
    /// The newest version of each player's record of the node "n"; its progress is as high.
    versions: BTreeMap<String, i64>,
    /// The same of the nodes "a" and "b", which are only set together.
    pairs: BTreeMap<String, i64>,
    /// The newest version of each player's record of the node "back", which is completed and reset
    /// in turn; none of those who are erased.
    back: BTreeMap<String, i64>,
    /// Who has completed "done", in the order of the feed.
    feed: Vec<String>,
    /// Whose set that completes "done" was answered.
    done: BTreeSet<String>,
    /// What a subscriber heard who always comes back with its last cursor.
    resumed: Vec<String>,
    /// That cursor; empty before the first.
    cursor: String,
    /// The newest revision of the catalogue.
    revision: i64,
    /// Whether retention may take what nobody has heard of.
    pub is_trimmed: bool,
}

/// A disk in memory, or a line that says why there is none.
#[cfg(target_os = "linux")]
pub fn mount(folder: &tempfile::TempDir) -> Option<crate::disk::Disk> {
    let mounted = crate::disk::Disk::mount(folder.path());
    mounted.inspect_err(|reason| say(&format!("SKIPPED, and not tested: {reason}"))).ok()
}

pub type Ledger = Arc<Mutex<Told>>;

impl Told {
    fn version(&mut self, player: &str, version: i64) {
        let told = self.versions.entry(player.to_owned()).or_default();
        *told = version.max(*told);
    }
}

/// Opens a data folder, and finds everything in it that was told.
pub async fn examine(folder: &Path, told: &Told) -> Result<(), String> {
    let (folder, told) = (folder.to_owned(), told.clone());
    let log = folder.join("store/db");
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
    let mut back: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut is_empty = true;
    loop {
        let page = store.entries(&title, &cursor, 1000).await;
        let page = page.map_err(|error| error.to_string())?;
        let Some(last) = page.last() else { break };
        cursor = last.cursor.clone();
        is_empty = false;
        for (key, node, version) in page.iter().filter_map(|it| it.event.of()) {
            let player = key.player.as_str().to_owned();
            match node.as_str() {
                "back" => back.entry(player).or_default().push(version.get().cast_signed()),
                _ => feed.push(player),
            }
        }
    }
    for (player, told) in &told.back {
        let stored = versions(player).await?.get("back").copied().unwrap_or_default().0;
        if stored < *told {
            return Err(format!("{player}: told {told} of what is reset, stored {stored}"));
        }
        back.entry(player.clone()).or_default();
    }
    // Each version of such a record is an event; one who was erased has none.
    for (player, found) in &back {
        let stored = versions(player).await?.get("back").copied().unwrap_or_default().0;
        let all: Vec<_> = (1..=stored).collect();
        let is_whole = if told.is_trimmed { all.ends_with(found) } else { all == *found };
        if !is_whole {
            return Err(format!("{player}: at version {stored}, with the events {found:?}"));
        }
    }
    // Retention may have taken the oldest away; from the first that is there, nothing is missing.
    let retained = feed.first().and_then(|first| told.feed.iter().position(|it| it == first));
    let expected = retained.map_or(&[][..], |place| &told.feed[place..]);
    let may_be_gone = told.feed.is_empty() || (told.is_trimmed && !is_empty);
    if !feed.starts_with(expected) || (retained.is_none() && !may_be_gone) {
        return Err(format!("the feed was told as {:?}, and is {feed:?}", told.feed));
    }
    if !told.is_trimmed && !feed.starts_with(&told.resumed) {
        return Err(format!("who resumes heard {:?}, and the feed is {feed:?}", told.resumed));
    }
    let completed: HashSet<_> = feed.iter().collect();
    for player in &told.done {
        let stored = versions(player).await?;
        if !stored.contains_key("done") {
            return Err(format!("{player}: told that it has completed, and no record is stored"));
        }
        if !told.is_trimmed && !completed.contains(player) {
            return Err(format!("{player}: told that it has completed, and the feed lacks it"));
        }
    }
    let catalogs = store.catalogs().await.map_err(|error| error.to_string())?;
    let catalog = catalogs.iter().find(|it| it.title == title);
    let revision = catalog.map_or(0, |it| it.revision);
    let nodes = catalog.iter().flat_map(|it| it.catalog.nodes());
    let texts = nodes.map(|node| node.definition().draft().description.split(' ').next().unwrap());
    let texts: BTreeSet<_> = texts.collect();
    if texts.len() > 1 {
        return Err(format!("the catalogue is mixed from {texts:?}"));
    }
    if i64::try_from(revision).unwrap() < told.revision {
        return Err(format!("catalogue: told revision {}, stored {revision}", told.revision));
    }
    tokio::task::spawn_blocking(move || close(store, &log)).await.unwrap();
    Ok(())
}

/// sled's threads let go of its log a moment later, and so does a process that another test is just
/// starting.
fn close(store: SledStore, log: &Path) {
    drop(store);
    let (log, start) = (File::open(log).unwrap(), Instant::now());
    while log.try_lock().is_err() {
        assert!(start.elapsed() < LONG_PATIENCE, "the store is not closed");
        std::thread::sleep(Duration::from_millis(1));
    }
    log.unlock().unwrap();
}

/// Sets, gets, conflicts, batches, completions, resets and erasures of one caller, until the server
/// is gone.
pub async fn write(server_url: String, ledger: Ledger, generation: usize, writer: usize) {
    let Ok(mut client) = StorageClient::connect(server_url.clone()).await else { return };
    let Ok(mut operator) = AdminClient::connect(server_url).await else { return };
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
                let Ok(answer) = client.set_achievement_storage(finish).await else { return };
                assert!(answer.into_inner().newly_completed);
                ledger.lock().done.insert(player);
            }
            1 | 2 => {
                let player = format!("r{writer}");
                let version = match n % 10 {
                    1 => complete_again(&mut client, &player).await,
                    _ => take_back(&mut operator, &player).await,
                };
                let Some(version) = version else { return };
                ledger.lock().back.insert(player, version);
            }
            8 if n % 200 == 8 => {
                let player_id = format!("r{writer}");
                // From here on nobody can tell, until there is an answer.
                ledger.lock().back.remove(&player_id);
                let request = ErasePlayerRequest { title: TITLE.to_owned(), player_id };
                if operator.erase_player(request).await.is_err() {
                    return;
                }
            }
            9 => {
                let request = GetAchievementStorageRequest {
                    title: TITLE.to_owned(),
                    player_id: player.clone(),
                    achievement_ids: vec!["n".to_owned()],
                };
                let Ok(answer) = client.get_achievement_storage(request).await else { return };
                for record in answer.into_inner().entity {
                    ledger.lock().version(&player, record.version);
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

/// Completes what may have been reset; the record's version, where there is an answer.
async fn complete_again(client: &mut StorageClient, player: &str) -> Option<i64> {
    let set = delta(TITLE, player, "back", 1);
    let answer = client.set_achievement_storage(set).await.ok()?.into_inner();
    Some(answer.updated.unwrap().version)
}

/// Resets the same record.
async fn take_back(operator: &mut AdminClient, player: &str) -> Option<i64> {
    let request = ResetAchievementRequest {
        title: TITLE.to_owned(),
        player_id: player.to_owned(),
        node_id: "back".to_owned(),
        reason: "begin anew".to_owned(),
        ..ResetAchievementRequest::default()
    };
    match operator.reset_achievement(request).await {
        Ok(answer) => Some(answer.into_inner().updated.unwrap().version),
        // It has as many events as a record may have.
        Err(status) if status.code() == Code::FailedPrecondition => Some(0),
        Err(_) => None,
    }
}

/// Hears the feed from its oldest end on, until the server is gone.
pub async fn subscribe(url: String, ledger: Ledger) {
    let Ok(mut client) = CompletionServiceClient::connect(url).await else { return };
    let after = Some(String::new());
    let request = WatchCompletionsRequest { title: TITLE.to_owned(), after, ..Default::default() };
    let Ok(watch) = client.watch_completions(request).await else { return };
    let mut watch = watch.into_inner();
    // What is retained is told once more: what was heard before must come again, in its order.
    let mut heard = None;
    while let Ok(Some(message)) = watch.message().await {
        if let Some(Event::Completion(completion)) = message.event
            && completion.achievement_id == "done"
        {
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
}

/// Hears the feed from where it left off, until the server is gone. What it has heard is durable,
/// so there must be a place for its cursor after anything.
pub async fn resume(url: String, ledger: Ledger) {
    let Ok(mut client) = CompletionServiceClient::connect(url).await else { return };
    let after = Some(ledger.lock().cursor.clone());
    let request = WatchCompletionsRequest { title: TITLE.to_owned(), after, ..Default::default() };
    let Ok(watch) = client.watch_completions(request).await else { return };
    let mut watch = watch.into_inner();
    loop {
        let message = match watch.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(status) => {
                // Behind the feed's end there is no place for a cursor that was given out, and
                // before its beginning only where retention has come by.
                let has_place = status.code() != Code::OutOfRange
                    || (ledger.lock().is_trimmed && reason(&status) == "CURSOR_EXPIRED");
                assert!(has_place, "a cursor that was given out has no place: {status:?}");
                return;
            }
        };
        let mut told = ledger.lock();
        match message.event {
            Some(Event::Completion(completion)) => {
                told.cursor = completion.cursor;
                if completion.achievement_id == "done" {
                    told.resumed.push(completion.player_id);
                }
            }
            Some(Event::Reset(reset)) => told.cursor = reset.cursor,
            _ => {}
        }
    }
}

/// Applies one catalogue after the other, all with the same nodes and of more than one chunk.
pub async fn apply_catalogs(server_url: String, ledger: Ledger, pause: Duration) {
    let Ok(mut client) = CatalogServiceClient::connect(server_url).await else { return };
    for n in 0.. {
        let definitions = definitions(n);
        let title = TITLE.to_owned();
        let request = ApplyCatalogRequest { title, definitions, ..Default::default() };
        let Ok(answer) = client.apply_catalog(request).await else { return };
        ledger.lock().revision = answer.into_inner().revision;
        tokio::time::sleep(pause).await;
    }
}

/// More than one step of the store writes: 300 texts of 2 KB beside the nodes that are used.
fn definitions(n: usize) -> Vec<Definition> {
    let fillers: Vec<_> = (0..300).map(|filler| format!("filler-{filler}")).collect();
    let fillers = fillers.iter().map(|id| (id.as_str(), 1));
    let node = |(id, max_progress): (&str, i64)| Definition {
        node_id: id.to_owned(),
        max_progress,
        description: format!("{n} {}", "x".repeat(2000)),
        ..Definition::default()
    };
    NODES.into_iter().chain(fillers).map(node).collect()
}
