//! Compiles the protocol files with protox, so that nobody needs protoc.

use std::{env, fs, path::PathBuf};

use tonic_build::manual::{Builder, Method, Service};

const API: [&str; 4] = [
    "accolade/v1/storage.proto",
    "accolade/v1/completion.proto",
    "accolade/v1/catalog.proto",
    "accolade/v1/admin.proto",
];
const ROWS: [&str; 1] = ["accolade/store/v1/rows.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    // The same set of descriptors generates the code and answers reflection.
    let api = protox::compile(API, ["proto"])?;
    fs::write(out.join("accolade_descriptor.bin"), protox_bytes(&api))?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds(api)?;

    // One encoding of a completion serves all who watch.
    let watch = Method::builder()
        .name("watch_completions")
        .route_name("WatchCompletions")
        .input_type("crate::proto::v1::WatchCompletionsRequest")
        .output_type("crate::proto::Encoded<crate::proto::v1::WatchCompletionsResponse>")
        .codec_path("crate::proto::EncodedCodec")
        .server_streaming()
        .build();
    let consume = Method::builder()
        .name("consume_completions")
        .route_name("ConsumeCompletions")
        .input_type("crate::proto::v1::ConsumeCompletionsRequest")
        .output_type("crate::proto::Encoded<crate::proto::v1::ConsumeCompletionsResponse>")
        .codec_path("crate::proto::EncodedCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let service = Service::builder()
        .name("CompletionService")
        .package("accolade.v1")
        .method(watch)
        .method(plain("list_completions", "ListCompletions"))
        .method(consume)
        .method(plain("list_subscriptions", "ListSubscriptions"))
        .method(plain("delete_subscription", "DeleteSubscription"))
        .build();
    Builder::new().build_client(false).compile(&[service]);

    let rows = protox::compile(ROWS, ["proto"])?;
    tonic_prost_build::configure().compile_fds(rows)?;
    Ok(())
}

fn plain(name: &str, route: &str) -> Method {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::proto::v1::{route}Request"))
        .output_type(format!("crate::proto::v1::{route}Response"))
        .codec_path("tonic_prost::ProstCodec")
        .build()
}

fn protox_bytes(set: &protox::prost_reflect::prost_types::FileDescriptorSet) -> Vec<u8> {
    use protox::prost_reflect::prost::Message;
    set.encode_to_vec()
}
