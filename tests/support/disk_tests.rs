//! What the disk keeps, loses and refuses.

use std::{fs::File, io::Write};

use tempfile::TempDir;

use super::*;

/// None where there is no FUSE, which is said once a test.
fn mounted() -> Option<(Disk, TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path());
    disk.map_err(|why| eprintln!("skipped: {why}")).ok().map(|disk| (disk, folder))
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

/// Makes a file whose name and content are durable.
fn durable(disk: &Disk, name: &str, content: &[u8]) -> File {
    let path = disk.path().join(name);
    let mut file = File::create_new(&path).unwrap();
    file.write_all(content).unwrap();
    file.sync_data().unwrap();
    sync(disk.path());
    file
}

/// What a file holds after a power cut now.
fn after(disk: &Disk, how: Cut, seed: u64, name: &str) -> Option<Vec<u8>> {
    let state = disk.snapshot().cut(how, &mut fastrand::Rng::with_seed(seed));
    let folder = tempfile::tempdir().unwrap();
    state.write_to(folder.path()).unwrap();
    fs::read(folder.path().join(name)).ok()
}

fn fail(call: Call, nth: u64, forever: bool) -> Faults {
    let fail = Some(Fail { call, nth, errno: libc::EIO, forever });
    Faults { fail, ..Faults::default() }
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn what_is_synced_stays_and_the_rest_goes() {
    let Some((disk, _folder)) = mounted() else { return };
    let mut file = durable(&disk, "a", b"one");
    file.write_all(b", two").unwrap();
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"one, two");
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"one");
    file.sync_data().unwrap();
    for how in [Cut::Drop, Cut::Subset, Cut::Torn] {
        assert_eq!(after(&disk, how, 0, "a").unwrap(), b"one, two");
    }
    file.set_len(2).unwrap();
    file.write_all_at(b"!", 4).unwrap();
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"on\0\0!");
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"one, two");
    let cuts: BTreeSet<_> = (0..100).map(|seed| after(&disk, Cut::Subset, seed, "a")).collect();
    let legal = [&b"one, two"[..], b"on", b"on\0", b"on\0\0", b"on\0\0\0", b"on\0\0!"];
    assert_eq!(cuts, legal.into_iter().map(|bytes| Some(bytes.to_vec())).collect());
}

#[test]
fn pages_are_kept_by_themselves_and_torn_at_sectors() {
    let Some((disk, _folder)) = mounted() else { return };
    let file = durable(&disk, "a", &[1; 4 * PAGE]);
    file.write_all_at(&[2; 2 * PAGE], 0).unwrap();
    file.write_all_at(&[3; PAGE], 0).unwrap();
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for seed in 0..200 {
        let bytes = after(&disk, Cut::Subset, seed, "a").unwrap();
        let pages: Vec<_> = bytes.chunks(PAGE).map(|page| page[0]).collect();
        assert!(bytes.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])));
        assert_eq!(pages[2..], [1, 1], "not written to");
        seen[0].insert(pages[..2].to_vec());
        let bytes = after(&disk, Cut::Torn, seed, "a").unwrap();
        let sectors = bytes.chunks(SECTOR);
        assert!(sectors.clone().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        seen[1].insert(sectors.map(|sector| sector[0]).collect());
    }
    let all = [1, 2, 3].into_iter().flat_map(|first| [1, 2].map(|second| vec![first, second]));
    assert_eq!(seen[0], all.collect());
    assert!(seen[1].len() > 50);
}

