//! README and the program say the same.

use std::{fs, path::Path};

use accolade::config::{SETTINGS, environment_name};

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn every_setting_stands_in_the_readme_with_its_default() {
    let readme = document("README.md");
    for setting in SETTINGS {
        let flag = format!("`--{}`", setting.key.replace('_', "-"));
        let row = readme.lines().find(|line| line.starts_with(&format!("| {flag}")));
        let row = row.unwrap_or_else(|| panic!("README has no row for {flag}"));
        let environment = environment_name(setting.key);
        assert!(row.contains(&environment), "{flag} is {environment} in the environment");
        let default = setting.default;
        assert!(default.is_empty() || row.contains(default), "the default of {flag} is {default}");
    }
}

#[test]
fn every_rpc_and_reason_stands_in_the_readme() {
    let readme = document("README.md");
    for file in ["storage", "completion", "catalog", "admin"] {
        let proto = document(&format!("proto/accolade/v1/{file}.proto"));
        for line in proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")) {
            let rpc = line.split('(').next().unwrap();
            assert!(readme.contains(rpc), "README does not show {rpc}");
        }
    }
    let status = document("src/service/status.rs") + &document("src/server/refusals.rs");
    let quoted = status.split('"').skip(1).step_by(2);
    let is_reason = |text: &&str| {
        text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    };
    let reasons: Vec<_> = quoted.filter(is_reason).collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    for reason in reasons {
        assert!(readme.contains(&format!("`{reason}`")), "README does not explain {reason}");
    }
}

#[test]
fn every_test_that_guarantees_names_exists() {
    let guarantees = document("GUARANTEES.md");
    let mut code = String::new();
    for dir in ["src", "tests"] {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut code);
    }
    let mut named = 0;
    let tests = guarantees.split('`').skip(1).step_by(2);
    let is_name = |text: &&str| {
        text.matches('_').count() >= 2
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    // Others that look like one are metrics.
    for name in tests.filter(is_name).filter(|name| !name.starts_with("accolade_")) {
        named += 1;
        let is_there = ["fn", "def"].iter().any(|word| code.contains(&format!("{word} {name}(")));
        assert!(is_there, "GUARANTEES.md names the test {name}, which does not exist");
    }
    assert!(named >= 100, "{named} tests are named");
}

/// Each fault and abuse that was thought of has a row: a test, or why there is none.
#[test]
fn every_fault_and_abuse_stands_in_guarantees() {
    let guarantees = document("GUARANTEES.md");
    let ids = (1..=18).map(|n| format!("F{n}")).chain((1..=24).map(|n| format!("S{n}")));
    for id in ids {
        let rows = guarantees.lines().filter(|line| line.starts_with(&format!("| {id} |")));
        assert_eq!(rows.count(), 1, "GUARANTEES.md has one row for {id}");
    }
}

/// What is raised at night is read by a test, and told to operators.
#[test]
fn every_size_of_a_test_stands_in_the_makefile_and_in_guarantees() {
    let mut code = String::new();
    for dir in ["src", "tests"] {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut code);
    }
    let (makefile, guarantees) = (document("Makefile"), document("GUARANTEES.md"));
    let nightly = makefile.lines().filter_map(|line| line.strip_prefix("soak: export "));
    let nightly: Vec<_> = nightly.filter_map(|line| line.split(' ').next()).collect();
    assert!(nightly.len() >= 10, "{nightly:?}");
    for variable in nightly {
        assert!(code.contains(&format!("\"{variable}\"")), "no test reads {variable}");
        assert!(guarantees.contains(&format!("`{variable}`")), "GUARANTEES.md lacks {variable}");
    }
}

fn collect(dir: &Path, code: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, code);
        } else if path.extension().is_some_and(|ext| ext == "rs" || ext == "py") {
            *code += &fs::read_to_string(&path).unwrap();
        }
    }
}
