//! Power cuts: what a disk may be left with at any moment holds everything that anybody was told
//! until then.

use std::{fs, process::Command, time::Duration};

use tokio::task::JoinSet;

use crate::{
    disk::{Cut, Disk, Faults, State},
    support::{BINARY, Server, say},
    told::{Ledger, NODES, TITLE, Told, WRITERS, apply_catalogs, examine, mount, subscribe, write},
};

/// Long enough that most moments are in the middle of a sync.
const SYNC_TAKES: Duration = Duration::from_millis(2);

/// Each snapshot is cut in each of these ways.
const CUTS: [Cut; 3] = [Cut::Drop, Cut::Subset, Cut::Torn];

/// `make soak` sets more.
fn snapshots() -> usize {
    std::env::var("ACCOLADE_POWER_CUTS").map_or(120, |text| text.parse().expect("a number"))
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
    ledger.lock().is_trimmed = !args.is_empty();
    let mut states = 0;
    for generation in 0..snapshots.div_ceil(OF_A_GENERATION) {
        let data = disk.path().join("data");
        let log = scratch.path().join(format!("{generation}.log"));
        let mut command = Command::new(BINARY);
        command.args(["serve", "--listen=127.0.0.1:0", "--data"]).arg(&data).args(args);
        let server = Server::run(command, &log)?;
        if generation == 0 {
            server.apply(TITLE, &NODES).await;
        }
        disk.set_faults(faults);
        let mut work = JoinSet::new();
        for writer in 0..WRITERS {
            work.spawn(write(server.url(), ledger.clone(), generation, writer));
        }
        work.spawn(apply_catalogs(server.url(), ledger.clone(), Duration::from_secs(1)));
        let subscriber = tokio::spawn(subscribe(server.url(), ledger.clone()));
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
    say(&format!(
        "{} power cuts, {states} states of the disk: everything told was there",
        snapshots()
    ));
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
    say(&format!("found out: {lost}"));
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
