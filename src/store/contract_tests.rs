//! What every store must do, run on each of them.

use std::{any::Any, collections::BTreeSet, sync::Arc};

use super::{
    ApplyError, CatalogError, FeedError, FeedSource, MemoryStore, Retention, SUBSCRIPTIONS_MAX,
    Store, Subscription, SubscriptionError, jetstream::JetStreamStore, sled::SledStore,
};
use crate::{
    domain::{Change, Cursor, EpochSeconds, Refusal, Verdict},
    testing::{
        TestClock, Update, catalog, cluster, completion_of, node_id, player, player_of,
        subscription, title,
    },
};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// A store, the clock it was given, and what must live as long.
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<TestClock>,
    _kept: Box<dyn Any + Send + Sync>,
}

pub(super) fn memory() -> Subject {
    let clock = TestClock::at(1000);
    Subject { store: Arc::new(MemoryStore::new(clock.clone())), clock, _kept: Box::new(()) }
}

pub(super) fn on_sled() -> Subject {
    let clock = TestClock::at(1000);
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), 1 << 20, clock.clone()).unwrap();
    Subject { store: Arc::new(store), clock, _kept: Box::new(dir) }
}

pub(super) async fn on_jetstream() -> Subject {
    let clock = TestClock::at(1000);
    let (nats, address) = cluster(1).await;
    let store = JetStreamStore::open(&address, 1 << 20, clock.clone()).await.unwrap();
    Subject { store: Arc::new(store), clock, _kept: Box::new(nats) }
}

