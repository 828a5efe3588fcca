//! Callers that do not wait: a set whose answer nobody heard was stored wholly or not at all, and
//! whoever asks again under the same id is told the same, however often.

use std::time::Duration;

use accolade::proto::v1::{SetAchievementStorageRequest, SetAchievementStorageResponse};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Request, Status};

use crate::support::{PATIENCE, Server, StorageClient, delta, get, say, set};

const CALLERS: usize = 64;
const OF_A_CONNECTION: usize = 8;

/// So few that a record, which remembers its last 8 ids, remembers all of them.
const IDS_OF_A_RECORD: usize = 4;

/// Longest time that a caller waits at first. Most answers are not there by then.
const HURRY_MICROS: u64 = 2000;

/// `make soak` sets more.
fn sets() -> usize {
    std::env::var("ACCOLADE_DEADLINES").map_or(20_000, |text| text.parse().expect("a number"))
}

/// How often what happened.
#[derive(Default)]
struct Counts {
    /// The answer came in time.
    answered: usize,
    /// It did not, and the set was stored.
    stored: usize,
    /// It did not, and nothing was stored.
    lost: usize,
}

fn player(id: usize) -> String {
    format!("p{}", id / IDS_OF_A_RECORD)
}

/// Asks, and hangs up soon: with a deadline that both sides know, or by a stream that is reset.
async fn hurry(
    client: &mut StorageClient,
    request: SetAchievementStorageRequest,
) -> Option<SetAchievementStorageResponse> {
    let patience = Duration::from_micros(fastrand::u64(..HURRY_MICROS));
    let mut request = Request::new(request);
    let answer = if fastrand::bool() {
        request.set_timeout(patience);
        client.set_achievement_storage(request).await
    } else {
        let asked = client.set_achievement_storage(request);
        timeout(patience, asked).await.unwrap_or_else(|_| Err(Status::cancelled("dropped")))
    };
    let expected = [Code::DeadlineExceeded, Code::Cancelled];
    match answer {
        Ok(answer) => Some(answer.into_inner()),
        Err(status) if expected.contains(&status.code()) => None,
        Err(status) => panic!("{status:?}"),
    }
}

/// Gives every id of a caller its set: in a hurry, then with patience, then once more.
async fn call(mut client: StorageClient, caller: usize) -> Counts {
    let mut counts = Counts::default();
    for id in (caller..sets()).step_by(CALLERS) {
        let request_id = format!("r{id}");
        let request =
            SetAchievementStorageRequest { request_id, ..delta("t", &player(id), "n", 1) };
        let hasty = hurry(&mut client, request.clone()).await;
        let asked = set(&mut client, request.clone());
        let answer = timeout(PATIENCE, asked).await.expect("an answer comes in time");
        let again = set(&mut client, request).await;

        assert!(answer.changed, "what is answered again was stored: {answer:?}");
        assert!(again.replayed, "it has been stored before: {again:?}");
        let replayed = |answer| SetAchievementStorageResponse { replayed: true, ..answer };
        assert_eq!(replayed(answer.clone()), again, "set {id}");
        match hasty {
            Some(hasty) => {
                assert!(!hasty.replayed && answer.replayed, "set {id}: {hasty:?}");
                assert_eq!(replayed(hasty), again, "set {id}");
                counts.answered += 1;
            }
            None if answer.replayed => counts.stored += 1,
            None => counts.lost += 1,
        }
    }
    counts
}

/// Goal: what a deadline or a reset cuts off is stored once or not at all, and a retry under the
/// same id finds out which, stores what is missing, and is told the one outcome from then on.
///
/// Method: many callers, each record shared by several of them, so that hasty sets and retries of
/// the same record mix.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_hangs_up_and_asks_again_is_told_the_one_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    server.apply("t", &[("n", 1 << 50)]).await;
    let mut callers = JoinSet::new();
    let mut client = server.storage().await;
    for caller in 0..CALLERS {
        if caller % OF_A_CONNECTION == 0 {
            client = server.storage().await;
        }
        callers.spawn(call(client.clone(), caller));
    }
    let mut all = Counts::default();
    while let Some(counts) = callers.join_next().await {
        let counts = counts.unwrap();
        all.answered += counts.answered;
        all.stored += counts.stored;
        all.lost += counts.lost;
    }
    let Counts { answered, stored, lost } = all;
    for first in (0..sets()).step_by(IDS_OF_A_RECORD) {
        let ids = i64::try_from(IDS_OF_A_RECORD.min(sets() - first)).unwrap();
        let records = get(&mut client, "t", &player(first)).await;
        let counted: Vec<_> = records.iter().map(|it| (it.version, it.progress)).collect();
        assert_eq!(counted, [(ids, ids)], "{}", player(first));
    }
    say(&format!(
        "{} sets in a hurry: {answered} answered, {stored} stored without an answer, {lost} not \
         stored; each was counted once",
        sets()
    ));
    assert!(stored > 0 && lost > 0, "the hurry shows nothing");
}
