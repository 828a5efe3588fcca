//! Every method of the API, called once: for tests that must forget none.

use accolade::proto::v1::{
    ApplyCatalogRequest, Checkpoint, ConsumeCompletionsRequest, DeleteSubscriptionRequest,
    ErasePlayerRequest, ExportRecordsRequest, GetCatalogRequest, GetRarityRequest,
    ImportRecordsRequest, LateUpdate, ListSubscriptionsRequest, ResetAchievementRequest,
    StreamSetAchievementStorageRequest, Subscribe, SyncAchievementStorageRequest, TitleItem,
    achievement_storage_service_client::AchievementStorageServiceClient,
    admin_service_client::AdminServiceClient, catalog_service_client::CatalogServiceClient,
    completion_service_client::CompletionServiceClient, consume_completions_request::Action,
    late_update::Change, stream_set_achievement_storage_response::Outcome, title_item::Item,
};
use tonic::{Code, Status};

use crate::{
    access::{batch_get, batch_set, definitions, get, list, watch, with},
    support::{Server, as_status, delta, reason},
};

/// Every method that is for one title, in the order of [`try_all`].
pub const OF_A_TITLE: [&str; 18] = [
    "AchievementStorageService/GetAchievementStorage",
    "AchievementStorageService/BatchGetAchievementStorage",
    "CompletionService/ListCompletions",
    "CatalogService/GetCatalog",
    "CatalogService/GetRarity",
    "AchievementStorageService/SetAchievementStorage",
    "AchievementStorageService/BatchSetAchievementStorage",
    "AchievementStorageService/StreamSetAchievementStorage",
    "AchievementStorageService/SyncAchievementStorage",
    "CompletionService/WatchCompletions",
    "CompletionService/ConsumeCompletions",
    "CompletionService/ListSubscriptions",
    "CompletionService/DeleteSubscription",
    "CatalogService/ApplyCatalog",
    "AdminService/ResetAchievement",
    "AdminService/ErasePlayer",
    "AdminService/ExportRecords",
    "AdminService/ImportRecords",
];

/// Each method of [`OF_A_TITLE`], and how it ends: `None` where it is allowed.
pub async fn try_all(server: &Server, token: &str, title: &str) -> [Option<(Code, String)>; 18] {
    let channel = server.channel().await;
    let mut storage = AchievementStorageServiceClient::new(channel.clone());
    let mut completions = CompletionServiceClient::new(channel.clone());
    let mut catalogs = CatalogServiceClient::new(channel.clone());
    let mut operator = AdminServiceClient::new(channel);
    let ended = |status: Status| (status.code(), reason(&status));
    let (name, dry_run) = (title.to_owned(), true);
    let definitions = definitions();
    let apply =
        ApplyCatalogRequest { title: name, dry_run, definitions, ..ApplyCatalogRequest::default() };
    let catalog = GetCatalogRequest { title: title.to_owned() };
    let rarity = GetRarityRequest { title: title.to_owned() };
    let sets = tokio_stream::iter([StreamSetAchievementStorageRequest {
        tag: 1,
        set: Some(delta(title, "p", "first_steps", 1)),
    }]);
    let (name, subscribed) = ("s".to_owned(), title.to_owned());
    let subscribe =
        Subscribe { title: subscribed.clone(), name: name.clone(), ..Default::default() };
    let action = Some(Action::Subscribe(subscribe));
    let consume = tokio_stream::iter([ConsumeCompletionsRequest { action }]);
    let subscriptions = ListSubscriptionsRequest { title: subscribed.clone() };
    let delete = DeleteSubscriptionRequest { title: subscribed, name };
    let mut stream_set = None;
    match storage.stream_set_achievement_storage(with(token, sets)).await {
        Err(status) => stream_set = Some(ended(status)),
        Ok(answers) => {
            let answer = answers.into_inner().message().await.unwrap().unwrap();
            if let Some(Outcome::Status(status)) = answer.outcome {
                stream_set = Some(ended(as_status(&status)));
            }
        }
    }
    [
        storage.get_achievement_storage(with(token, get(title))).await.err().map(ended),
        {
            let get = batch_get(title, 2);
            storage.batch_get_achievement_storage(with(token, get)).await.err().map(ended)
        },
        completions.list_completions(with(token, list(title, ""))).await.err().map(ended),
        catalogs.get_catalog(with(token, catalog)).await.err().map(ended),
        catalogs.get_rarity(with(token, rarity)).await.err().map(ended),
        {
            let set = delta(title, "p", "first_steps", 1);
            storage.set_achievement_storage(with(token, set)).await.err().map(ended)
        },
        {
            let set = batch_set(title);
            storage.batch_set_achievement_storage(with(token, set)).await.err().map(ended)
        },
        stream_set,
        storage.sync_achievement_storage(with(token, sync(title))).await.err().map(ended),
        completions.watch_completions(with(token, watch(title))).await.err().map(ended),
        completions.consume_completions(with(token, consume)).await.err().map(ended),
        completions.list_subscriptions(with(token, subscriptions)).await.err().map(ended),
        completions.delete_subscription(with(token, delete)).await.err().map(ended),
        catalogs.apply_catalog(with(token, apply)).await.err().map(ended),
        operator.reset_achievement(with(token, reset(title))).await.err().map(ended),
        operator.erase_player(with(token, erase(title))).await.err().map(ended),
        operator.export_records(with(token, export(title))).await.err().map(ended),
        {
            let items = tokio_stream::iter([nothing(title)]);
            operator.import_records(with(token, items)).await.err().map(ended)
        },
    ]
}

/// Of long ago: nothing of it is stored.
fn sync(title: &str) -> SyncAchievementStorageRequest {
    let update = LateUpdate {
        player_id: "p".to_owned(),
        node_id: "first_steps".to_owned(),
        change: Some(Change::Delta(1)),
        request_id: "late".to_owned(),
        happened_at: 1,
    };
    SyncAchievementStorageRequest { title: title.to_owned(), updates: vec![update] }
}

/// Of a record that does not exist.
fn reset(title: &str) -> ResetAchievementRequest {
    ResetAchievementRequest {
        title: title.to_owned(),
        player_id: "nobody".to_owned(),
        node_id: "first_steps".to_owned(),
        reason: "a test".to_owned(),
        ..ResetAchievementRequest::default()
    }
}

fn erase(title: &str) -> ErasePlayerRequest {
    ErasePlayerRequest { title: title.to_owned(), player_id: "nobody".to_owned() }
}

fn export(title: &str) -> ExportRecordsRequest {
    ExportRecordsRequest { title: title.to_owned(), after: String::new() }
}

/// An item that does nothing.
fn nothing(title: &str) -> ImportRecordsRequest {
    let item = Some(Item::Checkpoint(Checkpoint::default()));
    ImportRecordsRequest { title: title.to_owned(), item: Some(TitleItem { item }) }
}

/// Goal: no method is forgotten by the tests of this file that say "every method".
#[test]
fn every_method_but_the_list_of_titles_is_for_one_title() {
    let mut named = OF_A_TITLE.map(|method| format!("accolade.v1.{method}")).to_vec();
    named.push("accolade.v1.CatalogService/ListTitles".to_owned());
    let mut methods: Vec<_> = accolade::proto::methods().collect();
    named.sort();
    methods.sort();
    assert_eq!(named, methods);
}
