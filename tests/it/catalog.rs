//! Catalogue files of every kind, and catalogues that change while the server runs.

use std::{fs, path::Path, time::Duration};

use accolade::{
    catalog::load,
    proto::v1::{ApplyCatalogRequest, Definition, GetCatalogRequest, ListTitlesRequest},
};
use tonic::Code;

use crate::support::{PATIENCE, Server, delta, fields, get, reason, set};

fn sample(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name)
}

#[test]
fn the_samples_say_the_same_in_every_format() {
    let toml = load(&sample("demo.toml")).unwrap();
    assert!(toml.nodes().len() >= 20);
    assert!(toml.nodes().any(|node| node.definition().draft().hidden));
    assert!(toml.nodes().any(|node| node.definition().parent_id().is_some()));
    assert_eq!(load(&sample("demo.json")).unwrap(), toml);
    assert_eq!(accolade::catalog::demo(), toml);

    let essence = |catalog: &accolade::domain::Catalog| {
        let of = |node: &std::sync::Arc<accolade::domain::Node>| {
            let definition = node.definition();
            let draft = definition.draft();
            let texts = (draft.display_name.clone(), draft.description.clone());
            (definition.node_id().clone(), definition.max_progress(), texts)
        };
        catalog.nodes().map(of).collect::<Vec<_>>()
    };
    let csv = load(&sample("NodeSetting.csv")).unwrap();
    assert!(String::from_utf8(fs::read(sample("NodeSetting.csv")).unwrap()).is_err(), "is GBK");
    assert_eq!(essence(&csv), essence(&toml));
    assert!(csv.nodes().all(|node| node.definition().draft().rank > 0));
    let folder = load(&sample("customAchievements")).unwrap();
    assert_eq!(essence(&folder), essence(&toml));
    let parents = |catalog: &accolade::domain::Catalog| {
        let of = |node: &std::sync::Arc<accolade::domain::Node>| {
            (node.definition().parent_id().cloned(), node.definition().draft().hidden)
        };
        catalog.nodes().map(of).collect::<Vec<_>>()
    };
    assert_eq!(parents(&folder), parents(&toml));
    let hunter = folder.nodes().find(|it| it.definition().node_id().as_str() == "first_steps");
    let metadata = &hunter.unwrap().definition().draft().metadata;
    assert!(metadata.contains("reward") && metadata.contains("depend_parent"), "{metadata}");
}

/// Loads a file of this content, and expects exactly these lines of mistakes.
fn check_mistakes(name: &str, content: &[u8], expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    let error = load(&path).expect_err("has mistakes").to_string();
    let error = error.replace(&dir.path().display().to_string(), "");
    let lines: Vec<_> = error.lines().skip(1).map(str::trim).collect();
    assert_eq!(lines.len(), expected.len(), "{error}");
    for (line, part) in lines.iter().zip(expected) {
        assert!(line.starts_with(part), "{part:?} does not begin {line:?}");
    }
}

