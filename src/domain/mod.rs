//! Ids, definitions, records and the rules of a set: pure values and pure functions, without
//! clock, I/O or runtime. Everything here can be tested by calling it.

mod catalog;
mod completion;
mod id;
mod late;
mod record;
mod reset;
mod rules;
mod update;

pub use catalog::{
    Catalog, CatalogDiff, CatalogMistake, DEFINITIONS_MAX, Definition, DefinitionDraft, Node,
};
pub use completion::{Completion, CompletionFilter, Cursor, Entry, Event, Reset};
pub use id::{
    ID_BYTES_MAX, IdError, NodeId, PlayerId, PlayerKey, RequestId, SubscriptionName, Title,
};
pub use late::{LATE_DAYS_MAX, LATE_UPDATES_MAX, Late};
pub use record::{
    EpochSeconds, Extra, MaxProgress, PROGRESS_MAX, Progress, REMEMBERED_UPDATES, Record,
    Remembered, State, ValueError, Version,
};
pub use reset::{REASON_BYTES_MAX, Reason, ReasonError, ResetRuling, ResetUpdate, decide_reset};
pub use rules::{Outcome, Refusal, Ruling, Verdict, decide};
pub use update::{BATCH_UPDATES_MAX, Change, NodeUpdate, PlayerUpdate, SetUpdate};
