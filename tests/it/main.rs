//! The real binary, driven from outside.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod access;
mod architecture;
mod bad_input;
mod catalog;
mod command_line;
mod documents;
mod durability;
mod lifecycle;
mod metrics;
mod story;
mod stream_set;
mod tls;
mod watch;
