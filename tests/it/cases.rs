//! The table of calls that all clients are answered alike, `tests/clients/cases.json`, through the
//! generated messages and clients of Rust. `tests/clients/test_cases.py` says what a case is.

use std::{fs, iter, path::Path};

use accolade::proto::DESCRIPTORS;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use tokio_stream::Once;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

use crate::support::{
    AdminClient, CatalogClient, CompletionClient, PATIENCE, Server, StorageClient, fields,
};

/// A call of the table, ready to be sent.
struct Call {
    method: MethodDescriptor,
    message: DynamicMessage,
    /// So many messages of a stream are read.
    take: u64,
}

impl Call {
    fn new(pool: &DescriptorPool, path: &str, request: Value, take: u64) -> Self {
        let (service, name) = path.split_once('/').unwrap();
        let service = pool.get_service_by_name(service).unwrap();
        let method = service.methods().find(|it| it.name() == name).unwrap();
        let message = DynamicMessage::deserialize(method.input(), request).unwrap();
        Self { method, message, take }
    }

    async fn answer(&self, channel: &Channel) -> Result<Value, Status> {
        let mut storage = StorageClient::new(channel.clone());
        let mut completions = CompletionClient::new(channel.clone());
        let mut catalogs = CatalogClient::new(channel.clone());
        let mut operator = AdminClient::new(channel.clone());
        match self.method.name() {
            "GetAchievementStorage" => {
                self.one(storage.get_achievement_storage(self.request()).await)
            }
            "SetAchievementStorage" => {
                self.one(storage.set_achievement_storage(self.request()).await)
            }
            "BatchSetAchievementStorage" => {
                self.one(storage.batch_set_achievement_storage(self.request()).await)
            }
            "BatchGetAchievementStorage" => {
                self.one(storage.batch_get_achievement_storage(self.request()).await)
            }
            "StreamSetAchievementStorage" => {
                self.some(storage.stream_set_achievement_storage(self.requests()).await).await
            }
            "WatchCompletions" => {
                self.some(completions.watch_completions(self.request()).await).await
            }
            "ListCompletions" => self.one(completions.list_completions(self.request()).await),
            "ConsumeCompletions" => {
                self.some(completions.consume_completions(self.requests()).await).await
            }
            "ListSubscriptions" => self.one(completions.list_subscriptions(self.request()).await),
            "DeleteSubscription" => self.one(completions.delete_subscription(self.request()).await),
            "GetCatalog" => self.one(catalogs.get_catalog(self.request()).await),
            "ApplyCatalog" => self.one(catalogs.apply_catalog(self.request()).await),
            "ListTitles" => self.one(catalogs.list_titles(self.request()).await),
            "GetRarity" => self.one(catalogs.get_rarity(self.request()).await),
            "SyncAchievementStorage" => {
                self.one(storage.sync_achievement_storage(self.request()).await)
            }
            "ResetAchievement" => self.one(operator.reset_achievement(self.request()).await),
            "ErasePlayer" => self.one(operator.erase_player(self.request()).await),
            other => panic!("{other} is in the table: call it here"),
        }
    }

    fn request<T: Message + Default>(&self) -> Request<T> {
        Request::new(self.message.transcode_to().unwrap())
    }

    /// A stream that this is all of.
    fn requests<T: Message + Default>(&self) -> Once<T> {
        tokio_stream::once(self.message.transcode_to().unwrap())
    }

    fn one<T: Message>(&self, answer: Result<Response<T>, Status>) -> Result<Value, Status> {
        let found = self.to_json(&answer?.into_inner());
        Ok(json!({ "response": found }))
    }

    /// The first messages of a stream; then it is cancelled.
    async fn some<T: Message>(
        &self,
        answer: Result<Response<Streaming<T>>, Status>,
    ) -> Result<Value, Status> {
        let mut stream = answer?.into_inner();
        let mut found = Vec::new();
        for _ in 0..self.take {
            let Some(message) = stream.message().await? else { break };
            found.push(self.to_json(&message));
        }
        Ok(json!({ "responses": found }))
    }

    /// Every field, the defaults too, under the names of the `.proto` files.
    fn to_json(&self, message: &impl Message) -> Value {
        let mut dynamic = DynamicMessage::new(self.method.output());
        dynamic.transcode_from(message).unwrap();
        let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
        dynamic.serialize_with_options(serde_json::value::Serializer, &options).unwrap()
    }
}

fn error(status: &Status) -> Value {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let mut fields = fields(status);
    fields.sort();
    json!({ "error": { "code": code_name(status.code()), "reason": reason, "fields": fields } })
}

