//! A process that stands still for a while and goes on: what expired meanwhile is counted once, and
//! no subscriber misses anything.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    Completion, ListCompletionsRequest, SetAchievementStorageRequest,
    SetAchievementStorageResponse, WatchCompletionsRequest,
    completion_service_client::CompletionServiceClient, watch_completions_response::Event,
};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tonic::{Code, Request, Streaming};

use crate::support::{PATIENCE, Server, StorageClient, delta, get, say};

const TITLE: &str = "t";
const WRITERS: usize = 8;
const PAUSE: Duration = Duration::from_secs(5);

/// What a caller gives a set. All that is under way when the server stands still expires.
const DEADLINE: Duration = Duration::from_secs(1);

/// Leaves the machine to others between two sets.
const REST: Duration = Duration::from_millis(2);

/// Ids that a record remembers.
const REMEMBERED: usize = 8;

/// `make soak` sets more.
fn pauses() -> usize {
    std::env::var("ACCOLADE_PAUSES").map_or(3, |text| text.parse().expect("a number"))
}

/// Asks under the same id until there is an answer; tells how often that took.
async fn persist(
    client: &mut StorageClient,
    request: &SetAchievementStorageRequest,
) -> (SetAchievementStorageResponse, usize) {
    let start = Instant::now();
    for attempt in 1.. {
        assert!(start.elapsed() < PATIENCE, "no answer to {}", request.request_id);
        let mut asked = Request::new(request.clone());
        asked.set_timeout(DEADLINE);
        match client.set_achievement_storage(asked).await {
            Ok(answer) => return (answer.into_inner(), attempt),
            Err(status) => {
                let expected = [Code::DeadlineExceeded, Code::Cancelled];
                assert!(expected.contains(&status.code()), "{status:?}");
            }
        }
    }
    unreachable!("the loop ends with an answer or a panic")
}

/// What a writer has done.
#[derive(Default)]
struct Written {
    /// Sets of the record that it counts on.
    ids: usize,
    /// Sets that had no answer in time.
    expired: usize,
    /// Of those, the ones that had been stored nevertheless.
    stored: usize,
    /// Whom it has completed, and where that stands in the feed.
    completed: Vec<(String, String)>,
}

/// What everybody shares.
#[derive(Clone)]
struct Room {
    url: String,
    /// The sets of each writer that were answered.
    answered: Arc<[AtomicUsize; WRITERS]>,
    stage: watch::Receiver<Stage>,
}

/// How far the test has come.
#[derive(Clone, Default)]
struct Stage {
    /// How often the server was made to stand still.
    pauses: usize,
    /// No more sets are begun.
    is_over: bool,
    /// The end of the feed, once all sets are answered.
    end: Option<String>,
}

impl Room {
    /// Counts on a record of its own, and completes a new player with every fourth set.
    async fn write(self, writer: usize) -> Written {
        let mut client = StorageClient::connect(self.url).await.unwrap();
        let mut written = Written::default();
        let counter = format!("w{writer}");
        for n in 0.. {
            if self.stage.borrow().is_over {
                break;
            }
            let request_id = format!("w{writer}-{n}");
            let request = match n % 4 {
                3 => {
                    let node = if n % 8 == 3 { "first" } else { "second" };
                    delta(TITLE, &request_id, node, 1)
                }
                _ => delta(TITLE, &counter, "n", 1),
            };
            let request = SetAchievementStorageRequest { request_id, ..request };
            let (answer, attempts) = persist(&mut client, &request).await;
            assert!(answer.changed && (attempts > 1 || !answer.replayed), "{answer:?}");
            written.expired += usize::from(attempts > 1);
            written.stored += usize::from(answer.replayed);
            if n % 4 == 3 {
                assert!(answer.newly_completed, "{answer:?}");
                written.completed.push((request.player_id, answer.cursor));
            } else {
                written.ids += 1;
                let version = answer.updated.unwrap().version;
                assert_eq!(version, i64::try_from(written.ids).unwrap(), "{counter} is counted");
            }
            self.answered[writer].fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(REST).await;
        }
        // All that its record remembers is known as such, and not counted again.
        let own = (0..written.ids + written.completed.len()).filter(|n| n % 4 != 3);
        for n in own.rev().take(REMEMBERED) {
            let request_id = format!("w{writer}-{n}");
            let request =
                SetAchievementStorageRequest { request_id, ..delta(TITLE, &counter, "n", 1) };
            assert!(persist(&mut client, &request).await.0.replayed, "set {n} of {counter}");
        }
        let record = get(&mut client, TITLE, &counter).await.remove(0);
        let ids = i64::try_from(written.ids).unwrap();
        assert_eq!((record.version, record.progress), (ids, ids), "{counter}");
        written
    }