#[test]
fn a_bad_file_names_line_and_field_of_every_mistake() {
    let toml = b"[[definitions]]\nnode_id = \"a\"\nmax_progress = 0\nhidden = 1\n\n\
        [[definitions]]\nnode_id = \"\"\ncolour = \"red\"\n\n\
        [[definitions]]\nnode_id = \"b\"\nparent_id = \"none\"\n\n\
        [[definitions]]\nnode_id = \"b\"\n";
    check_mistakes(
        "c.toml",
        toml,
        &[
            "/c.toml:3: `max_progress` must be 1 or more",
            "/c.toml:4: `hidden` must be true or false",
            "/c.toml:7: `node_id` must not be empty",
            "/c.toml:8: `colour` is no field; there are node_id",
            "/c.toml:12: `parent_id` names \"none\", which",
            "/c.toml:15: `node_id` is the same as that of definition 3",
        ],
    );
    let json = b"{\"definitions\": [\n {\"node_id\": \"a\",\n  \"max_progress\": \"x\"},\n 7,\n\
        {\"node_id\": \"b\",\n\n \"rank\": 1.5}], \"more\": 1}";
    check_mistakes(
        "c.json",
        json,
        &[
            "/c.json:3: `max_progress` must be a whole number",
            "/c.json:4: a node must be an object",
            "/c.json:7: `more` is no field",
            "/c.json:7: `rank` must be a whole number",
        ],
    );
    let csv = b"NodeId,PrePic,FinPic,Title,Description,Total,Rank\n\
        1,a,b,t,d,x,1\n2,a,b,t,d\n1,a,b,t,d,,2\n3,a,b,t,d,0,2\n";
    check_mistakes(
        "c.csv",
        csv,
        &[
            "/c.csv:2: `Total` must be a whole number",
            "/c.csv:3: has 5 columns instead of 7",
            "/c.csv:4: `NodeId` is the same as that of definition 1",
            "/c.csv:5: `Total` must be 1 or more",
        ],
    );
    check_mistakes(
        "c.csv",
        b"NodeId,Colour\n",
        &[
            "/c.csv:1: column `PrePic` is missing",
            "/c.csv:1: column `FinPic` is missing",
            "/c.csv:1: column `Title` is missing",
            "/c.csv:1: column `Description` is missing",
            "/c.csv:1: column `Total` is missing",
            "/c.csv:1: column `Rank` is missing",
            "/c.csv:1: `Colour` is no column",
        ],
    );
    check_mistakes("c.csv", b"\xff\xff\xff", &["/c.csv: is neither GBK nor UTF-8"]);
    check_mistakes("c.toml", b"definitions = [", &["/c.toml:1: is not TOML"]);
    check_mistakes("c.toml", b"", &["/c.toml: `[[definitions]]` is missing"]);
    check_mistakes("c.json", b"{\n\n x", &["/c.json:3: is not a JSON object"]);
    check_mistakes("c.txt", b"", &["/c.txt: is of no known kind"]);
}

#[test]
fn a_bad_folder_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.json"), "{\"node_ID\": \"a\",\n\"goal_number\": \"x\"}").unwrap();
    fs::write(dir.path().join("b.json"), "{\"title\": \"no id\"}").unwrap();
    fs::write(dir.path().join("c.json"), "{\"node_ID\": \"c\",\n\"parent_node\": \"z\"}").unwrap();
    fs::write(dir.path().join("d.json"), "{\n\n").unwrap();
    let error = load(dir.path()).unwrap_err().to_string();
    for part in [
        "4 mistakes",
        "a.json:2: `goal_number` must be a whole number",
        "b.json:1: `node_ID` is missing",
        "c.json:2: `parent_node` names \"z\"",
        "d.json:3: is not JSON",
    ] {
        assert!(error.contains(part), "{part:?} is missing from {error}");
    }
}

#[test]
fn utf_8_tables_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("NodeSetting.csv");
    let text = "\u{feff}NodeId,PrePic,FinPic,Title,Description,Total,Rank\n1,a,b,成就,描述,,1\n";
    fs::write(&path, text).unwrap();
    let catalog = load(&path).unwrap();
    let definition = catalog.nodes().next().unwrap().definition();
    assert_eq!(definition.draft().display_name, "成就");
    assert_eq!(definition.max_progress().get(), 1, "the default of Total");
}

fn definition(id: &str, max_progress: i64) -> Definition {
    Definition { node_id: id.into(), max_progress, ..Definition::default() }
}

