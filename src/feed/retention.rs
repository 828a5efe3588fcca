//! Forgetting the old end of feeds, by age and by count. The default keeps everything.

use std::time::Duration;

use crate::{
    domain::{EpochSeconds, Title},
    store::{Retention, Store, StoreError},
};

/// What to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionRule {
    /// Completions younger than this; `None` keeps any age.
    pub age: Option<Duration>,
    /// This many of each title; `None` keeps any number.
    pub count: Option<u64>,
}

/// Applies the rule once to each of these titles; tells how many completions went.
///
/// # Errors
///
/// [`StoreError`] where the store could not, for at least one of them.
pub async fn retain(
    store: &dyn Store,
    titles: &[Title],
    now: EpochSeconds,
    rule: RetentionRule,
) -> Result<usize, StoreError> {
    if rule == RetentionRule::default() {
        return Ok(0);
    }
    let since = |age: Duration| EpochSeconds::new(now.get().saturating_sub(age.as_secs()));
    let keep = Retention { stored_since: rule.age.map(since), count: rule.count };
    let (mut removed, mut failed) = (0, None);
    for title in titles {
        loop {
            match store.trim_feed(title, keep).await {
                Ok(0) => break,
                Ok(step) => removed += step,
                // One title's trouble does not keep the others from being trimmed.
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
    }
    failed.map_or(Ok(removed), Err)
}
