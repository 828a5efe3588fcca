//! Disks that fail: at any call, an error instead of an answer, and everything answered is there
//! when the disk works again.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use accolade::proto::v1::SetAchievementStorageRequest;
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    disk::{Call, Cut, Disk, Fail, Faults},
    support::{BINARY, PATIENCE, Server, StorageClient, delta, get, reason, say},
    told::mount,
};

/// Health must have changed so long after the first error.
const HEALTH_PATIENCE: Duration = Duration::from_secs(1);

fn start(disk: &Disk, log: &Path) -> Result<Server, String> {
    let mut command = Command::new(BINARY);
    command.args(["serve", "--listen=127.0.0.1:0", "--data"]).arg(disk.path().join("data"));
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
        let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        if answer.status() == ServingStatus::NotServing {
            break;
        }
        assert!(failed.elapsed() < HEALTH_PATIENCE, "health still says SERVING");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let status = client.set_achievement_storage(add(0)).await.expect_err("no more writes");
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "STORE_POISONED"));
    expect_all(client, answered).await;
    assert!(server.log().contains("a write failed"), "{}", server.log());
}

/// One server on the disk with these faults, from its start to its end; gives who was answered.
async fn fail_once(disk: &Disk, log: &Path, faults: Faults, extra: usize) -> (Vec<String>, bool) {
    let server = start(disk, log).unwrap();
    let mut client = server.storage().await;
    disk.set_faults(faults);
    let (answered, failure) = set_until_failure(&mut client, extra, 300).await;
    if let Some(failure) = &failure {
        assert_eq!(failure.code(), Code::Unavailable, "{faults:?}: {failure:?}");
        expect_poisoned(&server, &mut client, &answered).await;
    }
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
    // The ballast takes 16 of them.
    for megabytes in [17, 18, 19, 20, 22, 24, 25] {
        let faults = Faults { capacity: Some(megabytes << 20), ..Faults::default() };
        let (answered, has_failed) = fail_once(&disk, &log, faults, 16_000).await;
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
    let (mut all, mut refused) = (Vec::new(), 0);
    // From some call on: a disk that goes away, that cannot be written, that cannot be read.
    let kinds = [(Call::Any, 60), (Call::Write, 6), (Call::Sync, 12), (Call::Read, 8)];
    for (call, last) in kinds {
        for nth in 1..=last {
            let fail = Some(Fail { call, nth, errno: libc::EIO, forever: true });
            disk.set_faults(Faults { fail, forget_failed: true, ..Faults::default() });
            let begun = Instant::now();
            match start(&disk, &log) {
                Ok(server) => drop(server),
                Err(said) => {
                    refused += 1;
                    assert!(said.contains("accolade: the data folder"), "{call:?} {nth}: {said}");
                }
            }
            assert!(begun.elapsed() < PATIENCE / 2, "{call:?} {nth}: it hangs");
            disk.set_faults(Faults::default());
            let (answered, has_failed) = fail_once(&disk, &log, Faults::default(), 0).await;
            assert!(!has_failed);
            all.extend(answered.into_iter().take(20));
        }
    }
    let server = start(&disk, &log).unwrap();
    expect_all(&mut server.storage().await, &all).await;
    say(&format!("{refused} times it did not open"));
    assert!(refused > 10, "{refused} times it did not open");
}
