//! Titles that move from one server to another.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use accolade::proto::v1::{
    Backup, ConsumeCompletionsRequest, ExportEnd, ExportRecordsRequest, GetRarityRequest,
    ImportRecordsRequest, ImportRecordsResponse, LateUpdate, ListSubscriptionsRequest,
    ResetAchievementRequest, SetAchievementStorageRequest, StreamSetAchievementStorageRequest,
    Subscribe, TitleItem, consume_completions_request::Action, consume_completions_response,
    exported_event, late_update::Change, title_item::Item, watch_completions_response::Event,
};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Status};

use crate::{
    admin::{complete, erase, feed, reset, restarted, started, take_back},
    support::{
        AdminClient, LONG_PATIENCE, PATIENCE, Server, Watch, delta, fields, get, reason, set,
    },
    sync::{late, now, sync},
};

/// A server that does not have the title yet.
fn empty() -> (Server, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Server::start(&dir.path().join("data"), &[]), dir)
}

/// What an export gives; behind a checkpoint, or "" for all.
pub async fn exported(server: &Server, title: &str, after: &str) -> Result<Vec<Item>, Status> {
    let request = ExportRecordsRequest { title: title.to_owned(), after: after.to_owned() };
    let mut answers = server.operator().await.export_records(request).await?.into_inner();
    let mut items = Vec::new();
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.expect("an item comes")? {
        items.push(answer.item.and_then(|item| item.item).expect("one item is set"));
    }
    Ok(items)
}

/// The same of a whole title, but for what is a store's own.
async fn contents(server: &Server, title: &str) -> Vec<Item> {
    let mut items = exported(server, title, "").await.unwrap();
    for item in &mut items {
        match item {
            Item::Start(start) => {
                start.title.clear();
                start.store_id = 0;
            }
            Item::Event(event) => match event.event.as_mut().unwrap() {
                exported_event::Event::Completion(it) => {
                    it.title.clear();
                    it.cursor.clear();
                }
                exported_event::Event::Reset(it) => {
                    it.title.clear();
                    it.cursor.clear();
                }
                exported_event::Event::Erased(_) => {}
            },
            Item::Checkpoint(checkpoint) => checkpoint.token.clear(),
            _ => {}
        }
    }
    items
}

/// Sends items, and ends with the last answer.
async fn imported(
    server: &Server,
    title: &str,
    items: &[Item],
) -> Result<ImportRecordsResponse, Status> {
    let requests = items.iter().map(|item| ImportRecordsRequest {
        title: title.to_owned(),
        item: Some(TitleItem { item: Some(item.clone()) }),
    });
    let requests: Vec<_> = requests.collect();
    send(server, requests).await
}

async fn send(
    server: &Server,
    requests: Vec<ImportRecordsRequest>,
) -> Result<ImportRecordsResponse, Status> {
    let answers = server.operator().await.import_records(tokio_stream::iter(requests)).await;
    let mut answers = answers?.into_inner();
    let mut last = ImportRecordsResponse::default();
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.expect("an answer comes")? {
        last = answer;
    }
    Ok(last)
}

fn len(items: &[Item]) -> i64 {
    i64::try_from(items.len()).unwrap()
}

/// A set with all that a set can have.
pub fn with_hat() -> SetAchievementStorageRequest {
    SetAchievementStorageRequest {
        extra: Some("红帽".into()),
        expected_version: Some(0),
        request_id: "hat".into(),
        ..delta("t", "a", "m", 2)
    }
}

pub fn refund() -> ResetAchievementRequest {
    ResetAchievementRequest { request_id: "refund".into(), ..reset("p", "n") }
}

pub fn late_ones() -> [LateUpdate; 2] {
    let at = now();
    [
        late("l", "m", Change::Delta(1), "late", at - 500),
        late("l", "n", Change::Finish(true), "later", at - 1000),
    ]
}

/// Makes a named subscription that stands at a cursor.
async fn subscribe(server: &Server, name: &str, cursor: &str) {
    let (title, name, after) = ("t".to_owned(), name.to_owned(), Some(cursor.to_owned()));
    let subscribe = Subscribe { title, name, after, ..Subscribe::default() };
    let action = Some(Action::Subscribe(subscribe));
    let requests = tokio_stream::iter([ConsumeCompletionsRequest { action }]);
    let answers = server.completions().await.consume_completions(requests).await.unwrap();
    let mut answers = answers.into_inner();
    let first = timeout(PATIENCE, answers.message()).await.expect("it starts in time");
    let first = first.unwrap().unwrap().event;
    assert!(matches!(first, Some(consume_completions_response::Event::Started(_))), "{first:?}");
}

