//! Disks that fail: at any call, an error instead of an answer, and everything answered is there
//! when the disk works again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    BatchSetAchievementStorageRequest, GetAchievementStorageRequest, NodeUpdate,
    SetAchievementStorageRequest, node_update,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{
    disk::{Call, Cut, Disk, Fail, Faults},
    support::{BINARY, PATIENCE, Server, StorageClient, delta, get, reason, say},
    told::mount,
};

/// Whoever asks so long after the first error hears of it.
const HEALTH_PATIENCE: Duration = Duration::from_secs(1);

fn start(disk: &Disk, log: &Path) -> Result<Server, String> {
    let mut command = Command::new(BINARY);
    command.args(["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]);
    command.arg("--data").arg(disk.path().join("data"));
    Server::run(command, log)
}

fn add(extra: usize) -> SetAchievementStorageRequest {
    let mut request = delta("demo", &format!("p{}", fastrand::u32(..)), "first_steps", 1);
    if extra > 0 {
        request.extra = Some("x".repeat(extra));
        request.expected_version = Some(0);
    }
    request
}

/// Sets until one fails; gives the players of those that were answered, and the failure.
async fn set_until_failure(
    client: &mut StorageClient,
    extra: usize,
    sets_max: usize,
) -> (Vec<String>, Option<Status>) {
    let mut answered = Vec::new();
    for _ in 0..sets_max {
        let request = add(extra);
        let player = request.player_id.clone();
        match client.set_achievement_storage(request).await {
            Ok(_) => answered.push(player),
            Err(status) => return (answered, Some(status)),
        }
    }
    (answered, None)
}

async fn expect_all(client: &mut StorageClient, players: &[String]) {
    for player in players {
        assert_eq!(
            get(client, "demo", player).await.len(),
            1,
            "{player} was answered, and is gone"
        );
    }
}

/// What a failed write must look like from outside.
async fn expect_poisoned(server: &Server, client: &mut StorageClient, answered: &[String]) {
    let failed = Instant::now();
    let mut health = HealthClient::new(server.channel().await);
    loop {
        let asked = failed.elapsed();
        let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        if answer.status() == ServingStatus::NotServing {
            break;
        }
        assert!(asked < HEALTH_PATIENCE, "health still says SERVING");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = client.set_achievement_storage(add(0)).await.expect_err("no more writes");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "STORE_POISONED"));
    expect_all(client, answered).await;
    assert!(server.log().contains("a write failed"), "{}", server.log());
    assert_eq!(server.admin("/readyz").0, "HTTP/1.1 503 Service Unavailable");
    assert_eq!(server.admin("/livez").0, "HTTP/1.1 200 OK");
    assert_eq!(server.metric("accolade_store_poisoned"), 1);
}

/// That the folder is to be written back is noted last, since it may hang as the write did.
async fn wait_until_distrusted(server: &Server, disk: &Disk) {
    const TRUSTED_BYTES: u64 = 12;
    let (mark, start) = (disk.path().join("data/mark"), Instant::now());
    while fs::metadata(&mark).unwrap().len() <= TRUSTED_BYTES
        && !server.log().contains("the next start cannot be told")
    {
        assert!(start.elapsed() < PATIENCE, "the folder is still trusted: {}", server.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One server on the disk with these faults, from its start to its end; gives who was answered.
async fn fail_once(disk: &Disk, log: &Path, faults: Faults, extra: usize) -> (Vec<String>, bool) {
    let server = start(disk, log).unwrap();
    fail_on(disk, server, faults, extra).await
}

/// The same on a server that was started.
async fn fail_on(disk: &Disk, server: Server, faults: Faults, extra: usize) -> (Vec<String>, bool) {
    let mut client = server.storage().await;
    disk.set_faults(faults);
    let (answered, failure) = set_until_failure(&mut client, extra, 300).await;
    if let Some(failure) = &failure {
        assert_eq!(failure.code(), Code::Unavailable, "{faults:?}: {failure:?}");
        expect_poisoned(&server, &mut client, &answered).await;
        wait_until_distrusted(&server, disk).await;
    }
    let log = server.log_path().to_owned();
    server.kill();
    disk.set_faults(Faults::default());
    let _ = fs::remove_file(log);
    (answered, failure.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_or_sync_that_fails_ends_writes_and_loses_nothing() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let log = scratch.path().join("log");
    let (mut all, mut failures) = (Vec::new(), 0);
    for call in [Call::Write, Call::Sync] {
        for (nth, forever) in (1..=12).flat_map(|nth| [(nth, false), (nth, true)]) {
            let fail = Some(Fail { call, nth, errno: libc::EIO, forever });
            let faults = Faults { fail, forget_failed: true, ..Faults::default() };
            let (answered, has_failed) = fail_once(&disk, &log, faults, 0).await;
            all.extend(answered);
            failures += usize::from(has_failed);
        }
    }
    assert_eq!(failures, 48, "each of them is noticed");
    let server = start(&disk, &log).unwrap();
    expect_all(&mut server.storage().await, &all).await;
    say(&format!("{failures} failures, {} answered sets are there", all.len()));
}

/// The system tells of a write that failed only once. Here sled hears of it while nobody waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_while_nothing_is_set_ends_writes() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let server = start(&disk, &scratch.path().join("log")).unwrap();
    let mut client = server.storage().await;
    let (answered, failure) = set_until_failure(&mut client, 0, 20).await;
    assert!(failure.is_none(), "{failure:?}");
    let fail = Some(Fail { call: Call::Sync, nth: 1, errno: libc::EIO, forever: false });
    disk.set_faults(Faults { fail, ..Faults::default() });
    let started = Instant::now();
    while server.admin("/readyz").0 != "HTTP/1.1 503 Service Unavailable" {
        assert!(started.elapsed() < PATIENCE, "nothing was noticed: {}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    expect_poisoned(&server, &mut client, &answered).await;
}

/// What a failed sync should have saved can still be read: the next start sees it in memory only.
/// So it must be saved then, or everything that is written behind it is lost with the power.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_failed_sync_and_a_restart_survives_a_power_cut() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let log = scratch.path().join("log");
    let mut random = fastrand::Rng::new();
    let mut all = Vec::new();
    for (nth, forever) in (1..=12).flat_map(|nth| [(nth, false), (nth, true)]) {
        let fail = Some(Fail { call: Call::Sync, nth, errno: libc::EIO, forever });
        let faults = Faults { fail, forget_failed: true, ..Faults::default() };
        // Large, so that a group has pages of its own.
        let (answered, has_failed) = fail_once(&disk, &log, faults, 16_000).await;
        assert!(has_failed, "{faults:?}");
        all.extend(answered);
        let server = start(&disk, &log).unwrap();
        let (answered, failure) = set_until_failure(&mut server.storage().await, 16_000, 20).await;
        assert!(failure.is_none(), "{failure:?}");
        all.extend(answered);
        server.kill();
        disk.load(&disk.snapshot().cut(Cut::Drop, &mut random));
        let server = start(&disk, &log).unwrap_or_else(|said| panic!("{faults:?}: {said}"));
        expect_all(&mut server.storage().await, &all).await;
    }
    say(&format!("24 failed syncs, {} answered sets are there", all.len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_write_is_finished() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let log = scratch.path().join("log");
    let mut all = Vec::new();
    for nth in 1..=10 {
        let faults = Faults { short_write: Some(nth), ..Faults::default() };
        let (answered, has_failed) = fail_once(&disk, &log, faults, 0).await;
        assert!(!has_failed && answered.len() == 300);
        all.extend(answered);
    }
    let server = start(&disk, &log).unwrap();
    expect_all(&mut server.storage().await, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_writes_and_opens_again_when_it_has_room() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let log = scratch.path().join("log");
    let (mut all, mut failures) = (Vec::new(), 0);
    // Beside the store as it is then, and the ballast.
    for megabytes in [1, 2, 3, 4, 6, 8, 9] {
        let server = start(&disk, &log).unwrap();
        let capacity = Some(disk.used() + (megabytes << 20));
        let faults = Faults { capacity, ..Faults::default() };
        let (answered, has_failed) = fail_on(&disk, server, faults, 16_000).await;
        all.extend(answered);
        failures += usize::from(has_failed);
        // Still full: the ballast makes room for opening and reading.
        disk.set_faults(faults);
        let server = start(&disk, &log).unwrap_or_else(|said| panic!("{megabytes} MB: {said}"));
        expect_all(&mut server.storage().await, &all).await;
        server.kill();
        disk.set_faults(Faults::default());
        let _ = fs::remove_file(&log);
        let server = start(&disk, &log).unwrap();
        expect_all(&mut server.storage().await, &all).await;
        server.kill();
    }
    assert!(failures >= 4, "{failures} times full");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_while_opening_is_told_and_harms_nothing() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let log = scratch.path().join("log");
    drop(start(&disk, &log).unwrap());
    disk.set_faults(Faults::default());
    drop(start(&disk, &log).unwrap());
    // What an opening does when nothing fails, and a little more: none is quite like another.
    let calls = disk.counts();
    let (mut all, mut refused) = (Vec::new(), BTreeMap::new());
    let kinds = [Call::Open, Call::Read, Call::Write, Call::Resize, Call::Sync, Call::Any];
    for call in kinds {
        // sled destroys what it cannot read, if it can write: GUARANTEES.md says so. All files are
        // read before, and from then on reads are expected to work.
        let count = if call == Call::Read { 8 } else { calls.of(call) + 2 };
        let ways: &[bool] = if call == Call::Any { &[true] } else { &[false, true] };
        for (nth, forever) in (1..=count).flat_map(|nth| ways.iter().map(move |way| (nth, *way))) {
            let fail = Some(Fail { call, nth, errno: libc::EIO, forever });
            disk.set_faults(Faults { fail, forget_failed: true, ..Faults::default() });
            let begun = Instant::now();
            match start(&disk, &log) {
                Ok(server) => drop(server),
                Err(said) => {
                    *refused.entry(format!("{call:?}")).or_insert(0) += 1;
                    assert!(said.contains("accolade: the data folder"), "{call:?} {nth}: {said}");
                }
            }
            assert!(begun.elapsed() < PATIENCE, "{call:?} {nth}: it hangs");
            disk.set_faults(Faults::default());
            let _ = fs::remove_file(&log);
            let server = start(&disk, &log);
            let server = server.unwrap_or_else(|said| panic!("{call:?} {nth} {forever}: {said}"));
            let mut client = server.storage().await;
            let (answered, failure) = set_until_failure(&mut client, 0, 10).await;
            assert!(failure.is_none(), "{call:?} {nth} {forever}: {failure:?}");
            all.extend(answered);
            server.kill();
        }
    }
    // Nothing that was written behind a start that failed hangs on what is in memory only.
    disk.load(&disk.snapshot().cut(Cut::Drop, &mut fastrand::Rng::new()));
    let server = start(&disk, &log).unwrap();
    expect_all(&mut server.storage().await, &all).await;
    say(&format!("{calls:?} of an opening; so often it did not open: {refused:?}"));
    assert!(refused.len() >= 4, "so often it did not open: {refused:?}");
}

/// A disk that cannot be read any more: what is not in memory is an internal error, whose cause
/// only the log has.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_is_told_without_its_cause() {
    let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some(disk) = mount(&folder) else { return };
    let log = scratch.path().join("log");
    // Far more is written than fits into the caches.
    let mut command = Command::new(BINARY);
    command.args(["serve", "--listen=127.0.0.1:0", "--cache-bytes=1048576"]);
    command.arg("--data").arg(disk.path().join("data"));
    let server = Server::run(command, &log).unwrap();
    let nodes: Vec<_> = (0..20).map(|n| format!("n{n}")).collect();
    let targets: Vec<_> = nodes.iter().map(|node| (node.as_str(), 9)).collect();
    server.apply("many", &targets).await;
    let mut client = server.storage().await;
    let players: Vec<_> = (0..800).map(|n| format!("p{n}")).collect();
    for player_id in &players {
        let updates = nodes.iter().map(|node| NodeUpdate {
            node_id: node.clone(),
            change: Some(node_update::Change::Delta(1)),
            ..NodeUpdate::default()
        });
        let request = BatchSetAchievementStorageRequest {
            title: "many".to_owned(),
            player_id: player_id.clone(),
            updates: updates.collect(),
            ..BatchSetAchievementStorageRequest::default()
        };
        client.batch_set_achievement_storage(request).await.unwrap();
    }
    let fail = Some(Fail { call: Call::Read, nth: 1, errno: libc::EIO, forever: true });
    disk.set_faults(Faults { fail, ..Faults::default() });
    let mut failures = BTreeSet::new();
    for player in &players {
        let request = GetAchievementStorageRequest {
            title: "many".to_owned(),
            player_id: player.clone(),
            achievement_ids: Vec::new(),
        };
        match client.get_achievement_storage(request).await {
            Ok(answer) => assert_eq!(answer.into_inner().entity.len(), 20, "a hole in silence"),
            Err(status) => {
                assert_eq!((status.code(), reason(&status).as_str()), (Code::Internal, "INTERNAL"));
                let info = status.get_details_error_info().unwrap();
                let id = info.metadata["id"].clone();
                let text = status.message().replace(&id, "…");
                assert!(server.log().contains(&id), "the log has the cause under {id}");
                failures.insert(text);
            }
        }
    }
    let expected = "internal error; the server's log has the cause under id …";
    assert_eq!(failures.into_iter().collect::<Vec<_>>(), [expected]);
    disk.set_faults(Faults::default());
    server.kill();
    let server = start(&disk, &log).unwrap();
    let mut client = server.storage().await;
    for player in &players {
        assert_eq!(get(&mut client, "many", player).await.len(), 20, "{player}");
    }
}
