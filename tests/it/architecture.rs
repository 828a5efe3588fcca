//! The rooms of `src/` and the doors between them, as ARCHITECTURE.md draws them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each room may use of the others. Nothing may use `cli`; arrows go down only.
const DOORS: [(&str, &[&str]); 15] = [
    (
        "cli",
        &[
            "access",
            "catalog",
            "client",
            "clock",
            "config",
            "domain",
            "proto",
            "server",
            "service",
            "store",
            "telemetry",
        ],
    ),
    ("client", &["proto"]),
    (
        "server",
        &[
            "access",
            "catalog",
            "clock",
            "config",
            "connect",
            "domain",
            "feed",
            "metrics",
            "proto",
            "service",
            "store",
            "telemetry",
        ],
    ),
    ("connect", &["proto", "service"]),
    ("service", &["access", "catalog", "domain", "feed", "metrics", "proto", "store"]),
    ("telemetry", &["config"]),
    ("config", &["access", "domain", "feed", "store"]),
    ("catalog", &["domain", "store"]),
    ("access", &["domain"]),
    ("feed", &["domain", "metrics", "store"]),
    ("store", &["clock", "domain", "metrics", "proto"]),
    ("clock", &["domain"]),
    ("metrics", &["proto"]),
    ("domain", &[]),
    ("proto", &[]),
];

/// Crates that only these rooms know.
const CRATES: [(&str, &[&str]); 7] = [
    ("sled", &["store"]),
    ("tonic", &["cli", "client", "connect", "proto", "server", "service"]),
    ("tokio", &["catalog", "cli", "client", "connect", "feed", "server", "service", "store"]),
    ("prometheus_client", &["metrics"]),
    ("rustls", &["server"]),
    ("clap", &["cli"]),
    ("prost", &["cli", "connect", "proto", "service", "store"]),
];

/// Code of a room without its tests, whitespace normalised.
fn rooms() -> BTreeMap<String, String> {
    let mut rooms: BTreeMap<String, String> = BTreeMap::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in files(&src) {
        let relative = path.strip_prefix(&src).unwrap();
        let first = relative.iter().next().unwrap().to_string_lossy();
        let room = first.trim_end_matches(".rs").to_owned();
        let name = relative.file_name().unwrap().to_string_lossy().into_owned();
        let is_test = name.ends_with("_tests.rs") || room == "testing";
        if is_test || room == "lib" || room == "main" {
            continue;
        }
        let code = fs::read_to_string(&path).unwrap();
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        rooms.entry(room).or_default().extend(lines.flat_map(|line| [line.trim(), " "]));
    }
    rooms
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The rooms that a piece of code names behind `crate::`.
fn used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => drop(used.insert(word(after))),
            Some(group) => used.extend(top_level(group)),
        }
    }
    used.remove("");
    used
}

/// The first words of a `{…}` group's own items, not of groups inside it.
fn top_level(group: &str) -> Vec<String> {
    let (mut depth, mut words, mut at_item) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_item = true,
            c if at_item && !c.is_whitespace() => {
                words.push(word(&group[at..]));
                at_item = false;
            }
            _ => {}
        }
    }
    words
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn rooms_use_each_other_only_through_the_doors() {
    let doors: BTreeMap<_, _> = DOORS.into_iter().collect();
    for (room, code) in rooms() {
        let allowed = doors.get(room.as_str()).unwrap_or_else(|| panic!("{room} has no doors"));
        for other in used(&code) {
            let known = other == room || allowed.contains(&other.as_str());
            assert!(known, "{room} uses {other}, which has no door to it");
        }
    }
}

#[test]
fn crates_are_known_only_where_they_belong() {
    for (room, code) in rooms() {
        for (name, allowed) in CRATES {
            // As an import, or in the middle of code; not inside a group of `crate::`.
            let starts = ["use ", "(", "<", "= ", "-> ", ": ", "&"];
            let paths = starts.map(|start| format!("{start}{name}::"));
            let is_used = paths.iter().any(|path| code.contains(path.as_str()));
            assert!(!is_used || allowed.contains(&room.as_str()), "{room} uses the crate {name}");
        }
    }
}

#[test]
fn the_doors_have_no_cycle() {
    // Each room's doors lead to rooms further down the list.
    let order: Vec<_> = DOORS.iter().map(|(room, _)| *room).collect();
    for (at, (room, doors)) in DOORS.iter().enumerate() {
        for door in *doors {
            let below = order.iter().position(|it| it == door).unwrap() > at;
            assert!(below, "{room} → {door} does not go down");
        }
    }
}

#[test]
fn this_test_reads_imports_as_rust_does() {
    let code = "use crate::{ clock::Clock, domain::{Catalog, Title}, store::{A, sled::B}, }; \
                crate::feed::watch()";
    let expected = ["clock", "domain", "feed", "store"];
    assert_eq!(used(code).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn files_stay_readable() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = ["src", "tests"].iter().flat_map(|dir| files(&root.join(dir)));
    for path in all.filter(|path| path.extension().is_some_and(|ext| ext == "rs")) {
        let code = fs::read_to_string(&path).unwrap();
        let shown = path.strip_prefix(root).unwrap().display();
        let purpose = code.starts_with("//!");
        assert!(purpose, "{shown} does not begin with its purpose");
        let lines = code.lines().count();
        assert!(lines <= 600, "{shown} has {lines} lines: split it");
        assert!(!code.contains("TODO") || path.ends_with("architecture.rs"), "{shown} has a TODO");
        let long = code.lines().position(|line| line.chars().count() > 100);
        assert_eq!(long, None, "{shown} has a line of more than 100 characters");
    }
    let lines = |path: &str| fs::read_to_string(root.join(path)).unwrap().lines().count();
    assert!(lines("src/lib.rs") <= 50, "lib.rs is a map");
    assert!(lines("src/main.rs") <= 100, "main.rs is a story");
}