/// Fills a title with everything that a title can have.
pub async fn fill(server: &Server) {
    set(&mut server.storage().await, with_hat()).await;
    let acked = complete(server, "b", "n").await.cursor;
    complete(server, "p", "n").await;
    take_back(server, refund()).await;
    complete(server, "gone", "m").await;
    complete(server, "p", "n").await;
    complete(server, "q", "m").await;
    take_back(server, reset("q", "m")).await;
    sync(server, &late_ones()).await;
    complete(server, "gone", "n").await;
    assert_eq!(erase(server, "gone").await, (2, 2));
    subscribe(server, "rewards", &acked).await;
}

#[tokio::test]
async fn a_title_moves_with_everything_it_has() {
    let (source, _source_dir) = started().await;
    fill(&source).await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, dir) = empty();
    let told = imported(&target, "t", &items).await.unwrap();
    // All but the beginning, of a feed that has lost nothing, and the end can be stored.
    assert_eq!((told.items, told.stored + told.present), (len(&items), len(&items) - 2));
    assert_eq!(told.kept, 0);
    let target = restarted(target, &dir);
    assert_eq!(contents(&target, "t").await, contents(&source, "t").await);

    // The same as the calls of every day tell it.
    let (mut old, mut new) = (source.storage().await, target.storage().await);
    for player in ["a", "b", "p", "q", "l", "gone"] {
        let moved = get(&mut new, "t", player).await;
        assert_eq!(moved, get(&mut old, "t", player).await, "{player}");
        assert_eq!(moved.is_empty(), player == "gone");
    }
    let mut told = Vec::new();
    for server in [&source, &target] {
        let rarity = GetRarityRequest { title: "t".into() };
        let rarity = server.catalogs().await.get_rarity(rarity).await.unwrap().into_inner();
        let list = ListSubscriptionsRequest { title: "t".into() };
        let listed = server.completions().await.list_subscriptions(list).await.unwrap();
        let listed = listed.into_inner().subscriptions.into_iter();
        let subscriptions: Vec<_> = listed.map(|it| (it.name, it.lag)).collect();
        let mut events = feed(server, "t", &[]).await;
        for event in &mut events {
            match event {
                Event::Completion(it) => it.cursor.clear(),
                Event::Reset(it) => it.cursor.clear(),
                other => panic!("{other:?} has no place in a feed"),
            }
        }
        told.push((rarity, subscriptions, events));
    }
    assert_eq!(told[0], told[1]);
}

/// Goal: whoever sends something again hears what it heard of the server before.
#[tokio::test]
async fn retries_of_before_the_move_are_recognised_and_versions_go_on() {
    let (source, _source_dir) = started().await;
    fill(&source).await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, dir) = empty();
    imported(&target, "t", &items).await.unwrap();

    let retried = set(&mut target.storage().await, with_hat()).await;
    assert!(retried.replayed && retried.changed);
    let updated = retried.updated.unwrap();
    assert_eq!((updated.extra.as_str(), updated.progress, updated.version), ("红帽", 2, 1));
    let retried = take_back(&target, refund()).await;
    assert!(retried.replayed);
    let mut watch = Watch::after(&target, "t", &retried.cursor).await;
    let next = watch.completion().await;
    assert_eq!((next.player_id.as_str(), next.version), ("p", 3), "its place is the same");
    assert!(sync(&target, &late_ones()).await.iter().all(|told| told.replayed));

    let again = imported(&target, "t", &items).await.unwrap();
    assert_eq!((again.stored, again.present, again.kept), (0, len(&items) - 2, 0));
    let newer = complete(&target, "a", "m").await;
    assert!(newer.newly_completed);
    assert_eq!(newer.updated.unwrap().version, 2);
    let again = imported(&target, "t", &items).await.unwrap();
    assert_eq!((again.stored, again.present, again.kept), (0, len(&items) - 3, 1));
    let target = restarted(target, &dir);
    assert_eq!(get(&mut target.storage().await, "t", "a").await[0].version, 2, "it stays newer");
}