/// Declares each test once and runs it on every store.
macro_rules! contract {
    ($($(#[$doc:meta])* async fn $name:ident($subject:ident: Subject) $body:block)*) => {
        mod memory_keeps_the_contract {
            $(#[tokio::test] async fn $name() { super::$name(super::memory()).await; })*
        }
        mod sled_keeps_the_contract {
            $(#[tokio::test] async fn $name() { super::$name(super::on_sled()).await; })*
        }
        mod jetstream_keeps_the_contract {
            $(#[tokio::test] async fn $name() {
                super::$name(super::on_jetstream().await).await;
            })*
        }
        $($(#[$doc])* async fn $name($subject: Subject) $body)*
    };
}

pub(super) use contract;

impl Subject {
    pub(super) async fn complete(&self, player: &str, node: &str) -> Cursor {
        let update = Update::of("t", player).delta(node, 1, 1).build();
        let applied = self.store.apply(update).await.unwrap();
        applied.outcomes[0].1.clone().expect("completes")
    }

    pub(super) async fn feed(&self, after: &Cursor) -> Result<Vec<String>, FeedError> {
        let page = self.store.entries(&title("t"), after, 1000).await?;
        Ok(page.iter().map(|it| player_of(it).to_owned()).collect())
    }

    pub(super) async fn oldest(&self) -> Cursor {
        self.store.feed_bounds(&title("t")).await.unwrap().oldest
    }

    async fn opened(
        &self,
        name: &str,
        after: Option<&Cursor>,
    ) -> Result<Subscription, SubscriptionError> {
        self.store.open_subscription(&title("t"), &subscription(name), after).await
    }

    async fn acked(&self, name: &str, through: &Cursor) -> Result<Subscription, SubscriptionError> {
        let all = self.store.subscriptions(&title("t")).await?;
        let claim = all.iter().find(|it| it.name.as_str() == name).map_or(0, |it| it.claim);
        self.store.ack(&title("t"), &subscription(name), through, claim).await
    }

    pub(super) async fn trim(&self, keep: Retention) -> usize {
        let mut removed = 0;
        loop {
            match self.store.trim_feed(&title("t"), keep).await.unwrap() {
                0 => return removed,
                step => removed += step,
            }
        }
    }
}

contract! {
    async fn a_new_subscription_begins_now_and_stays_where_it_is_acked(subject: Subject) {
        let before = subject.complete("p1", "n").await;
        let opened = subject.opened("s", None).await.unwrap();
        assert_eq!((&opened.cursor, opened.lag), (&before, 0));
        let first = subject.complete("p2", "n").await;
        let second = subject.complete("p3", "n").await;
        assert_eq!(subject.opened("s", None).await.unwrap().lag, 2, "a second consumer");
        subject.clock.put(2000);
        let acked = subject.acked("s", &first).await.unwrap();
        assert_eq!((&acked.cursor, acked.lag, acked.moved_at.get()), (&first, 1, 2000));
        subject.acked("s", &before).await.unwrap();
        let all = subject.store.subscriptions(&title("t")).await.unwrap();
        assert_eq!(all, [acked], "an older ack changes nothing");
        subject.acked("s", &second).await.unwrap();
        assert_eq!(subject.opened("s", Some(&first)).await.unwrap().lag, 1, "moved back");
        assert!(subject.store.subscriptions(&title("u")).await.unwrap().is_empty());
    }

    async fn only_cursors_of_the_feed_move_a_subscription(subject: Subject) {
        let first = subject.complete("p1", "n").await;
        let oldest = subject.oldest().await;
        let of_nothing = Cursor::new("nonsense");
        let refused = subject.opened("s", Some(&of_nothing)).await;
        assert!(matches!(refused, Err(SubscriptionError::Feed(FeedError::NotACursor))));
        assert!(subject.store.subscriptions(&title("t")).await.unwrap().is_empty());
        assert!(matches!(subject.acked("s", &first).await, Err(SubscriptionError::NotFound)));
        subject.opened("s", Some(&oldest)).await.unwrap();
        subject.trim(Retention { count: Some(0), stored_since: None }).await;
        let refused = subject.opened("s", Some(&oldest)).await;
        assert!(matches!(refused, Err(SubscriptionError::Feed(FeedError::Expired { .. }))));
        let lag = subject.opened("s", None).await.unwrap().lag;
        assert_eq!(lag, 1, "it stands where it stood, and its consumer is told");
        subject.acked("s", &first).await.expect("delivered before it was removed");
    }

    async fn a_title_has_a_bounded_number_of_subscriptions(subject: Subject) {
        for n in 0..SUBSCRIPTIONS_MAX {
            subject.opened(&format!("s{n}"), None).await.unwrap();
        }
        assert!(matches!(subject.opened("more", None).await, Err(SubscriptionError::TooMany)));
        subject.opened("s7", None).await.expect("it is there already");
        let delete = |name| {
            let (store, name) = (subject.store.clone(), subscription(name));
            async move { store.delete_subscription(&title("t"), &name).await }
        };
        delete("s7").await.unwrap();
        assert!(matches!(delete("s7").await, Err(SubscriptionError::NotFound)));
        subject.opened("more", None).await.unwrap();
    }

    async fn a_set_is_read_back(subject: Subject) {
        let update = Update::of("t", "p").delta("n", 10, 3).build();
        let applied = subject.store.apply(update).await.unwrap();
        assert_eq!(applied.outcomes[0].0.verdict, Verdict::Stored);
        let records = subject.store.records(&player("t", "p")).await.unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].0, node_id("n"));
        assert_eq!(records[0].1, applied.outcomes[0].0.after);
    }

    async fn players_and_titles_do_not_see_each_other(subject: Subject) {
        for (title, id) in [("t", "ab"), ("t", "a"), ("u", "ab"), ("ta", "b")] {
            subject.store.apply(Update::of(title, id).delta("n", 10, 1).build()).await.unwrap();
        }
        for (title, id) in [("t", "ab"), ("t", "a"), ("u", "ab"), ("ta", "b")] {
            let records = subject.store.records(&player(title, id)).await.unwrap();
            assert_eq!(records.len(), 1, "{title} {id}");
            assert_eq!(records[0].1.version.get(), 1, "{title} {id}");
        }
        assert!(subject.store.records(&player("t", "abc")).await.unwrap().is_empty());
    }

    async fn records_come_in_the_order_of_id_bytes(subject: Subject) {
        let ids = ["b", "a", "aaa", "é", "Z"];
        for id in ids {
            subject.store.apply(Update::of("t", "p").delta(id, 10, 1).build()).await.unwrap();
        }
        let records = subject.store.records(&player("t", "p")).await.unwrap();
        let found: Vec<_> = records.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(found, ["Z", "a", "aaa", "b", "é"]);
    }

    async fn a_conflict_stores_nothing(subject: Subject) {
        subject.store.apply(Update::of("t", "p").delta("n", 10, 1).build()).await.unwrap();
        let stale = Update::of("t", "p").set("n", 10, Some(Change::Delta(1)), Some("x"), Some(0));
        let applied = subject.store.apply(stale.build()).await.unwrap();
        assert_eq!(applied.outcomes[0].0.verdict, Verdict::Conflict);
        let records = subject.store.records(&player("t", "p")).await.unwrap();
        assert_eq!(records[0].1.version.get(), 1);
    }

    async fn a_refusal_stores_nothing(subject: Subject) {
        let update = Update::of("t", "p").delta("a", 10, 1);
        let update = update.set("b", 10, None, Some("x"), None).build();
        let refused = subject.store.apply(update).await;
        let expected = Refusal::ExtraWithoutVersion { index: 1 };
        assert!(matches!(refused, Err(ApplyError::Refused(it)) if it == expected));
        assert!(subject.store.records(&player("t", "p")).await.unwrap().is_empty());
    }

    async fn a_batch_completes_its_nodes_in_order(subject: Subject) {
        let update = Update::of("t", "p").delta("b", 1, 1).delta("a", 1, 1).id("r").build();
        let applied = subject.store.apply(update.clone()).await.unwrap();
        let cursors: Vec<_> = applied.outcomes.iter().map(|it| it.1.clone().unwrap()).collect();
        let oldest = subject.oldest().await;
        let feed = subject.store.entries(&title("t"), &oldest, 10).await.unwrap();
        let found: Vec<_> = feed.iter().map(|it| it.cursor.clone()).collect();
        assert_eq!(found, cursors);
        let nodes = feed.iter().map(|it| completion_of(it).node.definition().node_id().as_str());
        assert_eq!(nodes.collect::<Vec<_>>(), ["b", "a"]);
        let again = subject.store.apply(update).await.unwrap();
        assert!(again.replayed);
        assert_eq!(again.outcomes, applied.outcomes, "with the same cursors");
    }

    async fn a_completion_carries_what_the_contract_names(subject: Subject) {
        let update = Update::of("t", "p").set("n", 5, Some(Change::Finish), Some("x"), Some(0));
        subject.store.apply(update.build()).await.unwrap();
        let oldest = subject.oldest().await;
        let feed = subject.store.entries(&title("t"), &oldest, 10).await.unwrap();
        let completion = completion_of(&feed[0]);
        assert_eq!(completion.key, player("t", "p"));
        assert_eq!(completion.node.root_id(), &node_id("n"));
        assert_eq!(completion.node.definition().draft().display_name, "名 n");
        assert_eq!(completion.node.definition().max_progress().get(), 5);
        assert_eq!(completion.progress.get(), 5);
        assert_eq!(completion.completed_at, EpochSeconds::new(1000));
        assert_eq!(completion.version.get(), 1);
        assert_eq!(completion.extra.as_str(), "x");
    }

    async fn the_feed_resumes_exactly_after_any_cursor(subject: Subject) {
        let mut cursors = vec![subject.oldest().await];
        for n in 0..10 {
            cursors.push(subject.complete(&format!("p{n}"), "n").await);
        }
        for (n, cursor) in cursors.iter().enumerate() {
            let rest: Vec<_> = (n..10).map(|n| format!("p{n}")).collect();
            assert_eq!(subject.feed(cursor).await.unwrap(), rest);
        }
        let newest = subject.store.feed_bounds(&title("t")).await.unwrap().newest;
        assert_eq!(newest, cursors[10]);
        let page = subject.store.entries(&title("t"), &cursors[2], 3).await.unwrap();
        assert_eq!(page.len(), 3);
    }

    async fn cursors_of_others_and_of_the_future_are_refused(subject: Subject) {
        let cursor = subject.complete("p", "n").await;
        for text in ["", "x", "AAAA", "1"] {
            let found = subject.feed(&Cursor::new(text)).await;
            assert!(matches!(found, Err(FeedError::NotACursor)), "{text:?}");
        }
        let other = subject.store.entries(&title("u"), &cursor, 10).await;
        assert!(matches!(other, Err(FeedError::NotACursor)));
    }

    async fn retention_by_count_names_the_oldest_cursor(subject: Subject) {
        let start = subject.oldest().await;
        let mut cursors = Vec::new();
        for n in 0..600 {
            cursors.push(subject.complete(&format!("p{n}"), "n").await);
        }
        let keep = Retention { count: Some(2), ..Retention::default() };
        assert_eq!(subject.trim(keep).await, 598);
        let refused = subject.feed(&start).await;
        let Err(FeedError::Expired { oldest }) = refused else { panic!("{refused:?}") };
        assert_eq!(oldest, cursors[597]);
        assert_eq!(subject.feed(&oldest).await.unwrap(), ["p598", "p599"]);
        assert_eq!(subject.trim(Retention::default()).await, 0, "the default keeps all");

        assert_eq!(subject.trim(Retention { count: Some(0), ..keep }).await, 2);
        let bounds = subject.store.feed_bounds(&title("t")).await.unwrap();
        assert_eq!((&bounds.oldest, &bounds.newest), (&cursors[599], &cursors[599]));
        let next = subject.complete("late", "n").await;
        assert_eq!(subject.feed(&cursors[599]).await.unwrap(), ["late"]);
        assert_ne!(next, cursors[599], "places are not used again");
    }

    async fn retention_by_age_keeps_the_young(subject: Subject) {
        for n in 0..4 {
            subject.clock.put(1000 + n * 10);
            subject.complete(&format!("p{n}"), "n").await;
        }
        let since = Some(EpochSeconds::new(1020));
        let removed = subject.trim(Retention { stored_since: since, count: None }).await;
        assert_eq!(removed, 2);
        let oldest = subject.oldest().await;
        assert_eq!(subject.feed(&oldest).await.unwrap(), ["p2", "p3"]);
    }

    /// Steps back by a second, an hour and to the epoch, and jumps ahead: order and versions are as
    /// if the clock had stood, and moments only ever go ahead.
    async fn a_clock_that_goes_back_does_not_take_completions_with_it(subject: Subject) {
        let moments = [
            (DAY, DAY),
            (DAY + HOUR, DAY + HOUR),
            (DAY + HOUR - 1, DAY + HOUR),
            (DAY + HOUR - 2, DAY + HOUR),
            (DAY, DAY + HOUR),
            (DAY - HOUR, DAY + HOUR),
            (0, DAY + HOUR),
            (DAY + HOUR + 1, DAY + HOUR + 1),
            (DAY + 2 * HOUR, DAY + 2 * HOUR),
        ];
        let mut told = Vec::new();
        for (version, (now, _)) in (1..).zip(moments) {
            subject.clock.put(now);
            let update = Update::of("t", "busy").delta("n", 100, 1);
            let update = update.set("x", 100, None, Some("x"), Some(version - 1)).build();
            let outcomes = subject.store.apply(update).await.unwrap().outcomes;
            let found: Vec<_> = outcomes.iter().map(|(it, _)| it.after.version.get()).collect();
            assert_eq!(found, [version; 2], "at {now}");
            told.push(subject.complete(&format!("p{version}"), "n").await);
        }

        let oldest = subject.oldest().await;
        let feed = subject.store.entries(&title("t"), &oldest, 10).await.unwrap();
        let cursors: Vec<_> = feed.iter().map(|it| it.cursor.clone()).collect();
        assert_eq!(cursors, told);
        let times: Vec<_> = feed.iter().map(|it| completion_of(it).completed_at.get()).collect();
        assert_eq!(times, moments.map(|(_, completed_at)| completed_at));
        for (version, completed_at) in (1..).zip(times) {
            let records = subject.store.records(&player("t", &format!("p{version}"))).await;
            let state = &records.unwrap()[0].1;
            assert_eq!((state.completed_at.get(), state.version.get()), (completed_at, 1));
        }
    }

    /// Retention by age while the clock is an hour ahead, and after it has come back: it removes
    /// what that clock calls old, never what completed since, and never opens a hole.
    async fn a_clock_that_jumps_ahead_removes_no_more_than_the_old(subject: Subject) {
        subject.clock.put(DAY);
        let start = subject.oldest().await;
        let old = subject.complete("old", "n").await;
        subject.clock.put(DAY + HOUR);
        subject.complete("ahead", "n").await;
        let since = |now: u64| Retention {
            stored_since: Some(EpochSeconds::new(now.saturating_sub(HOUR / 2))),
            count: None,
        };
        assert_eq!(subject.trim(since(DAY + HOUR)).await, 1, "the old one is an hour old");
        let refused = subject.feed(&start).await;
        assert!(matches!(refused, Err(FeedError::Expired { oldest }) if oldest == old));

        subject.clock.put(DAY + 1);
        subject.complete("back", "n").await;
        assert_eq!(subject.trim(since(DAY + 1)).await, 0, "no clock calls them old");
        assert_eq!(subject.trim(since(DAY + HOUR)).await, 0, "both are of the time ahead");
        assert_eq!(subject.feed(&old).await.unwrap(), ["ahead", "back"]);
        // The clock catches up, and they age as others do.
        assert_eq!(subject.trim(since(DAY + 2 * HOUR)).await, 2);
        subject.clock.put(DAY + 2);
        subject.complete("again", "n").await;
        let oldest = subject.oldest().await;
        let feed = subject.store.entries(&title("t"), &oldest, 10).await.unwrap();
        assert_eq!(completion_of(&feed[0]).key, player("t", "again"));
        let at = completion_of(&feed[0]).completed_at.get();
        assert_eq!(at, DAY + HOUR, "not before what was removed");
    }

    async fn whoever_waits_for_a_feed_is_woken(subject: Subject) {
        let mut changes = subject.store.feed_changes(&title("t"));
        changes.borrow_and_update();
        let idle = Update::of("t", "p").delta("n", 10, 1).build();
        subject.store.apply(idle).await.unwrap();
        assert!(!changes.has_changed().unwrap(), "nothing completed");
        subject.complete("q", "n").await;
        changes.changed().await.unwrap();
        assert_eq!(subject.feed(&subject.oldest().await).await.unwrap(), ["q"]);
    }

    async fn catalogues_are_replaced_by_revision(subject: Subject) {
        let store = &subject.store;
        let first = Arc::new(catalog(&[("a", 1), ("b", 2)]));
        let stored = store.replace_catalog(&title("t"), 0, first.clone()).await.unwrap();
        assert_eq!(stored.revision, 1);
        let second = Arc::new(catalog(&[("a", 5)]));
        let stale = store.replace_catalog(&title("t"), 0, second.clone()).await;
        let mismatch = CatalogError::RevisionMismatch { expected: 0, actual: 1 };
        assert_eq!(stale.unwrap_err().to_string(), mismatch.to_string());
        store.replace_catalog(&title("t"), 1, second.clone()).await.unwrap();
        store.replace_catalog(&title("s"), 0, first.clone()).await.unwrap();
        let all = store.catalogs().await.unwrap();
        let found: Vec<_> = all.iter().map(|it| (it.title.clone(), it.revision)).collect();
        assert_eq!(found, [(title("s"), 1), (title("t"), 2)]);
        assert_eq!(all[1].catalog, second);
    }

    async fn the_largest_catalogue_is_stored_whole(subject: Subject) {
        let drafts = (0..700).map(|n| crate::domain::DefinitionDraft {
            node_id: format!("n{n}"),
            metadata: "m".repeat(4096),
            ..Default::default()
        });
        let large = Arc::new(crate::domain::Catalog::parse(drafts.collect()).unwrap());
        subject.store.replace_catalog(&title("t"), 0, large.clone()).await.unwrap();
        assert_eq!(subject.store.catalogs().await.unwrap()[0].catalog, large);
    }

    async fn players_of_nodes_are_counted_once(subject: Subject) {
        for (title, id, node) in
            [("t", "p", "a"), ("t", "p", "b"), ("t", "q", "b"), ("t", "r", "c"), ("u", "s", "a")]
        {
            subject.store.apply(Update::of(title, id).delta(node, 10, 1).build()).await.unwrap();
        }
        let nodes = BTreeSet::from([node_id("a"), node_id("b")]);
        assert_eq!(subject.store.count_players(&title("t"), &nodes).await.unwrap(), 2);
        let none = BTreeSet::from([node_id("z")]);
        assert_eq!(subject.store.count_players(&title("t"), &none).await.unwrap(), 0);
    }

    /// Many callers add to the same records at once: no addition is lost, and the versions that
    /// they are told are 1, 2, 3, … without a repetition.
    async fn concurrent_sets_are_counted_once_each(subject: Subject) {
        let mut tasks = tokio::task::JoinSet::new();
        for caller in 0..8u32 {
            let store = subject.store.clone();
            tasks.spawn(async move {
                let mut versions = Vec::new();
                for n in 0..50 {
                    let id = format!("{caller}-{n}");
                    let update = Update::of("t", "p").delta("n", 1_000_000, 1).id(&id).build();
                    let applied = store.apply(update).await.unwrap();
                    versions.push(applied.outcomes[0].0.after.version.get());
                }
                versions
            });
        }
        let mut versions = tasks.join_all().await.concat();
        versions.sort_unstable();
        assert_eq!(versions, (1..=400).collect::<Vec<_>>());
        let records = subject.store.records(&player("t", "p")).await.unwrap();
        assert_eq!(records[0].1.progress.get(), 400);
    }
}

#[tokio::test]
async fn a_clock_that_went_back_while_the_store_was_closed_changes_no_order() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(DAY);
    let complete = async |id: &str| {
        let store = SledStore::open(dir.path(), 1 << 20, clock.clone()).unwrap();
        store.apply(Update::of("t", id).delta("n", 1, 1).build()).await.unwrap();
        let oldest = store.feed_bounds(&title("t")).await.unwrap().oldest;
        let feed = store.entries(&title("t"), &oldest, 10).await.unwrap();
        let newest = feed.last().unwrap().clone();
        // Its place and time are kept, though it is removed itself.
        let none = Retention { count: Some(0), ..Retention::default() };
        store.trim_feed(&title("t"), none).await.unwrap();
        (completion_of(&newest).completed_at.get(), newest.cursor)
    };
    let mut cursors = BTreeSet::new();
    for (id, now, completed_at) in [("a", DAY, DAY), ("b", HOUR, DAY), ("c", 2 * DAY, 2 * DAY)] {
        clock.put(now);
        let (found, cursor) = complete(id).await;
        assert_eq!(found, completed_at, "{id}");
        assert!(cursors.insert(cursor.as_str().to_owned()), "places are not used again");
    }
}
