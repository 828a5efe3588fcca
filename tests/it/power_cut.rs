//! Power cuts: what a disk may be left with at any moment holds everything that anybody was told
//! until then.

use std::{fs, path::Path, process::Command, time::Duration};

use tokio::task::JoinSet;

use crate::{
    disk::{Cut, Disk, Faults, State},
    support::{BINARY, Server, say},
    told::{
        Ledger, NODES, TITLE, Told, WRITERS, apply_catalogs, examine, mount, resume, subscribe,
        write,
    },
};

/// Long enough that most moments are in the middle of a sync.
const SYNC_TAKES: Duration = Duration::from_millis(2);

/// So often that most generations have a catalogue cut in the middle.
const CATALOG_PAUSE: Duration = Duration::from_millis(100);

/// Each snapshot is cut in each of these ways.
const CUTS: [Cut; 3] = [Cut::Drop, Cut::Subset, Cut::Torn];

/// While a folder opens, names change as well.
const CUTS_OF_A_START: [Cut; 4] = [Cut::Drop, Cut::Names, Cut::Subset, Cut::Torn];

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

/// Starts the service, and takes what the disk would be left with at moments of the start.
async fn start_under_cuts(
    disk: &Disk,
    mut command: Command,
    log: &Path,
    random: &mut fastrand::Rng,
) -> (Result<Server, String>, Vec<State>) {
    // It stands still while states are looked at.
    command.args(["serve", "--listen=127.0.0.1:0", "--request-seconds-max=600"]);
    command.arg("--data").arg(disk.path().join("data"));
    let log = log.to_owned();
    let starting = std::thread::spawn(move || Server::run(command, &log));
    let mut states = Vec::new();
    while !starting.is_finished() {
        let cut = CUTS_OF_A_START[states.len() % CUTS_OF_A_START.len()];
        states.push(disk.snapshot().cut(cut, random));
        tokio::time::sleep(Duration::from_millis(random.u64(1..20))).await;
    }
    (starting.join().unwrap(), states)
}

/// Runs the service on the disk, looks at what power cuts would leave, goes on with one of those,
/// and so on. Tells the first thing that is wrong.
async fn cut_power(disk: &Disk, setup: Setup, snapshots: usize) -> Result<usize, String> {
    const OF_A_GENERATION: usize = 10;
    let mut random = fastrand::Rng::new();
    let scratch = tempfile::tempdir().unwrap();
    let ledger = Ledger::default();
    ledger.lock().is_trimmed = setup.retention_count.is_some();
    let mut states = 0;
    for generation in 0..snapshots.div_ceil(OF_A_GENERATION) {
        let log = scratch.path().join(format!("{generation}.log"));
        disk.set_faults(setup.faults);
        let (server, starts) = start_under_cuts(disk, setup.command(), &log, &mut random).await;
        let server = server?;
        let told = ledger.lock().clone();
        for state in starts {
            let found = examine_state(&state, &scratch, &told).await;
            found.map_err(|problem| format!("while opening: {problem}"))?;
            states += 1;
        }
        if generation == 0 {
            server.apply(TITLE, &NODES).await;
        }
        let mut work = JoinSet::new();
        for writer in 0..WRITERS {
            work.spawn(write(server.url(), ledger.clone(), generation, writer));
        }
        work.spawn(apply_catalogs(server.url(), ledger.clone(), CATALOG_PAUSE));
        work.spawn(subscribe(server.url(), ledger.clone()));
        work.spawn(resume(server.url(), ledger.clone()));
        for _ in 0..OF_A_GENERATION {
            tokio::time::sleep(Duration::from_micros(random.u64(1000..100_000))).await;
            // What is told after this line may be on the disk or not.
            let told = ledger.lock().clone();
            let snapshot = disk.snapshot();
            // Else it writes so much meanwhile that the next states take longer, and so on.
            server.signal("STOP");
            for cut in CUTS {
                let state = snapshot.cut(cut, &mut random);
                let found = examine_state(&state, &scratch, &told).await;
                found.map_err(|problem| format!("state {states}, {cut:?}: {problem}"))?;
                states += 1;
            }
            server.signal("CONT");
        }
        server.kill();
        while let Some(done) = work.join_next().await {
            done.map_err(|error| error.to_string())?;
        }
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

/// What is cut off, and on which disk.
#[derive(Clone, Copy, Default)]
struct Setup {
    faults: Faults,
    retention_count: Option<u32>,
    /// A place of the code that does something else: see `fail` of the service.
    failpoints: &'static str,
}

impl Setup {
    /// The program with its settings; what every run has is still missing.
    fn command(&self) -> Command {
        let mut command = Command::new(BINARY);
        if let Some(count) = self.retention_count {
            command.env("ACCOLADE_RETENTION_COUNT", count.to_string());
        }
        command.env("FAILPOINTS", self.failpoints);
        command
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
    let setup = Setup { faults: HONEST, ..Setup::default() };
    let states = cut_power(&disk, setup, snapshots()).await.unwrap();
    say(&format!(
        "{} power cuts, {states} states of the disk: everything told was there",
        snapshots()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_retention_works_leaves_no_hole() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = mount(&folder) else { return };
    let setup = Setup { faults: HONEST, retention_count: Some(300), ..Setup::default() };
    cut_power(&disk, setup, snapshots() / 4).await.unwrap();
}

/// The test would notice: on a disk that answers syncs and does not do them, something is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_sync_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = mount(&folder) else { return };
    let lying = Faults { ignore_syncs: true, ..HONEST };
    let setup = Setup { faults: lying, ..Setup::default() };
    let lost = cut_power(&disk, setup, 20).await.expect_err("syncs are not done");
    assert!(!lost.contains("panicked"), "{lost}");
    say(&format!("found out: {lost}"));
}

/// The test would notice: a service whose groups are not synced loses something, on a good disk.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_sync_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = mount(&folder) else { return };
    let setup = Setup { faults: HONEST, failpoints: "no-sync=return", ..Setup::default() };
    let lost = cut_power(&disk, setup, 20).await.expect_err("groups are not synced");
    assert!(!lost.contains("panicked"), "{lost}");
    say(&format!("found out: {lost}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_during_the_first_start_leaves_a_folder_that_opens() {
    let mut random = fastrand::Rng::new();
    for round in 0..snapshots().div_ceil(4) {
        let (folder, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let Some(disk) = mount(&folder) else { return };
        disk.set_faults(HONEST);
        let (command, log) = (Command::new(BINARY), scratch.path().join("log"));
        let (server, states) = start_under_cuts(&disk, command, &log, &mut random).await;
        drop(server.unwrap());
        for state in states {
            let found = examine_state(&state, &scratch, &Told::default()).await;
            found.unwrap_or_else(|problem| panic!("round {round}: {problem}"));
        }
    }
}
