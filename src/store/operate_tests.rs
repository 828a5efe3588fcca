//! What operators do, on every store.

use super::{
    FeedError, ImportError, Imported, PAST_EVENTS_MAX, ResetDone, ResetError, Retention,
    StoredRecord, Times,
    contract_tests::{Subject, contract, memory, on_jetstream, on_sled},
    transfer::Item,
};
use crate::{
    domain::{Change, Cursor, Entry, Event, Reason, RequestId, ResetUpdate, Verdict},
    testing::{Update, node_id, player, subscription, title},
};

impl Subject {
    async fn reset(&self, player_id: &str, id: Option<&str>) -> Result<ResetDone, ResetError> {
        let update = ResetUpdate {
            key: player("t", player_id),
            node: node_id("n"),
            reason: Reason::parse("refunded").unwrap(),
            expected: None,
            request_id: id.map(|id| RequestId::parse(id).unwrap()),
        };
        self.store.reset(update).await
    }

    async fn erase(&self, player_id: &str) -> (u64, u64) {
        let (mut records, mut events) = (0, 0);
        loop {
            let erased = self.store.erase_player(&player("t", player_id)).await.unwrap();
            if erased.records == 0 {
                return (records, events);
            }
            records += erased.records;
            events += erased.events;
        }
    }

    async fn entries(&self) -> Vec<Entry> {
        self.store.entries(&title("t"), &self.oldest().await, 1000).await.unwrap()
    }

    /// What is told of the feed: the player, `-player` for a reset.
    async fn events(&self) -> Vec<String> {
        let entries = self.entries().await;
        let texts = entries.iter().filter_map(|entry| match &entry.event {
            Event::Completion(it) => Some(it.key.player.as_str().to_owned()),
            Event::Reset(it) => Some(format!("-{}", it.key.player.as_str())),
            // Nobody is told of those, and not every store keeps their places.
            Event::Erased => None,
        });
        texts.collect()
    }

    async fn records(&self) -> Vec<(String, String, StoredRecord)> {
        let mut records = Vec::new();
        let mut after = None;
        loop {
            let read = self.store.full_records(&title("t"), after.as_ref()).await.unwrap();
            for (player, of_player) in read.0 {
                records.extend(of_player.into_iter().map(|(node, stored)| {
                    (player.as_str().to_owned(), node.as_str().to_owned(), stored)
                }));
            }
            after = read.1;
            if after.is_none() {
                records.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
                return records;
            }
        }
    }

    /// The same without the places that each store has of its own, and without what has left the
    /// feed.
    async fn unplaced_records(&self) -> Vec<(String, String, StoredRecord)> {
        let trimmed = self.store.position(&title("t"), &self.oldest().await).unwrap_or(0);
        let mut records = self.records().await;
        for (.., stored) in &mut records {
            stored.past.retain(|event| event.sequence > trimmed);
            stored.completion_sequence = stored.completion_sequence.min(1);
            stored.past.iter_mut().for_each(|event| event.sequence = 1);
        }
        records
    }

    /// Everything, in the order of an export.
    async fn items(&self) -> Vec<Item> {
        let t = title("t");
        let position = |cursor: &Cursor| self.store.position(&t, cursor).unwrap();
        let mut items = vec![Item::FeedStart { position: position(&self.oldest().await) }];
        for entry in self.entries().await {
            let position = position(&entry.cursor);
            items.push(Item::Entry { position, entry: Box::new(entry) });
        }
        for (id, node, stored) in self.records().await {
            let (player, node) = (player("t", &id).player, node_id(&node));
            items.push(Item::Record { player, node, stored: Box::new(stored) });
        }
        for it in self.store.subscriptions(&t).await.unwrap() {
            items.push(Item::Subscription { name: it.name, position: position(&it.cursor) });
        }
        items
    }

    async fn import(&self, items: Vec<Item>) -> Result<Imported, ImportError> {
        let mut all = Imported::default();
        let mut rest = items;
        while !rest.is_empty() {
            let (step, left) = self.store.import(&title("t"), rest, Times::Checked).await?;
            all.stored += step.stored;
            all.present += step.present;
            all.kept += step.kept;
            rest = left;
        }
        Ok(all)
    }

    /// A title with everything that a title can have.
    async fn fill(&self) {
        for id in ["a", "b", "c", "d", "e"] {
            self.complete(id, "n").await;
        }
        self.reset("b", Some("r")).await.unwrap();
        self.complete("b", "n").await;
        self.erase("c").await;
        self.reset("d", None).await.unwrap();
        let keep = Retention { count: Some(5), ..Retention::default() };
        while self.store.trim_feed(&title("t"), keep).await.unwrap() > 0 {}
        let late = Update::of("t", "late").id("l").delta("n", 3, 2).at(990).build();
        self.store.apply(late).await.unwrap();
        let extra = Update::of("t", "e").set("m", 9, Some(Change::Delta(2)), Some("x"), Some(0));
        self.store.apply(extra.id("e1").build()).await.unwrap();
        let cursor = self.entries().await[1].cursor.clone();
        let name = subscription("s");
        self.store.open_subscription(&title("t"), &name, Some(&cursor)).await.unwrap();
    }
}