    /// Follows the feed to its end. Where it is `cut`, it hangs up at every pause, and comes back
    /// with its last cursor while the server still stands.
    async fn follow(mut self, achievement_ids: Vec<String>, is_cut: bool) -> Vec<Event> {
        let mut events = Vec::new();
        let mut cursor = String::new();
        let mut stream = self.open(&cursor, &achievement_ids).await;
        let mut cuts = 0;
        loop {
            let stage = self.stage.borrow_and_update().clone();
            if stage.end.is_some_and(|end| end == cursor) {
                return events;
            }
            if is_cut && stage.pauses > cuts {
                cuts = stage.pauses;
                drop(stream);
                stream = self.open(&cursor, &achievement_ids).await;
            }
            let message = tokio::select! {
                message = timeout(PATIENCE, stream.message()) => message,
                _ = self.stage.changed() => continue,
            };
            let message = message.expect("a message comes in time");
            let event = message.expect("a pause ends no stream").unwrap().event.unwrap();
            cursor.clone_from(cursor_of(&event));
            events.push(event);
        }
    }

    async fn open(
        &self,
        after: &str,
        achievement_ids: &[String],
    ) -> Streaming<accolade::proto::v1::WatchCompletionsResponse> {
        let request = WatchCompletionsRequest {
            title: TITLE.to_owned(),
            after: Some(after.to_owned()),
            achievement_ids: achievement_ids.to_vec(),
            heartbeat_interval: Some(prost_types::Duration { seconds: 0, nanos: 100_000_000 }),
            ..WatchCompletionsRequest::default()
        };
        let opened = async {
            let mut client = CompletionServiceClient::connect(self.url.clone()).await.unwrap();
            client.watch_completions(request).await.unwrap().into_inner()
        };
        timeout(PATIENCE, opened).await.expect("the stream opens in time")
    }
}

fn cursor_of(event: &Event) -> &String {
    match event {
        Event::Started(started) => &started.cursor,
        Event::Completion(completion) => &completion.cursor,
        Event::Heartbeat(heartbeat) => &heartbeat.cursor,
        Event::Reset(reset) => &reset.cursor,
    }
}

/// A title's feed after a cursor, page by page.
pub async fn pages(server: &Server, title: &str, after: &str) -> Vec<Completion> {
    let mut client = server.completions().await;
    let mut feed = Vec::new();
    let mut request = ListCompletionsRequest {
        title: title.to_owned(),
        after: after.to_owned(),
        page_size: 1000,
        ..ListCompletionsRequest::default()
    };
    loop {
        let page = client.list_completions(request.clone()).await.unwrap().into_inner();
        feed.extend(page.completions);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return feed;
        }
    }
}

/// Holds what a subscriber heard, from the feed's oldest end on and over all its streams, against
/// the feed: ordered, unique, without a hole, filtered, and no cursor ahead of what was sent.
fn check(heard: &[Event], feed: &[Completion], admits: impl Fn(&Completion) -> bool) {
    let places = feed.iter().zip(1..).map(|(completion, place)| (&completion.cursor, place));
    let mut places: HashMap<_, usize> = places.collect();
    places.insert(cursor_of(&heard[0]), 0);
    let mut at = 0;
    for event in heard {
        let place = places[cursor_of(event)];
        let passed_over = match event {
            Event::Started(_) => {
                assert_eq!(place, at, "a stream begins where the one before it ended");
                &[]
            }
            Event::Completion(completion) => {
                assert!(place > at, "place {place} comes after {at}");
                assert_eq!(*completion, feed[place - 1]);
                assert!(admits(completion), "the filter drops {completion:?}");
                &feed[at..place - 1]
            }
            Event::Reset(reset) => panic!("nobody resets anything: {reset:?}"),
            Event::Heartbeat(_) => {
                assert!(place >= at, "a heartbeat goes back to {place} from {at}");
                &feed[at..place]
            }
        };
        let missed = passed_over.iter().find(|completion| admits(completion));
        assert_eq!(missed, None, "between {at} and {place}");
        at = place;
    }
    assert_eq!(at, feed.len(), "the end of the feed is heard of");
}

