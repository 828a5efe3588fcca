//! The feed of completions: following it, reading it in pages, and forgetting its old end.
//!
//! A subscriber is fed from the store at its own pace: nothing is queued for it, so one that stops
//! reading costs nothing but its connection.

mod page;
mod retention;
mod watch;

pub use page::{Page, PageRequest, page};
pub use retention::{RetentionRule, retain};
pub use watch::{FeedEvent, Start, WatchError, WatchRequest, watch};