#[test]
fn names_stay_in_their_order() {
    let Some((disk, _folder)) = mounted() else { return };
    let path = |name: &str| disk.path().join(name);
    drop(durable(&disk, "a", b"old"));
    let changed = || fs::metadata(disk.path()).unwrap().modified().unwrap();
    let before = changed();
    // Not the library's, which this program defines so that it syncs the folder.
    rustix::fs::rename(path("a"), path("b")).unwrap();
    assert!(changed() > before);
    fs::create_dir(path("d")).unwrap();
    fs::write(path("d/c"), b"never synced").unwrap();
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"old");
    for seed in 0..50 {
        let names = ["a", "b", "d/c"].map(|name| after(&disk, Cut::Subset, seed, name).is_some());
        assert!(names[0] != names[1] && names[2] <= names[1], "{names:?}");
    }
    sync(&path("d"));
    assert_eq!(after(&disk, Cut::Drop, 0, "a"), None);
    assert_eq!(after(&disk, Cut::Drop, 0, "b").unwrap(), b"old");
    assert_eq!(after(&disk, Cut::Drop, 0, "d/c").unwrap(), b"", "only its name is durable");
    fs::remove_dir_all(path("d")).unwrap();
    assert!(!path("d").exists() && after(&disk, Cut::Drop, 0, "d/c").is_some());
}

#[test]
fn the_disk_does_what_it_should_not() {
    let Some((disk, _folder)) = mounted() else { return };
    let file = durable(&disk, "a", b"one");
    disk.set_faults(Faults { ignore_syncs: true, ..Faults::default() });
    file.write_all_at(b"two", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"one");

    disk.set_faults(fail(Call::Sync, 2, false));
    file.sync_all().unwrap();
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"two");
    file.write_all_at(b"six", 0).unwrap();
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"two");
    assert_eq!((disk.counts().of(Call::Sync), disk.counts().of(Call::Any)), (2, 3));
    file.sync_data().unwrap();
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"six");

    disk.set_faults(Faults { forget_failed: true, ..fail(Call::Sync, 1, false) });
    file.write_all_at(b"ten", 0).unwrap();
    assert_eq!(errno(file.sync_data()), Some(libc::EIO));
    file.sync_data().unwrap();
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"ten");
    assert_eq!(after(&disk, Cut::Drop, 0, "a").unwrap(), b"six");

    disk.set_faults(Faults { short_write: Some(2), ..fail(Call::Write, 3, true) });
    assert_eq!(file.write_at(b"1234", 0).unwrap(), 4);
    assert_eq!(file.write_at(b"1234", 0).unwrap(), 2);
    assert_eq!(errno(file.write_at(b"1234", 0)), Some(libc::EIO));
    assert_eq!(errno(file.write_at(b"1234", 0)), Some(libc::EIO));
    disk.set_faults(fail(Call::Open, 1, false));
    assert_eq!(errno(File::create(disk.path().join("b"))), Some(libc::EIO));
    assert!(!disk.path().join("b").exists());
}

#[test]
fn the_disk_is_full() {
    let Some((disk, _folder)) = mounted() else { return };
    let file = durable(&disk, "a", &[1; PAGE]);
    disk.set_faults(Faults { capacity: Some(3 * PAGE as u64), ..Faults::default() });
    assert_eq!(file.write_at(&[2; 4 * PAGE], 100).unwrap(), 3 * PAGE - 100);
    assert_eq!(errno(file.write_at(b"x", 1 << 30)), Some(libc::ENOSPC));
    file.write_all_at(b"x", 0).unwrap();
    fs::remove_file(disk.path().join("a")).unwrap();
    assert_eq!(errno(fs::write(disk.path().join("b"), b"x")), Some(libc::ENOSPC));
    sync(disk.path());
    fs::write(disk.path().join("b"), b"x").unwrap();
}

#[test]
fn the_disk_goes_back_to_a_state() {
    let Some((disk, _folder)) = mounted() else { return };
    let file = durable(&disk, "a", b"one");
    let state = disk.snapshot().cut(Cut::Drop, &mut fastrand::Rng::new());
    fs::rename(disk.path().join("a"), disk.path().join("b")).unwrap();
    sync(disk.path());
    disk.load(&state);
    assert_eq!(fs::read(disk.path().join("a")).unwrap(), b"one");
    assert!(!disk.path().join("b").exists());
    assert_eq!(errno(file.write_at(b"two", 0)), Some(libc::ESTALE));
    disk.load(&State::default());
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
}

#[test]
fn a_disk_in_use_goes_away() {
    let Some((disk, folder)) = mounted() else { return };
    let file = durable(&disk, "a", b"one");
    drop(disk);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(errno(file.write_at(b"two", 0)), Some(libc::ESTALE));
}
