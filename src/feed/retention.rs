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
/// [`StoreError`] where the store could not.
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
    let keep = Retention { completed_since: rule.age.map(since), count: rule.count };
    let mut removed = 0;
    for title in titles {
        loop {
            let step = store.trim_feed(title, keep).await?;
            removed += step;
            if step == 0 {
                break;
            }
        }
    }
    Ok(removed)
}