fn assert_refused(imported: Result<Imported, ImportError>, index: usize, said: &str) {
    match imported {
        Err(ImportError::Refused { index: at, problem }) => {
            assert_eq!(at, index, "{problem}");
            assert!(problem.contains(said), "{problem}");
        }
        other => panic!("{other:?} instead of a refusal that says {said:?}"),
    }
}

contract! {
    async fn a_reset_stands_in_the_feed_and_the_record_begins_anew(subject: Subject) {
        let completed = subject.complete("p", "n").await;
        subject.clock.put(1500);
        let done = subject.reset("p", Some("r")).await.unwrap();
        assert_eq!((done.outcome.verdict, done.replayed), (Verdict::Stored, false));
        assert_eq!(done.outcome.after.version.get(), 2);
        let entries = subject.store.entries(&title("t"), &completed, 10).await.unwrap();
        let Event::Reset(reset) = &entries[0].event else { panic!("{entries:?}") };
        assert_eq!(Some(&entries[0].cursor), done.cursor.as_ref());
        assert_eq!((reset.version.get(), reset.progress.get()), (2, 1));
        assert_eq!((reset.completed_at.get(), reset.reset_at.get()), (1000, 1500));
        assert_eq!(reset.reason.as_str(), "refunded");

        let again = subject.reset("p", Some("r")).await.unwrap();
        assert!(again.replayed);
        assert_eq!((again.cursor, again.outcome.after), (done.cursor, done.outcome.after));
        let nothing = subject.reset("p", None).await.unwrap();
        assert_eq!((nothing.outcome.verdict, nothing.cursor), (Verdict::Unchanged, None));
        subject.complete("p", "n").await;
        assert_eq!(subject.events().await, ["p", "-p", "p"]);
    }

    async fn a_record_takes_a_bounded_number_of_resets(subject: Subject) {
        for _ in 0..PAST_EVENTS_MAX / 2 {
            subject.complete("p", "n").await;
            subject.reset("p", None).await.unwrap();
        }
        subject.complete("p", "n").await;
        assert!(matches!(subject.reset("p", None).await, Err(ResetError::TooMany)));
        let events = PAST_EVENTS_MAX as u64 + 1;
        assert_eq!(subject.erase("p").await, (1, events));
        subject.complete("p", "n").await;
        subject.reset("p", None).await.expect("the player is a new one");
    }

    async fn a_player_is_erased_from_records_and_feed_and_nobody_else_is(subject: Subject) {
        subject.complete("p", "n").await;
        subject.complete("q", "n").await;
        subject.reset("p", None).await.unwrap();
        for n in 0..70 {
            subject.complete("p", &format!("n{n}")).await;
        }
        let other = subject.complete("q", "m").await;
        assert_eq!(subject.erase("p").await, (71, 72));
        assert_eq!(subject.erase("p").await, (0, 0));
        assert_eq!(subject.store.records(&player("t", "p")).await.unwrap(), []);
        assert_eq!(subject.store.records(&player("t", "q")).await.unwrap().len(), 2);
        assert_eq!(subject.events().await, ["q", "q"]);
        let update = Update::of("t", "p").delta("n", 1, 1).build();
        let applied = subject.store.apply(update).await.unwrap();
        assert_eq!(applied.outcomes[0].0.after.version.get(), 1, "a new player");
        assert_eq!(subject.feed(&other).await.unwrap(), ["p"], "cursors go on working");
    }

    async fn rarity_counts_players_and_who_has_completed(subject: Subject) {
        let count = async |node: &str| {
            let rarity = subject.store.rarity(&title("t")).await.unwrap();
            (rarity.players, rarity.completed.get(&node_id(node)).copied().unwrap_or(0))
        };
        assert_eq!(count("n").await, (0, 0));
        for id in ["a", "b", "c"] {
            subject.complete(id, "n").await;
            subject.complete(id, "m").await;
        }
        let partly = Update::of("t", "d").delta("n", 9, 3).build();
        subject.store.apply(partly).await.unwrap();
        assert_eq!(count("n").await, (4, 3));
        subject.reset("a", None).await.unwrap();
        assert_eq!((count("n").await, count("m").await), ((4, 2), (4, 3)));
        subject.erase("b").await;
        assert_eq!((count("n").await, count("m").await), ((3, 1), (3, 2)));
        subject.complete("b", "n").await;
        assert_eq!(count("n").await, (4, 2));
        assert_eq!(subject.store.rarity(&title("u")).await.unwrap().players, 0);
    }

    async fn a_title_moves_whole_and_what_comes_again_changes_nothing(subject: Subject) {
        let source = on_sled();
        source.fill().await;
        let items = source.items().await;
        let count = items.len() as u64;
        // In pieces, and some of them twice.
        for piece in [&items[..4], &items[2..7], &items[..]] {
            subject.import(piece.to_vec()).await.unwrap();
        }
        assert_eq!(subject.unplaced_records().await, source.unplaced_records().await);
        assert_eq!(subject.events().await, source.events().await);
        let places = |all: Vec<super::Subscription>| all[0].lag;
        let of = |it: &Subject| it.store.clone();
        assert_eq!(
            places(of(&subject).subscriptions(&title("t")).await.unwrap()),
            places(of(&source).subscriptions(&title("t")).await.unwrap())
        );
        assert_eq!(
            subject.store.rarity(&title("t")).await.unwrap().players,
            source.store.rarity(&title("t")).await.unwrap().players
        );
        let again = subject.import(items).await.unwrap();
        assert_eq!((again.stored, again.kept), (0, 0));
        assert!(again.present >= count - 3, "only the feed's start and erased places say nothing");
        // The source forgets what has left its feed, and what was imported is still here.
        let keep = Retention { count: Some(1), ..Retention::default() };
        while source.store.trim_feed(&title("t"), keep).await.unwrap() > 0 {}
        source.reset("e", None).await.unwrap();
        source.complete("e", "n").await;
        subject.import(source.items().await).await.unwrap();
        let past = async |of: &Subject| {
            let records = of.records().await;
            let of_e = records.iter().find(|(player, node, _)| player == "e" && node == "n");
            of_e.unwrap().2.past.len()
        };
        assert_eq!((past(&source).await, past(&subject).await), (1, 2));

        let retry = Update::of("t", "e").set("m", 9, Some(Change::Delta(2)), Some("x"), Some(0));
        assert!(subject.store.apply(retry.id("e1").build()).await.unwrap().replayed);
        let late = Update::of("t", "late").id("l").delta("n", 3, 2).at(990).build();
        assert!(subject.store.apply(late).await.unwrap().replayed);
        assert!(subject.reset("b", Some("r")).await.unwrap().replayed);
        let foreign = source.entries().await[0].cursor.clone();
        let read = subject.store.entries(&title("t"), &foreign, 10).await;
        assert!(matches!(read, Err(FeedError::NotACursor)));
    }

    async fn a_record_that_is_newer_here_is_kept(subject: Subject) {
        let source = memory();
        let set = |delta| Update::of("t", "p").delta("n", 100, delta).build();
        source.store.apply(set(1)).await.unwrap();
        let items = source.items().await;
        for _ in 0..2 {
            subject.store.apply(set(5)).await.unwrap();
        }
        let imported = subject.import(items).await.unwrap();
        assert_eq!((imported.stored, imported.kept), (0, 1));
        assert_eq!(subject.records().await[0].2.record.state.progress.get(), 10);
    }
}

