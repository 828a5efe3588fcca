//! Accolade: achievement progress with versions, and a durable stream of completions, over gRPC.

pub mod access;
/// Catalogue files in, one live catalogue a title out.
pub mod catalog;
/// The command line.
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod connect;
/// Ids, definitions, records, the rules of a set: pure.
pub mod domain;
/// Following and reading the feed of completions.
pub mod feed;
pub mod metrics;
/// Generated from `proto/`: the API, and the rows on disk.
pub mod proto;
/// What listens, within which limits, and how it stops.
pub mod server;
/// The API: messages in and out.
pub mod service;
/// Where everything is kept: the trait, sled, memory.
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;

/// The Rust in README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
