//! The feed of completions: following it, reading it in pages, and forgetting its old end.
//!
//! A subscriber is fed at its own pace, from memory while it keeps up and else from the store:
//! nothing is queued for it, so one that stops reading costs nothing but its connection.

mod live;
mod page;
mod retention;
mod watch;

pub use live::Live;
pub use page::{Page, PageRequest, page};
pub use retention::{RetentionRule, retain};
pub use watch::{FeedEvent, Start, WatchError, WatchRequest};

#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod page_tests;
