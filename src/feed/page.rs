//! Reading a title's feed in pages.

use crate::{
    domain::{CompletionFilter, Cursor, Entry, Event, Title},
    feed::{
        Start,
        watch::{Begun, begin},
    },
    store::{FeedError, FeedSource},
};

/// Entries looked at for one page, wanted or not: the bound on its work.
const SCANNED_MAX: usize = 10_000;
const READ_AT_ONCE: usize = 1000;

/// Most bytes of texts and extras in one page, but for its last entry.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// What to read.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// The title.
    pub title: Title,
    /// Where to begin.
    pub after: Start,
    /// What is wanted.
    pub filter: CompletionFilter,
    /// Most entries to give.
    pub size: usize,
}

/// A page of a feed.
#[derive(Clone, Debug)]
pub struct Page {
    /// The entries that passed the filter.
    pub entries: Vec<Entry>,
    /// Everything up to here was given, or did not pass.
    pub cursor: Cursor,
    /// Whether the feed ends here for now.
    pub is_last: bool,
}

/// Reads one page.
///
/// # Errors
///
/// [`FeedError`], as for a watch.
pub async fn page(store: &dyn FeedSource, request: PageRequest) -> Result<Page, FeedError> {
    let PageRequest { title, after, filter, size } = request;
    let Begun { mut cursor, mut read, .. } = begin(store, &title, after, READ_AT_ONCE).await?;
    let mut entries = Vec::new();
    let (mut scanned, mut bytes) = (0, 0);
    while !read.is_empty() {
        for entry in read {
            if entries.len() == size || scanned == SCANNED_MAX || bytes > PAGE_BYTES_MAX {
                return Ok(Page { entries, cursor, is_last: false });
            }
            scanned += 1;
            cursor = entry.cursor.clone();
            if filter.admits(&entry.event) {
                bytes += weight(&entry.event);
                entries.push(entry);
            }
        }
        read = match store.entries(&title, &cursor, READ_AT_ONCE).await {
            // Retention has overtaken this page: whoever asks for the next one is told.
            Err(FeedError::Expired { .. }) => {
                return Ok(Page { entries, cursor, is_last: false });
            }
            read => read?,
        };
    }
    Ok(Page { entries, cursor, is_last: true })
}

/// About how many bytes an event takes.
fn weight(event: &Event) -> usize {
    let Event::Completion(completion) = event else { return 0 };
    let draft = completion.node.definition().draft();
    let icons = draft.unfinished_icon.len() + draft.finished_icon.len();
    let texts = [&draft.display_name, &draft.description, &draft.metadata];
    completion.extra.as_str().len() + icons + texts.iter().map(|text| text.len()).sum::<usize>()
}