/// `NOT_FOUND` for `NotFound`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A value of the table, with what was kept before, and with its repetitions.
fn filled(value: &Value, kept: &Map<String, Value>) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| filled(item, kept)).collect(),
        Value::Object(fields) => {
            if let Some(name) = fields.get("$") {
                return kept[name.as_str().unwrap()].clone();
            }
            if let (Some(item), Some(times)) = (fields.get("repeat"), fields.get("times")) {
                return repeated(item, usize::try_from(times.as_u64().unwrap()).unwrap());
            }
            let fields = fields.iter().map(|(name, value)| (name.clone(), filled(value, kept)));
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

fn repeated(value: &Value, times: usize) -> Value {
    match value {
        Value::String(text) => Value::String(text.repeat(times)),
        Value::Array(items) => iter::repeat_n(items, times).flatten().cloned().collect(),
        other => panic!("{other} cannot be repeated"),
    }
}

/// Whether an answer is what the table says.
fn fits(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::String(any), Value::String(text)) if any == "*" => !text.is_empty() && text != "0",
        (Value::Object(expected), Value::Object(found)) => {
            let mut others = found.iter().filter(|(name, _)| !expected.contains_key(*name));
            others.all(|(_, it)| is_default(it))
                && expected.iter().all(|(name, it)| found.get(name).is_some_and(|at| fits(it, at)))
        }
        (Value::Array(expected), Value::Array(found)) => lists_fit(expected, found),
        (Value::Number(expected), Value::Number(found)) => expected.as_f64() == found.as_f64(),
        _ => expected == found,
    }
}

fn lists_fit(expected: &[Value], found: &[Value]) -> bool {
    match (expected, found) {
        ([], _) => found.is_empty(),
        ([any, rest @ ..], _) if any == "..." => {
            (0..=found.len()).any(|at| lists_fit(rest, &found[at..]))
        }
        ([first, rest @ ..], [item, others @ ..]) => fits(first, item) && lists_fit(rest, others),
        _ => false,
    }
}

/// Whether it stands for a field that is not set; 64-bit integers are texts.
fn is_default(value: &Value) -> bool {
    [json!(""), json!("0"), json!(0), json!(false), json!([])].contains(value)
}

/// The value at a path such as `results.0.cursor`.
fn pick<'a>(answer: &'a Value, path: &str) -> &'a Value {
    let found = answer.pointer(&format!("/{}", path.replace('.', "/")));
    found.unwrap_or_else(|| panic!("no {path} in {answer}"))
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    format!("{text:.2000}")
}

/// Runs a case up to the first answer that is not the table's, and tells that one as the error.
/// Gives the number of calls.
async fn run(channel: &Channel, pool: &DescriptorPool, case: &Value) -> Result<usize, String> {
    let calls = case["calls"].as_array().unwrap();
    let mut kept = Map::new();
    for (number, row) in (1..).zip(calls) {
        let path = row["method"].as_str().unwrap();
        let request = filled(&row["request"], &kept);
        let place = format!("{}: call {number}, {path} of {}", case["name"], short(&request));
        let kinds = ["response", "responses", "error"];
        let kind = kinds.into_iter().find(|kind| row.get(kind).is_some()).expect("an answer");
        let expected = json!({ kind: filled(&row[kind], &kept) });

        let call = Call::new(pool, path, request, row["take"].as_u64().unwrap_or(u64::MAX));
        let answer = timeout(PATIENCE, call.answer(channel)).await;
        let answer = answer.unwrap_or_else(|_| panic!("{place}\n  is not answered in time"));
        let found = answer.unwrap_or_else(|status| error(&status));
        if !fits(&expected, &found) {
            let (expected, found) = (short(&expected), short(&found));
            return Err(format!("{place}\n  expected {expected}\n  found    {found}"));
        }
        for (name, path) in row["keep"].as_object().into_iter().flatten() {
            kept.insert(name.clone(), pick(&found[kind], path.as_str().unwrap()).clone());
        }
    }
    Ok(calls.len())
}

#[tokio::test]
async fn a_client_in_rust_is_answered_as_the_table_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/clients/cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&table).unwrap();
    assert!(!cases.is_empty());
    // A title that is read from a file, for the case that tries to change it.
    let sample = format!("from-a-file={}", root.join("samples/demo.toml").display());
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--catalog", &sample]);
    let channel = server.channel().await;
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let mut answered = 0;
    let mut differences = Vec::new();
    for case in &cases {
        match run(&channel, &pool, case).await {
            Ok(calls) => answered += calls,
            Err(difference) => differences.push(difference),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(answered, table.matches("\"method\":").count(), "every call of the table is made");
}

/// Goal: the test above would see an answer that differs.
#[test]
fn an_answer_that_differs_does_not_fit() {
    let expected = json!({ "id": "a", "at": "*", "list": [1, "...", 4] });
    let found = json!({ "id": "a", "at": "17", "list": [1, 2, 3, 4], "none": [], "zero": "0" });
    assert!(fits(&expected, &found));
    for (name, value) in [
        ("id", json!("b")),
        ("id", json!(null)),
        ("at", json!("0")),
        ("at", json!(17)),
        ("list", json!([1, 2, 3])),
        ("list", json!([4])),
        ("more", json!("x")),
        ("more", json!({})),
    ] {
        let mut other = found.clone();
        other[name] = value;
        assert!(!fits(&expected, &other), "{other}");
    }
    let mut without = found;
    without.as_object_mut().unwrap().remove("id");
    assert!(!fits(&expected, &without));
}
