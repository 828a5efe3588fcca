//! Data folders of every format that was ever released open in this version.

use std::{fs, path::Path};

use accolade::proto::v1::Record;

use crate::support::{Server, Watch, delta, get, set};

/// Lays the fixture out as a data folder.
fn lay_out(fixture: &str, data: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
    let store = data.join("store");
    fs::create_dir_all(store.join("blobs")).unwrap();
    for entry in fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, store.join(path.file_name().unwrap())).unwrap();
    }
    fs::remove_file(store.join("README.md")).unwrap();
    fs::File::options().write(true).open(store.join("db")).unwrap().set_len(8_388_607).unwrap();
}

fn record(node: &str, max_progress: i64, progress: i64, completed_at: i64, version: i64) -> Record {
    let extra = if version == 2 { "三头牛".to_owned() } else { String::new() };
    let achievement_id = node.to_owned();
    Record { achievement_id, max_progress, progress, completed_at, version, extra }
}

#[tokio::test]
async fn the_first_format_opens_with_everything_that_it_held() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    lay_out("format-1", &data);
    // Twice: what the first opening writes must open as well.
    for opening in 0..2 {
        let server = Server::start(&data, &[]);
        let mut client = server.storage().await;
        let at = 1_795_389_346;
        let hunter = record("hunter_of_beasts", 6, 6, at, 2);
        assert_eq!(get(&mut client, "demo", "10001").await, [hunter]);
        assert_eq!(get(&mut client, "demo", "玩家").await, [record("chef", 20, 20, at, 1)]);
        let started = record("chef", 20, 2 + opening, 0, 1 + opening);
        let mut found = get(&mut client, "demo", "10002").await;
        found[0].extra.clone_from(&started.extra);
        assert_eq!(found, [started]);
        // A cursor that this folder once gave still works.
        let mut watch = Watch::after(&server, "demo", "AQAAAAAAAAABZ7kxAg").await;
        assert_eq!(watch.completion().await.player_id, "玩家");
        set(&mut client, delta("demo", "10002", "chef", 1)).await;
        server.kill();
    }
}
