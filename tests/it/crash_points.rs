//! Crashes at named places of the code: nothing that anybody was told is lost, and nothing is half
//! done.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use crate::{
    support::{BINARY, PATIENCE, Server, say},
    told::{Ledger, NODES, TITLE, WRITERS, apply_catalogs, examine, subscribe, write},
};

/// `make soak` sets more.
fn crashes_of_a_place() -> usize {
    std::env::var("ACCOLADE_CRASHES").map_or(10, |text| text.parse().expect("a number"))
}

/// Every place that the code names, by the file it is in; those that a server passes.
fn places() -> BTreeMap<String, String> {
    let mut places = BTreeMap::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/sled");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // For the test of restoring, in `backup.rs`.
        if path.ends_with("restore.rs") {
            continue;
        }
        let code = fs::read_to_string(&path).unwrap();
        for rest in code.split("crash_point!(\"").skip(1) {
            let name = rest.split('"').next().unwrap().to_owned();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            let twice = places.insert(name.clone(), file);
            assert_eq!(twice, None, "{name} names two places");
        }
    }
    places
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_place_loses_nothing_that_was_told() {
    let places = places();
    assert!(places.len() >= 12, "{places:?}");
    let mut crashes = 0;
    for (place, file) in &places {
        let before = crashes;
        for n in 0..crashes_of_a_place() {
            let dir = tempfile::tempdir().unwrap();
            let data = dir.path().join("data");
            let ledger = Ledger::default();
            ledger.lock().is_trimmed = true;
            let start = |crash: Option<usize>| {
                let mut command = Command::new(BINARY);
                command.args(["serve", "--listen=127.0.0.1:0", "--retention-count=30", "--data"]);
                command.arg(&data);
                if let Some(passes) = crash {
                    command.env("FAILPOINTS", format!("{place}={passes}*off->return"));
                }
                Server::run(command, &data.with_extension("log"))
            };
            // A place of the opening is passed once a start, or only by the first.
            let is_opening = file == "open.rs";
            if !is_opening || n > 0 {
                let server = start(None).expect("nothing crashes yet");
                server.apply(TITLE, &NODES).await;
                let mut work = JoinSet::new();
                for writer in 0..2 {
                    work.spawn(write(server.url(), ledger.clone(), 0, writer));
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
                server.kill();
                work.join_all().await;
            }
            let passes = match place.as_str() {
                _ if is_opening => 0,
                // Passed once a second.
                "trimming" => n % 2,
                _ => [0, 3, 40][n % 3] + n / 3 % 5,
            };
            if let Ok(server) = start(Some(passes)) {
                let mut work = JoinSet::new();
                for writer in 0..WRITERS {
                    work.spawn(write(server.url(), ledger.clone(), 1 + writer, writer));
                }
                let pause = Duration::from_millis(50);
                work.spawn(apply_catalogs(server.url(), ledger.clone(), pause));
                // A place that only the first start passes lets this one work.
                if is_opening {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    server.kill();
                } else {
                    let subscriber = tokio::spawn(subscribe(server.url(), ledger.clone()));
                    let status = timeout(PATIENCE * 3, server.wait()).await;
                    let status = status.unwrap_or_else(|_| panic!("{place} is never passed"));
                    assert!(!status.success(), "{place}: {status}");
                    subscriber.await.unwrap();
                    crashes += 1;
                }
                work.join_all().await;
            } else {
                crashes += 1;
            }
            let told = ledger.lock().clone();
            let found = examine(&data, &told).await;
            found.unwrap_or_else(|problem| panic!("{place}, {passes} passes: {problem}"));
            drop(start(None).unwrap_or_else(|said| panic!("{place}: {said}")));
        }
        assert!(crashes > before, "{place} is never passed");
    }
    say(&format!("{} places, {crashes} crashes: everything told was there", places.len()));
}