/// In stores that number events, which see a hole.
async fn items_that_do_not_go_together_are_refused_whole(subject: Subject) {
    let source = memory();
    source.fill().await;
    let items = source.items().await;
    let (events, records): (Vec<_>, Vec<_>) = items[1..items.len() - 1]
        .iter()
        .cloned()
        .partition(|item| matches!(item, Item::Entry { .. }));
    let hole = vec![items[0].clone(), events[1].clone()];
    assert_refused(subject.import(hole).await, 1, "comes next");
    let of_b = |item: &&Item| matches!(item, Item::Record { player, .. } if player.as_str() == "b");
    let record = records.iter().find(of_b).unwrap().clone();
    assert_refused(subject.import(vec![record]).await, 0, "does not go with the events");
    let subscribed = items.last().unwrap().clone();
    assert_refused(subject.import(vec![subscribed]).await, 0, "the feed ends at 0");
    assert_eq!(subject.records().await, []);
    assert_eq!(subject.events().await, Vec::<String>::new());
    assert!(subject.store.subscriptions(&title("t")).await.unwrap().is_empty());

    subject.complete("own", "n").await;
    assert_refused(subject.import(items).await, 0, "no completions");
    assert_eq!(subject.events().await, ["own"]);
}

/// Such a store numbers nothing, and refuses what it cannot tell from its own all the same.
#[tokio::test]
async fn jetstream_refuses_to_mix_completions_with_its_own() {
    let source = memory();
    source.fill().await;
    let items = source.items().await;
    let is_event = |item: &&Item| matches!(item, Item::Entry { .. });
    let events: Vec<_> = items.iter().filter(is_event).cloned().collect();
    let subject = on_jetstream().await;
    subject.import(events[..1].to_vec()).await.unwrap();
    subject.complete("own", "n").await;
    assert_refused(subject.import(events.clone()).await, 1, "completions of its own");
    // What is here already changes nothing.
    assert_eq!(subject.import(events[..1].to_vec()).await.unwrap().present, 1);
    assert_eq!(subject.events().await.last().unwrap(), "own");
}

#[tokio::test]
async fn sled_refuses_items_that_do_not_go_together() {
    items_that_do_not_go_together_are_refused_whole(on_sled()).await;
}

#[tokio::test]
async fn memory_refuses_items_that_do_not_go_together() {
    items_that_do_not_go_together_are_refused_whole(memory()).await;
}