/// Goal: whatever part has arrived is sound, and the rest, or all of it once more, ends the same.
#[tokio::test]
async fn an_import_that_was_cut_off_anywhere_is_sound_and_goes_on() {
    let (source, _source_dir) = started().await;
    fill(&source).await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, dir) = empty();
    let cuts: Vec<_> = (1..items.len()).map(|cut| (cut, format!("t{cut}"))).collect();
    for (cut, title) in &cuts {
        let told = imported(&target, title, &items[..*cut]).await.unwrap();
        assert_eq!(told.items, len(&items[..*cut]));
    }
    let target = restarted(target, &dir);
    for (cut, title) in &cuts {
        let rest = if cut.is_multiple_of(2) { &items[..] } else { &items[*cut..] };
        let told = imported(&target, title, rest).await.unwrap();
        assert_eq!((told.items, told.kept), (len(rest), 0), "{title}");
    }
    let target = restarted(target, &dir);
    let expected = contents(&source, "t").await;
    for (_, title) in &cuts {
        assert_eq!(contents(&target, title).await, expected, "{title}");
    }
}

/// So many players who complete a node, by one stream.
pub async fn complete_many(server: &Server, players: usize) {
    let sets = (0..players).map(|n| StreamSetAchievementStorageRequest {
        tag: 0,
        set: Some(delta("t", &format!("p{n}"), "n", 1)),
    });
    let sets = tokio_stream::iter(sets.collect::<Vec<_>>());
    let answers = server.storage().await.stream_set_achievement_storage(sets).await.unwrap();
    let mut answers = answers.into_inner();
    for _ in 0..players {
        let answer = timeout(PATIENCE, answers.message()).await.expect("an answer comes");
        answer.unwrap().expect("each set is answered");
    }
}

/// Where an export can go on: the places of its checkpoints, and their tokens.
fn checkpoints(items: &[Item]) -> Vec<(usize, String)> {
    let checkpoints = items.iter().enumerate().filter_map(|(at, item)| match item {
        Item::Checkpoint(checkpoint) => Some((at, checkpoint.token.clone())),
        _ => None,
    });
    checkpoints.collect()
}

#[tokio::test]
async fn an_export_goes_on_behind_each_checkpoint() {
    let (source, _source_dir) = started().await;
    complete_many(&source, 1500).await;
    let items = exported(&source, "t", "").await.unwrap();
    let checkpoints = checkpoints(&items);
    assert!(checkpoints.len() >= 2, "one among the events, one among the records");
    let (target, dir) = empty();
    for (at, token) in &checkpoints {
        let rest = exported(&source, "t", token).await.unwrap();
        let (end, given) = rest.split_last().unwrap();
        assert!(*given == items[at + 1..items.len() - 1], "the rest, behind item {at}");
        let events = given.iter().filter(|item| matches!(item, Item::Event(_))).count();
        let records = given.iter().filter(|item| matches!(item, Item::Record(_))).count();
        let [events, records] = [events, records].map(|count| i64::try_from(count).unwrap());
        assert_eq!(*end, Item::End(ExportEnd { events, records }));

        let both = [&items[..=*at], &rest[..]].concat();
        imported(&target, &format!("t{at}"), &both).await.unwrap();
    }
    let target = restarted(target, &dir);
    let expected = contents(&source, "t").await;
    for (at, _) in &checkpoints {
        assert!(contents(&target, &format!("t{at}")).await == expected, "cut at item {at}");
    }
    for token in ["nonsense", "nonsense.", "a.!"] {
        let refused = exported(&source, "t", token).await.unwrap_err();
        assert_eq!(
            (refused.code(), fields(&refused)),
            (Code::InvalidArgument, vec!["after".into()])
        );
    }
}

#[tokio::test]
async fn an_import_that_does_not_go_with_what_is_there_is_refused() {
    let (source, _source_dir) = started().await;
    complete(&source, "p", "m").await;
    complete(&source, "p", "n").await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, dir) = started().await;
    let refused = async |title: &str, items: &[Item]| {
        let status = imported(&target, title, items).await.unwrap_err();
        (status.code(), reason(&status))
    };
    let expected = (Code::FailedPrecondition, "IMPORT_REFUSED".to_owned());

    complete(&target, "own", "n").await;
    assert_eq!(refused("t", &items).await, expected, "a completion of its own");
    let mut client = target.storage().await;
    assert!(get(&mut client, "t", "p").await.is_empty(), "nothing is stored");
    target.apply("u", &[("m", 3), ("n", 1)]).await;
    set(&mut client, delta("u", "p", "m", 1)).await;
    assert_eq!(refused("u", &items).await, expected, "a set of its own");
    let records = get(&mut client, "u", "p").await;
    assert_eq!((records.len(), records[0].progress), (1, 1), "nothing is stored");

    let without = |left_out: fn(&Item) -> bool| -> Vec<_> {
        items.iter().filter(|item| !left_out(item)).cloned().collect()
    };
    let no_events = without(|item| matches!(item, Item::Event(_)));
    assert_eq!(refused("v", &no_events).await, expected, "records without their events");
    let hole = without(|item| matches!(item, Item::Event(event) if event.position == 1));
    assert_eq!(refused("w", &hole).await, expected, "a hole in the feed");

    // None of this is in the way of what goes with it.
    for title in ["v", "w"] {
        imported(&target, title, &items).await.unwrap();
    }
    let target = restarted(target, &dir);
    for title in ["v", "w"] {
        assert_eq!(contents(&target, title).await, contents(&source, "t").await);
    }
}

