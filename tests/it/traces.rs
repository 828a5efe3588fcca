//! Traces: what a collector gets of a request.

use std::time::Duration;

use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, async_trait, transport::server::TcpIncoming};

use crate::support::{PATIENCE, Server, delta};

const SET: &str = "accolade.v1.AchievementStorageService/SetAchievementStorage";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|it| it.value.clone()).and_then(|it| it.value) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{key}: {other:?} in {span:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_each_request_below_its_callers_span_and_without_ids() {
    let (sender, mut exports) = mpsc::channel(100);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpIncoming::from(listener));
    let collector = tokio::spawn(collector);

    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--otlp-endpoint", &endpoint]);
    let mut client = server.storage().await;
    let mut request = Request::new(delta("demo", "a-player", "chef", 1));
    let parent = format!("00-{TRACE}-{PARENT}-01").parse().unwrap();
    request.metadata_mut().insert("traceparent", parent);
    client.set_achievement_storage(request).await.unwrap();
    client.set_achievement_storage(delta("demo", "a-player", "nowhere", 1)).await.unwrap_err();
    let log = server.log();
    // What is left is sent when the server stops.
    server.terminate();
    assert!(server.wait().await.success());

    let mut spans = Vec::new();
    while spans.len() < 2 {
        let export = tokio::time::timeout(PATIENCE, exports.recv()).await.unwrap().unwrap();
        let text = format!("{export:?}");
        assert!(!text.contains("a-player") && !text.contains("demo"), "{text}");
        let resources = export.resource_spans.into_iter();
        spans.extend(resources.flat_map(|it| it.scope_spans).flat_map(|it| it.spans));
    }
    assert!(exports.try_recv().is_err(), "each request is one span");
    let code = |span: &Span| text(span, "rpc.response.status_code");
    spans.sort_by_key(code);
    let [failed, stored] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!([code(failed), code(stored)], ["NOT_FOUND", "OK"]);
    assert_eq!(
        [&stored.trace_id, &stored.parent_span_id].map(|id| HEXLOWER.encode(id)),
        [TRACE, PARENT]
    );
    assert!(failed.parent_span_id.is_empty(), "{failed:?}");
    for span in &spans {
        assert_eq!((span.name.as_str(), text(span, "rpc.method").as_str()), (SET, SET));
        let nanos = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
        assert!(Duration::from_nanos(nanos) < PATIENCE, "{span:?}");
    }
    assert!(!log.contains("rpc.method"), "spans are not for the log: {log}");
    collector.abort();
}
