//! Every method of the API, called once: for tests that must forget none.

use accolade::proto::v1::{
    ApplyCatalogRequest, ConsumeCompletionsRequest, DeleteSubscriptionRequest, GetCatalogRequest,
    ListSubscriptionsRequest, StreamSetAchievementStorageRequest, Subscribe,
    achievement_storage_service_client::AchievementStorageServiceClient,
    catalog_service_client::CatalogServiceClient,
    completion_service_client::CompletionServiceClient, consume_completions_request::Action,
    stream_set_achievement_storage_response::Outcome,
};
use prost::Message;
use tonic::{Code, Status};

use crate::{
    access::{batch_get, batch_set, definitions, get, list, watch, with},
    support::{Server, delta, reason},
};

/// Every method that is for one title, in the order of [`try_all`].
pub const OF_A_TITLE: [&str; 12] = [
    "AchievementStorageService/GetAchievementStorage",
    "AchievementStorageService/BatchGetAchievementStorage",
    "CompletionService/ListCompletions",
    "CatalogService/GetCatalog",
    "AchievementStorageService/SetAchievementStorage",
    "AchievementStorageService/BatchSetAchievementStorage",
    "AchievementStorageService/StreamSetAchievementStorage",
    "CompletionService/WatchCompletions",
    "CompletionService/ConsumeCompletions",
    "CompletionService/ListSubscriptions",
    "CompletionService/DeleteSubscription",
    "CatalogService/ApplyCatalog",
];

/// Each method of [`OF_A_TITLE`], and how it ends: `None` where it is allowed.
pub async fn try_all(server: &Server, token: &str, title: &str) -> [Option<(Code, String)>; 12] {
    let channel = server.channel().await;
    let mut storage = AchievementStorageServiceClient::new(channel.clone());
    let mut completions = CompletionServiceClient::new(channel.clone());
    let mut catalogs = CatalogServiceClient::new(channel);
    let ended = |status: Status| (status.code(), reason(&status));
    let (name, dry_run) = (title.to_owned(), true);
    let definitions = definitions();
    let apply =
        ApplyCatalogRequest { title: name, dry_run, definitions, ..ApplyCatalogRequest::default() };
    let catalog = GetCatalogRequest { title: title.to_owned() };
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
                let code = Code::from(status.code);
                let details = status.encode_to_vec().into();
                let status = Status::with_details(code, status.message, details);
                stream_set = Some(ended(status));
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
        {
            let set = delta(title, "p", "first_steps", 1);
            storage.set_achievement_storage(with(token, set)).await.err().map(ended)
        },
        {
            let set = batch_set(title);
            storage.batch_set_achievement_storage(with(token, set)).await.err().map(ended)
        },
        stream_set,
        completions.watch_completions(with(token, watch(title))).await.err().map(ended),
        completions.consume_completions(with(token, consume)).await.err().map(ended),
        completions.list_subscriptions(with(token, subscriptions)).await.err().map(ended),
        completions.delete_subscription(with(token, delete)).await.err().map(ended),
        catalogs.apply_catalog(with(token, apply)).await.err().map(ended),
    ]
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
