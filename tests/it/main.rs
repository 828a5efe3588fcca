//! The real binary, driven from outside.

#[path = "../support/mod.rs"]
mod support;

mod architecture;
mod bad_input;
mod catalog;
mod command_line;
mod documents;
mod durability;
mod lifecycle;
mod story;
mod stream_set;
mod watch;
