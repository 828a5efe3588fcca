//! Linearizability: whatever many clients see of records, over kills and lost answers, is what one
//! client after the other could have seen.

use std::time::{Duration, Instant};

use accolade::proto::v1::{
    GetAchievementStorageRequest, SetAchievementStorageRequest,
    set_achievement_storage_request::Change,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::transport::Endpoint;

use crate::support::{
    PATIENCE, Server, StorageClient,
    history::{History, Kind, Operation, Outcome, check, mutate},
    say,
};

const CLIENTS: usize = 8;
const OPERATIONS: usize = 200;
const RECORDS: usize = 20;

/// `make soak` sets more.
fn histories() -> usize {
    std::env::var("ACCOLADE_HISTORIES").map_or(50, |text| text.parse().expect("a number"))
}

/// What a client needs to know.
#[derive(Clone)]
pub struct Room {
    pub round: usize,
    pub client: usize,
    pub start: Instant,
    pub operations: usize,
    /// Where servers listen, as long as there are any.
    pub urls: watch::Receiver<Vec<String>>,
}

impl Room {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap()
    }

    async fn connect(&mut self) -> StorageClient {
        loop {
            let urls = self.urls.wait_for(|urls| !urls.is_empty()).await.unwrap().clone();
            let url = urls[fastrand::usize(..urls.len())].clone();
            let endpoint = Endpoint::from_shared(url).unwrap().connect_timeout(PATIENCE);
            if let Ok(channel) = endpoint.connect().await {
                return StorageClient::new(channel);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Gets and sets at random, now here and now there; an operation without an answer has an
    /// unknown outcome.
    pub async fn play(mut self) -> History {
        let mut client = self.connect().await;
        let mut history = History::new();
        let mut seen = [0; RECORDS];
        let has_several = self.urls.borrow().len() > 1;
        for _ in 0..self.operations {
            if has_several && fastrand::u8(..10) == 0 {
                client = self.connect().await;
            }
            let record = fastrand::usize(..RECORDS);
            let kind = match fastrand::u8(..10) {
                0..4 => Kind::Get,
                4..7 => Kind::Set { expected: Some(seen[record]), delta: fastrand::u64(1..=3) },
                _ => Kind::Set { expected: None, delta: fastrand::u64(1..=3) },
            };
            // Some give up before the answer can be there.
            let patience = match fastrand::u8(..20) {
                0 => Duration::from_micros(fastrand::u64(100..2000)),
                _ => PATIENCE,
            };
            let invoked = self.now();
            let asked = ask(&mut client, self.round, record, &kind);
            let answer = tokio::time::timeout(patience, asked).await;
            let (returned, outcome) = match answer {
                Ok(Some(outcome)) => (Some(self.now()), outcome),
                lost => {
                    if lost.is_ok() {
                        client = self.connect().await;
                    }
                    (None, Outcome::Unknown)
                }
            };
            match outcome {
                Outcome::Stored { version, .. }
                | Outcome::Conflict { version, .. }
                | Outcome::Read { version, .. } => seen[record] = version,
                Outcome::Unknown => {}
            }
            let key = format!("r{record}");
            history.push(Operation { client: self.client, key, kind, invoked, returned, outcome });
        }
        history
    }
}

/// `None` where no answer came.
async fn ask(
    client: &mut StorageClient,
    round: usize,
    record: usize,
    kind: &Kind,
) -> Option<Outcome> {
    let (title, player_id) = ("t".to_owned(), format!("p{round}-{record}"));
    let numbers = |version: i64, progress: i64| {
        (u64::try_from(version).unwrap(), u64::try_from(progress).unwrap())
    };
    match *kind {
        Kind::Get => {
            let achievement_ids = Vec::new();
            let request = GetAchievementStorageRequest { title, player_id, achievement_ids };
            let answer = client.get_achievement_storage(request).await.ok()?.into_inner();
            let record = answer.entity.first();
            let (version, progress) =
                record.map_or((0, 0), |record| numbers(record.version, record.progress));
            Some(Outcome::Read { version, progress })
        }
        Kind::Set { expected, delta } => {
            let request = SetAchievementStorageRequest {
                title,
                player_id,
                node_id: "n".to_owned(),
                change: Some(Change::Delta(delta.try_into().unwrap())),
                expected_version: expected.map(|version| version.try_into().unwrap()),
                ..SetAchievementStorageRequest::default()
            };
            let answer = client.set_achievement_storage(request).await.ok()?.into_inner();
            match (answer.code, answer.entity, answer.updated) {
                (0, _, Some(updated)) => {
                    let (version, progress) = numbers(updated.version, updated.progress);
                    Some(Outcome::Stored { version, progress })
                }
                (5, Some(entity), _) => {
                    let (version, progress) = numbers(entity.version, entity.progress);
                    Some(Outcome::Conflict { version, progress })
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_history_is_linearizable() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::start(&data, &[]);
    server.apply("t", &[("n", 1 << 50)]).await;
    let (urls, watched) = watch::channel(vec![server.url()]);
    let (mut operations, mut lost, mut conflicts, mut mutants) = (0, 0, 0, 0);
    for round in 0..histories() {
        let start = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (operations, urls) = (OPERATIONS, watched.clone());
            clients.spawn(Room { round, client, start, operations, urls }.play());
        }
        // Stopped for a while and killed, somewhere in the middle of it.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..75))).await;
        if round % 2 == 0 {
            server.signal("STOP");
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..100))).await;
            server.signal("CONT");
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..75))).await;
        urls.send_replace(Vec::new());
        server.kill();
        server = Server::start(&data, &[]);
        urls.send_replace(vec![server.url()]);

        let history: History = clients.join_all().await.into_iter().flatten().collect();
        check(&history).unwrap_or_else(|error| panic!("round {round}: {error}"));
        operations += history.len();
        lost += history.iter().filter(|it| it.returned.is_none()).count();
        let is_conflict = |it: &&Operation| matches!(it.outcome, Outcome::Conflict { .. });
        conflicts += history.iter().filter(is_conflict).count();
        // That the checker would have noticed is shown on the same history.
        for _ in 0..20 {
            let Some((mutant, what)) = mutate(&history, &mut fastrand::Rng::new()) else {
                continue;
            };
            assert!(check(&mutant).is_err(), "round {round}: not noticed: {what}");
            mutants += 1;
        }
    }
    say(&format!(
        "{} histories, {operations} operations, {lost} without answer, {conflicts} conflicts: \
         linearizable; {mutants} mutants: refused",
        histories()
    ));
    assert!(lost > 0 && conflicts > 0 && mutants > 0, "the histories show nothing");
}