#[tokio::test]
async fn what_is_no_item_of_an_export_is_told() {
    let (source, _source_dir) = started().await;
    complete(&source, "p", "n").await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, _dir) = empty();
    let wrong = |answer: Result<ImportRecordsResponse, Status>| {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        fields(&status)
    };
    assert_eq!(wrong(imported(&target, "", &items).await), ["title"]);
    assert_eq!(wrong(imported(&target, "t", &[]).await), ["item"]);
    let backup = Item::Backup(Backup::default());
    for item in [None, Some(TitleItem { item: None }), Some(TitleItem { item: Some(backup) })] {
        let request = ImportRecordsRequest { title: "t".into(), item };
        assert_eq!(wrong(send(&target, vec![request]).await), ["item"]);
    }
    let spoiled = items.iter().cloned().map(|mut item| {
        if let Item::Record(record) = &mut item {
            record.completed_version = 0;
        }
        item
    });
    let half_completed: Vec<_> = spoiled.collect();
    assert_eq!(wrong(imported(&target, "t", &half_completed).await), ["item"]);
}

#[tokio::test]
async fn a_title_that_is_there_keeps_its_catalogue() {
    let (source, _source_dir) = started().await;
    set(&mut source.storage().await, delta("t", "p", "m", 2)).await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, _dir) = empty();
    target.apply("t", &[("m", 5)]).await;
    imported(&target, "t", &items).await.unwrap();
    let record = get(&mut target.storage().await, "t", "p").await.remove(0);
    assert_eq!((record.progress, record.max_progress, record.version), (2, 5, 1));
}

/// Sets and resets until it is told to stop; counts the rounds of all.
async fn write(
    server: Arc<Server>,
    writer: usize,
    all: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
) {
    let (mut client, mut operator) = (server.storage().await, server.operator().await);
    let mut rounds: usize = 0;
    while !is_over.load(Ordering::SeqCst) {
        let player = format!("w{writer}-{}", rounds % 300);
        set(&mut client, delta("t", &player, "m", 1)).await;
        set(&mut client, delta("t", &player, "n", 1)).await;
        if rounds.is_multiple_of(7) {
            let node = ["m", "n"][rounds % 2];
            operator.reset_achievement(reset(&player, node)).await.expect("the reset is legal");
        }
        rounds += 1;
        all.fetch_add(1, Ordering::SeqCst);
    }
}

/// An export that is held back at its first record, by not reading on, until something has
/// happened.
async fn exported_around(server: &Server, happens: impl AsyncFnOnce()) -> Vec<Item> {
    let request = ExportRecordsRequest { title: "t".to_owned(), after: String::new() };
    let mut client = AdminClient::new(server.narrow_channel(16 << 10).await);
    let mut answers = client.export_records(request).await.unwrap().into_inner();
    let (mut items, mut happens) = (Vec::new(), Some(happens));
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
        let item = answer.item.unwrap().item.unwrap();
        if matches!(item, Item::Record(_))
            && let Some(happens) = happens.take()
        {
            timeout(LONG_PATIENCE, happens()).await.expect("it happens");
        }
        items.push(item);
    }
    let behind = items.iter().skip_while(|item| !matches!(item, Item::Record(_)));
    let is_told = behind.into_iter().any(|item| matches!(item, Item::Event(_)));
    assert!(is_told, "the export was over before that");
    items
}

