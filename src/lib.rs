//! Accolade: achievement progress with versions, and a durable stream of completions, over gRPC.

pub mod clock;
/// Ids, definitions, records, the rules of a set: pure.
pub mod domain;
/// Generated from `proto/`: the API, and the rows on disk.
pub mod proto;
/// Where everything is kept: the trait, sled, memory.
pub mod store;
