//! Catalogue files at random. Goal: whatever a file holds, reading it ends soon, with a catalogue
//! or with mistakes that name the file.
//!
//! Method: the samples with a few changed bytes, noise, and files as large or as deeply nested as
//! anybody could write them, in each of the four formats.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*};

use super::load;
use crate::{
    domain::{Catalog, DEFINITIONS_MAX},
    testing::{Mutation, mutated, mutations},
};

/// Longest time for any of these files, in a build without optimisation on a machine with other
/// work. All of them take a second or two, or hours.
const TIME_MAX: Duration = Duration::from_secs(60);

/// Files of the sample of a folder.
const FOLDER_FILES: usize = 22;

/// What files are made of, put where it may or may not be.
const TOKENS: &str = "[ ] { } \" ' ''' , : = \n \r \\ # \0 \u{feff} [[definitions]] definitions \
    node_id \"\\u0007\" null -1 1e999 99999999999999999999";

fn token() -> impl Strategy<Value = Vec<u8>> {
    let tokens: Vec<_> = TOKENS.split(' ').map(|token| token.as_bytes().to_vec()).collect();
    proptest::sample::select(tokens)
}

fn changes() -> impl Strategy<Value = Vec<Mutation>> {
    mutations(token(), 1..200, 1..6)
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    let tokens = vec(token(), 0..60).prop_map(|tokens| tokens.concat());
    prop_oneof![vec(any::<u8>(), 0..500), tokens]
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name)
}

/// Loads a file or folder, which must end in a catalogue or in mistakes that name it.
fn check(path: &Path) -> Result<(), TestCaseError> {
    let start = Instant::now();
    match load(path) {
        Ok(catalog) => prop_assert!(catalog.nodes().len() > 0),
        Err(error) => {
            let (text, shown) = (error.to_string(), path.display());
            let mut lines = text.lines();
            let head = lines.next().unwrap_or_default();
            prop_assert!(head.starts_with(&format!("`{shown}` has ")), "{}", text);
            let first = lines.next().unwrap_or_default();
            prop_assert!(first.starts_with(&format!("  {shown}")), "{}", text);
        }
    }
    prop_assert!(start.elapsed() < TIME_MAX, "took {:?}", start.elapsed());
    Ok(())
}

/// Loads a file of this name and content.
fn check_file(name: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    check(&path)
}

/// Loads the sample of a folder with one file changed.
fn check_folder(file: usize, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let listed = fs::read_dir(sample("customAchievements")).unwrap();
    let mut files: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let changed = &files[file];
    for path in &files {
        let to = dir.path().join(path.file_name().unwrap());
        match path == changed {
            true => drop(fs::copy(path, to).unwrap()),
            false => std::os::unix::fs::symlink(path, to).unwrap(),
        }
    }
    let changed = dir.path().join(changed.file_name().unwrap());
    fs::write(&changed, change(fs::read(&changed).unwrap())).unwrap();
    check(dir.path())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_toml_file_with_changed_bytes_is_a_catalogue_or_named(mutations in changes()) {
        check_file("c.toml", &mutated(fs::read(sample("demo.toml")).unwrap(), &mutations))?;
    }

    #[test]
    fn a_json_file_with_changed_bytes_is_a_catalogue_or_named(mutations in changes()) {
        check_file("c.json", &mutated(fs::read(sample("demo.json")).unwrap(), &mutations))?;
    }

    #[test]
    fn a_csv_file_with_changed_bytes_is_a_catalogue_or_named(mutations in changes()) {
        check_file("c.csv", &mutated(fs::read(sample("NodeSetting.csv")).unwrap(), &mutations))?;
    }

    #[test]
    fn a_folder_with_changed_bytes_is_a_catalogue_or_named(
        file in 0..FOLDER_FILES,
        mutations in changes(),
    ) {
        check_folder(file, |bytes| mutated(bytes, &mutations))?;
    }

    #[test]
    fn noise_is_named_in_every_format(noise in noise(), file in 0..FOLDER_FILES) {
        for name in ["c.toml", "c.json", "c.csv", "c", "c.xlsx"] {
            check_file(name, &noise)?;
        }
        check_folder(file, |_| noise)?;
    }
}