/// Each record is at least as new as it was exported, and completed exactly where the last of its
/// events is a completion.
async fn agrees(server: &Server, title: &str, items: &[Item]) {
    let mut completed_at = HashMap::new();
    for event in feed(server, title, &[]).await {
        let (player, node, at) = match event {
            Event::Completion(it) => (it.player_id, it.achievement_id, it.completed_at),
            Event::Reset(it) => (it.player_id, it.achievement_id, 0),
            other => panic!("{other:?} has no place in a feed"),
        };
        completed_at.insert((player, node), at);
    }
    let exported = items.iter().filter_map(|item| match item {
        Item::Record(it) => Some(((it.player_id.clone(), it.achievement_id.clone()), it.version)),
        _ => None,
    });
    let exported: HashMap<_, _> = exported.collect();
    let of_any = exported.keys().chain(completed_at.keys()).map(|(player, _)| player);
    let players: BTreeSet<_> = of_any.cloned().collect();
    let mut records = HashMap::new();
    let mut client = server.storage().await;
    for player in players {
        for record in get(&mut client, title, &player).await {
            records.insert((player.clone(), record.achievement_id.clone()), record);
        }
    }
    for (key, version) in &exported {
        assert!(records[key].version >= *version, "{title}: {key:?} is older");
    }
    for (key, record) in &records {
        let told = completed_at.remove(key).unwrap_or(0);
        assert_eq!(record.completed_at, told, "{title}: {key:?}");
    }
    assert!(completed_at.is_empty(), "{title}: events without a record: {completed_at:?}");
}

/// Goal: nobody has to stop writing for an export.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_while_sets_go_on_is_sound() {
    let (source, _source_dir) = started().await;
    // More than is under way to somebody who does not read.
    complete_many(&source, 6000).await;
    let (source, is_over) = (Arc::new(source), Arc::new(AtomicBool::new(false)));
    let (mut writers, rounds) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for writer in 0..4 {
        writers.spawn(write(source.clone(), writer, rounds.clone(), is_over.clone()));
    }
    let mut exports = Vec::new();
    for _ in 0..2 {
        let sets = async || {
            let start = rounds.load(Ordering::SeqCst);
            while rounds.load(Ordering::SeqCst) < start + 20 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        exports.push(exported_around(&source, sets).await);
    }
    is_over.store(true, Ordering::SeqCst);
    writers.join_all().await;

    let (target, dir) = empty();
    for (n, items) in exports.iter().enumerate() {
        let told = imported(&target, &format!("t{n}"), items).await.unwrap();
        assert_eq!(told.items, len(items));
    }
    let target = restarted(target, &dir);
    for (n, items) in exports.iter().enumerate() {
        agrees(&target, &format!("t{n}"), items).await;
    }
}

/// Goal: of a player who is erased in the middle of an export nothing goes out any more.
#[tokio::test]
async fn an_export_over_an_erasure_is_to_be_begun_anew() {
    let (source, source_dir) = started().await;
    complete_many(&source, 1500).await;
    let items = exported(&source, "t", "").await.unwrap();
    let (_, token) = checkpoints(&items).remove(0);
    assert_eq!(erase(&source, "p0").await, (1, 1));
    complete(&source, "p0", "n").await;
    let source = restarted(source, &source_dir);
    let outdated = exported(&source, "t", &token).await.unwrap_err();
    assert_eq!((outdated.code(), &*reason(&outdated)), (Code::Aborted, "EXPORT_OUTDATED"));
    let items = exported(&source, "t", "").await.unwrap();
    let (target, dir) = empty();
    imported(&target, "t", &items).await.unwrap();
    let target = restarted(target, &dir);
    agrees(&target, "t", &items).await;
}

/// Goal: a record that completes after it was given is given once more, with the ids it knows.
#[tokio::test]
async fn ids_of_sets_in_the_middle_of_an_export_are_known_after_the_move() {
    let (source, _source_dir) = started().await;
    complete_many(&source, 6000).await;
    let completes =
        SetAchievementStorageRequest { request_id: "late".to_owned(), ..delta("t", "p0", "m", 3) };
    let set_late = async || {
        assert!(set(&mut source.storage().await, completes.clone()).await.newly_completed);
    };
    let items = exported_around(&source, set_late).await;
    let (target, _dir) = empty();
    imported(&target, "t", &items).await.unwrap();
    let retried = set(&mut target.storage().await, completes).await;
    assert!(retried.replayed && retried.newly_completed, "{retried:?}");
}

/// Goal: nothing lands in a title that nobody knows.
#[tokio::test]
async fn items_of_an_unknown_title_begin_with_its_catalogue() {
    let (source, _source_dir) = started().await;
    complete_many(&source, 2).await;
    let items = exported(&source, "t", "").await.unwrap();
    let (target, _dir) = empty();
    let refused = imported(&target, "t", &items[1..]).await.unwrap_err();
    assert_eq!((refused.code(), &*reason(&refused)), (Code::NotFound, "TITLE_NOT_FOUND"));
    imported(&target, "t", &items).await.unwrap();
}