#[tokio::test]
async fn catalogues_are_applied_dry_and_wet_by_revision() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data, &[]);
    server.apply("t", &[("a", 5), ("b", 5)]).await;
    let mut storage = server.storage().await;
    for player in ["p", "q"] {
        set(&mut storage, delta("t", player, "a", 3)).await;
    }
    set(&mut storage, delta("t", "r", "b", 3)).await;
    let mut client = server.catalogs().await;
    let request = ApplyCatalogRequest {
        title: "t".into(),
        definitions: vec![definition("a", 2), definition("c", 1)],
        dry_run: true,
        expected_revision: Some(1),
    };
    let dry = client.apply_catalog(request.clone()).await.unwrap().into_inner();
    assert_eq!((dry.revision, dry.players_touched), (1, 3));
    assert_eq!(
        (dry.added_node_ids, dry.changed_node_ids, dry.removed_node_ids),
        (vec!["c".to_owned()], vec!["a".to_owned()], vec!["b".to_owned()])
    );
    let stale = ApplyCatalogRequest { expected_revision: Some(0), ..request.clone() };
    let status = client.apply_catalog(stale).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Aborted, "CATALOG_REVISION_MISMATCH")
    );

    let wet = ApplyCatalogRequest { dry_run: false, ..request };
    let applied = client.apply_catalog(wet.clone()).await.unwrap().into_inner();
    assert_eq!(applied.revision, 2);
    let same = ApplyCatalogRequest { expected_revision: None, ..wet };
    let applied = client.apply_catalog(same).await.unwrap().into_inner();
    assert_eq!(applied.revision, 2, "an equal catalogue changes nothing");

    // The lower target completes nobody by itself; the next set does.
    let records = get(&mut storage, "t", "p").await;
    assert_eq!((records[0].completed_at, records[0].max_progress), (0, 2));
    let completed = set(&mut storage, delta("t", "p", "a", 1)).await;
    assert!(completed.newly_completed);
    // A node that went away keeps its records, and brings them back.
    assert!(get(&mut storage, "t", "r").await.is_empty());
    server.apply("t", &[("a", 9), ("b", 5)]).await;
    assert_eq!(get(&mut storage, "t", "r").await[0].progress, 3);
    assert_ne!(get(&mut storage, "t", "p").await[0].completed_at, 0, "completion is sticky");

    server.kill();
    let server = Server::start(&data, &[]);
    let mut client = server.catalogs().await;
    let titles = client.list_titles(ListTitlesRequest {}).await.unwrap().into_inner().titles;
    let titles: Vec<_> =
        titles.iter().map(|it| (it.title.as_str(), it.revision, it.node_count)).collect();
    assert_eq!(titles, [("demo", 1, 22), ("t", 3, 2)]);
    let request = GetCatalogRequest { title: "t".into() };
    let catalog = client.get_catalog(request).await.unwrap().into_inner();
    assert_eq!(catalog.definitions, [definition("a", 9), definition("b", 5)]);
}

#[tokio::test]
async fn a_bad_catalogue_is_told_in_one_answer_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &[]);
    let request = ApplyCatalogRequest {
        title: "demo".into(),
        definitions: vec![
            definition("a", -1),
            Definition { parent_id: "none".into(), ..definition("b", 1) },
            definition("\n", 1),
        ],
        ..ApplyCatalogRequest::default()
    };
    let mut client = server.catalogs().await;
    let status = client.apply_catalog(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let expected =
        ["definitions[0].max_progress", "definitions[1].parent_id", "definitions[2].node_id"];
    assert_eq!(fields(&status), expected);
    let request = GetCatalogRequest { title: "demo".into() };
    assert_eq!(client.get_catalog(request).await.unwrap().into_inner().revision, 1);
}

#[tokio::test]
async fn a_changed_file_is_read_again_and_a_bad_one_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    fs::write(&file, "[[definitions]]\nnode_id = \"a\"\n").unwrap();
    let argument = format!("t={}", file.display());
    let server = Server::start(&dir.path().join("data"), &["--catalog", &argument]);
    let mut client = server.catalogs().await;
    let wait_for = async |revision: i64| {
        let mut client = server.catalogs().await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let request = GetCatalogRequest { title: "t".into() };
            let catalog = client.get_catalog(request).await.unwrap().into_inner();
            if catalog.revision == revision {
                return catalog.definitions.len();
            }
            assert!(tokio::time::Instant::now() < deadline, "revision {revision} does not come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(wait_for(1).await, 1);

    fs::write(&file, "[[definitions]]\nnode_id = \"a\"\nmax_progres = 1\n").unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while !server.log().contains("`max_progres` is no field") {
        assert!(std::time::Instant::now() < deadline, "{}", server.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(wait_for(1).await, 1, "the old catalogue stays");

    let two = "[[definitions]]\nnode_id = \"a\"\n[[definitions]]\nnode_id = \"b\"\n";
    fs::write(&file, two).unwrap();
    assert_eq!(wait_for(2).await, 2);
    let mut storage = server.storage().await;
    assert!(set(&mut storage, delta("t", "p", "b", 1)).await.newly_completed);

    let other = ApplyCatalogRequest {
        title: "t".into(),
        definitions: vec![definition("a", 1)],
        ..ApplyCatalogRequest::default()
    };
    let status = client.apply_catalog(other).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "CATALOG_MANAGED_BY_FILE");
}