#[test]
fn nesting_without_end_is_named_in_every_format() {
    for deep in ["[", "{\"a\":", "{a=", "[[", "\"", "'''", "("].map(|token| token.repeat(100_000)) {
        for content in [
            deep.clone(),
            format!("{{\"definitions\":{deep}"),
            format!("{{\"definitions\":[{{\"node_id\":\"a\",\"metadata\":{deep}"),
            format!("definitions = {deep}"),
            format!("[[definitions]]\nnode_id = \"a\"\nmetadata = {deep}"),
            format!("NodeId,PrePic,FinPic,Title,Description,Total,Rank\n{deep}"),
        ] {
            for name in ["c.toml", "c.json", "c.csv"] {
                check_file(name, content.as_bytes()).unwrap();
            }
            check_folder(0, |_| content.into_bytes()).unwrap();
        }
    }
}

/// Loads a file or folder in time, or fails without waiting for its end.
fn load_in_time(path: &Path) -> Catalog {
    let (sender, loaded) = mpsc::sync_channel(1);
    let path = path.to_owned();
    std::thread::spawn(move || sender.send(load(&path)));
    loaded.recv_timeout(TIME_MAX).expect("it is read in time").expect("it is sound")
}

/// As many nodes as a title may have, in lines as long as `text` makes them.
fn largest(node: impl Fn(usize) -> String) -> String {
    (0..DEFINITIONS_MAX).map(node).collect()
}

/// A text of the length that the largest catalogue has room for in each of its nodes.
fn long_text() -> String {
    "长".repeat(230)
}

#[test]
fn the_largest_toml_file_is_read_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let text = long_text();
    let node = |n| format!("[[definitions]]\nnode_id = \"n{n}\"\ndescription = \"{text}\"\n");
    fs::write(&path, largest(node)).unwrap();
    assert_eq!(load_in_time(&path).nodes().len(), DEFINITIONS_MAX);
}

#[test]
fn the_largest_json_file_is_read_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.json");
    let text = long_text();
    let node = |n| format!("{{\"node_id\":\"n{n}\",\n\"description\":\"{text}\"}},\n");
    let nodes = largest(node);
    let nodes = nodes.trim_end().trim_end_matches(',');
    fs::write(&path, format!("{{\"definitions\":[\n{nodes}]}}")).unwrap();
    assert_eq!(load_in_time(&path).nodes().len(), DEFINITIONS_MAX);
}

#[test]
fn the_largest_csv_file_is_read_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.csv");
    let text = long_text();
    let nodes = largest(|n| format!("n{n},,,t,{text},1,{n}\n"));
    fs::write(&path, format!("NodeId,PrePic,FinPic,Title,Description,Total,Rank\n{nodes}"))
        .unwrap();
    assert_eq!(load_in_time(&path).nodes().len(), DEFINITIONS_MAX);
}

#[test]
fn the_largest_folder_is_read_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let text = long_text();
    for n in 0..DEFINITIONS_MAX {
        let node = format!("{{\"node_ID\":\"n{n}\",\n\"node_description\":\"{text}\"}}");
        fs::write(dir.path().join(format!("{n}.json")), node).unwrap();
    }
    assert_eq!(load_in_time(dir.path()).nodes().len(), DEFINITIONS_MAX);
}

#[test]
fn a_file_full_of_mistakes_is_read_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.json");
    fs::write(&path, format!("{{\"definitions\":[{}1]}}", "1,".repeat(100_000))).unwrap();
    let (sender, loaded) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(load(&path)));
    loaded.recv_timeout(TIME_MAX).expect("it is read in time").expect_err("there is no node");
}

/// A value that would be kept as another one is a mistake.
#[test]
fn a_value_that_cannot_be_kept_is_named() {
    let deep = "[".repeat(200) + &"]".repeat(200);
    for (name, content) in [
        ("c.json", format!("{{\"definitions\":[{{\"node_id\":\"a\",\"metadata\":{deep}}}]}}")),
        ("c.json", "{\"definitions\":[{\"node_id\":\"a\",\"metadata\":[1e999]}]}".to_owned()),
        ("c.toml", "[[definitions]]\nnode_id = \"a\"\nmetadata = [9223372036854775808]".to_owned()),
        ("c.toml", "[[definitions]]\nnode_id = \"a\"\nmetadata = [inf]".to_owned()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, &content).unwrap();
        match load(&path) {
            Err(error) => assert!(error.to_string().contains("`metadata`"), "{error}"),
            Ok(catalog) => {
                let kept = &catalog.nodes().next().unwrap().definition().draft().metadata;
                panic!("{content} is kept as {kept}");
            }
        }
    }
}