/// Makes the server stand still for a while under load, and waits until it has answered every
/// writer again.
async fn pause(server: &Server, answered: &[AtomicUsize], stage: &watch::Sender<Stage>) {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(200..800))).await;
    server.signal("STOP");
    stage.send_modify(|stage| stage.pauses += 1);
    tokio::time::sleep(PAUSE).await;
    let before: Vec<_> = answered.iter().map(|it| it.load(Ordering::Relaxed)).collect();
    server.signal("CONT");
    let start = Instant::now();
    let is_silent = |(now, before): (&AtomicUsize, &usize)| now.load(Ordering::Relaxed) <= *before;
    while answered.iter().zip(&before).any(is_silent) {
        assert!(start.elapsed() < PATIENCE, "it goes on; its log:\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Goal: a server that stands still (a virtual machine that moves, a debugger) and goes on counts
/// every set once, whoever gave up on it meanwhile, and owes no subscriber anything.
///
/// Method: SIGSTOP and SIGCONT under writers with short deadlines, who ask again under the same
/// ids. One subscriber stays, one hangs up at each pause and resumes, one has a filter; what each
/// has heard must be the pages of the feed.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_counts_nothing_twice_and_leaves_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply(TITLE, &[("n", 1 << 50), ("first", 1), ("second", 1)]).await;
    let (stage, seen) = watch::channel(Stage::default());
    let room = Room { url: server.url(), answered: Arc::default(), stage: seen };
    let steady = tokio::spawn(room.clone().follow(vec![], false));
    let resumed = tokio::spawn(room.clone().follow(vec![], true));
    let filtered = tokio::spawn(room.clone().follow(vec!["second".to_owned()], true));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(room.clone().write(writer));
    }
    for _ in 0..pauses() {
        pause(&server, &*room.answered, &stage).await;
    }
    stage.send_modify(|stage| stage.is_over = true);
    let mut all = Written::default();
    while let Some(written) = writers.join_next().await {
        let written = written.unwrap();
        all.ids += written.ids;
        all.expired += written.expired;
        all.stored += written.stored;
        all.completed.extend(written.completed);
    }

    let feed = pages(&server, TITLE, "").await;
    let places = feed.iter().map(|it| (it.player_id.clone(), it.cursor.clone()));
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    all.completed.sort_unstable();
    assert_eq!(places, all.completed, "whoever completed stands in the feed once");
    stage.send_modify(|stage| stage.end = Some(feed.last().unwrap().cursor.clone()));
    check(&steady.await.unwrap(), &feed, |_| true);
    let resumed = resumed.await.unwrap();
    check(&resumed, &feed, |_| true);
    check(&filtered.await.unwrap(), &feed, |it| it.achievement_id == "second");
    let streams = resumed.iter().filter(|event| matches!(event, Event::Started(_))).count();
    // A pause may cut a stream off before it has begun.
    assert!((2..=pauses() + 1).contains(&streams), "it was cut {streams} times");

    say(&format!(
        "{} pauses: {} sets and {} completions, each counted once; {} expired, of which {} were \
         stored",
        pauses(),
        all.ids,
        all.completed.len(),
        all.expired,
        all.stored
    ));
    assert!(all.expired >= pauses(), "the pauses show nothing");
}

/// Goal: a pause is no failure of the disk, however long it is.
///
/// Method: each sync takes a while, so that the server stands still in the middle of one, and that
/// for longer than a commit may take.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_long_pause_in_the_middle_of_a_commit_ends_no_writes() {
    const COMMIT_TIME_MAX: Duration = Duration::from_secs(30);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut command = std::process::Command::new(crate::support::BINARY);
    command.args(["serve", "--listen=127.0.0.1:0", "--request-seconds-max=60"]);
    command.arg("--data").arg(&data).env("FAILPOINTS", "before-sync=sleep(4000)");
    let server = Server::run(command, &data.with_extension("log")).unwrap();
    server.apply(TITLE, &[("n", 1 << 50)]).await;
    let mut client = server.storage().await;
    let id = |n: i64| SetAchievementStorageRequest {
        request_id: format!("r{n}"),
        ..delta(TITLE, "p", "n", 1)
    };
    let mut asking = client.clone();
    let asked = tokio::spawn(async move { asking.set_achievement_storage(id(1)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!asked.is_finished(), "its commit is under way");
    server.signal("STOP");
    tokio::time::sleep(COMMIT_TIME_MAX + Duration::from_secs(1)).await;
    server.signal("CONT");
    for n in 1..=2 {
        let (answer, _) = persist(&mut client, &id(n)).await;
        assert_eq!(answer.updated.unwrap().version, n);
    }
}
