//! Compiles the protocol files with protox, so that nobody needs protoc.

use std::{env, fs, path::PathBuf};

const API: [&str; 3] =
    ["accolade/v1/storage.proto", "accolade/v1/completion.proto", "accolade/v1/catalog.proto"];
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

    let rows = protox::compile(ROWS, ["proto"])?;
    tonic_prost_build::configure().compile_fds(rows)?;
    Ok(())
}

fn protox_bytes(set: &protox::prost_reflect::prost_types::FileDescriptorSet) -> Vec<u8> {
    use protox::prost_reflect::prost::Message;
    set.encode_to_vec()
}
