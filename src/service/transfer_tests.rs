//! Items that no store has written. Goal: whatever is taken from outside leaves a store that goes
//! on working, and opens again.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    domain::{Reason, ResetUpdate},
    proto::v1::{
        Completion, ExportStart, ExportedEvent, ExportedLateUpdate, ExportedPastEvent,
        ExportedRecord, ExportedSubscription, ExportedUpdate, TitleItem, title_item,
    },
    store::{Operations, Store, Times, sled::SledStore},
    testing::{TestClock, Update, node_id, player, title},
};

const NOW: u64 = 1_800_000_000;
const PLAYERS: [&str; 2] = ["p", "q"];

fn number() -> impl Strategy<Value = i64> {
    let edges = [-1, 0, 1, 2, 3, 4, 5, NOW.cast_signed(), 1 << 53, (1 << 53) - 1, i64::MAX];
    prop_oneof![3 => 0..6i64, 1 => select(edges.to_vec())]
}

fn moment() -> impl Strategy<Value = i64> {
    select(vec![0, 1, NOW.cast_signed(), NOW.cast_signed() + 90_000, (1 << 53) - 1, i64::MAX])
}

fn player_id() -> impl Strategy<Value = String> {
    select(PLAYERS.map(str::to_owned).to_vec())
}

fn record() -> impl Strategy<Value = ExportedRecord> {
    let numbers = (number(), number(), number(), number());
    let past = (number(), number(), moment())
        .prop_map(|(position, version, at)| ExportedPastEvent { position, version, at });
    let late = (any::<u64>(), moment())
        .prop_map(|(request_digest, at)| ExportedLateUpdate { request_digest, at });
    let remembered = ("[a-c]", number()).prop_map(|(request_id, version)| ExportedUpdate {
        request_id,
        version,
        progress_before: 0,
        progress_after: 1,
    });
    let lists = (vec(past, 0..3), vec(late, 0..3), vec(remembered, 0..3));
    (player_id(), numbers, moment(), moment(), lists).prop_map(
        |(player_id, numbers, completed_at, reset_at, (past, late, remembered))| {
            let (progress, version, completed_version, completion_position) = numbers;
            let is_completed = completed_at != 0;
            let of_completion = |number: i64| if is_completed { number.max(1) } else { 0 };
            ExportedRecord {
                player_id,
                achievement_id: "n".to_owned(),
                progress,
                completed_at,
                extra: String::new(),
                version,
                completed_version: of_completion(completed_version),
                completion_position: of_completion(completion_position),
                past,
                remembered,
                reset_at,
                late,
            }
        },
    )
}

fn event() -> impl Strategy<Value = ExportedEvent> {
    let numbers = (number(), number(), number());
    (player_id(), numbers, moment(), moment(), 0..3).prop_map(
        |(player_id, (position, version, progress), stored_at, at, kind)| {
            let event = match kind {
                0 => exported_event::Event::Erased(v1::Erased {}),
                1 => exported_event::Event::Reset(v1::Reset {
                    player_id,
                    achievement_id: "n".to_owned(),
                    reason: "because".to_owned(),
                    progress,
                    version,
                    reset_at: at,
                    ..v1::Reset::default()
                }),
                _ => exported_event::Event::Completion(Completion {
                    player_id,
                    achievement_id: "n".to_owned(),
                    root_id: "n".to_owned(),
                    max_progress: 1,
                    progress,
                    version,
                    completed_at: at,
                    ..Completion::default()
                }),
            };
            ExportedEvent { position, stored_at, event: Some(event) }
        },
    )
}

fn item() -> impl Strategy<Value = title_item::Item> {
    let start = number().prop_map(|removed_through| ExportStart {
        removed_through,
        definitions: vec![v1::Definition { node_id: "n".to_owned(), ..Default::default() }],
        ..ExportStart::default()
    });
    let subscription =
        number().prop_map(|position| ExportedSubscription { name: "s".to_owned(), position });
    prop_oneof![
        1 => start.prop_map(Kind::Start),
        4 => event().prop_map(Kind::Event),
        4 => record().prop_map(Kind::Record),
        1 => subscription.prop_map(Kind::Subscription),
    ]
}

async fn use_it(store: &SledStore) {
    for id in PLAYERS {
        let set = Update::of("t", id).delta("n", 10, 1).build();
        store.apply(set).await.expect("sets go on");
        let update = ResetUpdate {
            key: player("t", id),
            node: node_id("n"),
            reason: Reason::parse("because").unwrap(),
            expected: None,
            request_id: None,
        };
        store.reset(update).await.expect("resets go on");
    }
    while store.erase_player(&player("t", "p")).await.unwrap().records > 0 {}
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_is_imported_leaves_a_store_that_works(items in vec(item(), 1..16)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let open = || SledStore::open(dir.path(), 1 << 20, TestClock::at(NOW)).unwrap();
        let store = open();
        for item in items {
            let piece = piece(TitleItem { item: Some(item) }, &title("t"));
            if let Ok(Piece::Item(item) | Piece::Start { item, .. }) = piece {
                let _ = runtime.block_on(store.import(&title("t"), vec![item], Times::Checked));
            }
        }
        runtime.block_on(use_it(&store));
        drop(store);
        drop(open());
    }
}
