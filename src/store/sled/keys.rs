//! Keys of the one tree. Everything is in one tree because sled applies a batch atomically within
//! a tree only, and a record and its completion must appear together.
//!
//! A text is written as its length (1 byte) and its bytes, so that no text can run into the next
//! and no separator is needed; numbers are big-endian, so that they sort.
//!
//! | first byte | then | value | owner |
//! |---|---|---|---|
//! | 1 | nothing | `StoreRow` | open |
//! | 2 | title | `TitleRow` | catalogue; the commit point of a replacement |
//! | 3 | title, revision (8), chunk (4) | `CatalogChunkRow` | catalogue; never changed |
//! | 4 | title | `FeedRow` | retention |
//! | 5 | title, player, node | `RecordRow` | sets |
//! | 6 | title, sequence (8) | `CompletionRow` | sets, resets; removed by retention only |
//! | 7 | title, subscription | `SubscriptionRow` | consumers |
//!
//! First bytes are stored, so they never change meaning.

use crate::domain::{NodeId, PlayerId, PlayerKey, SubscriptionName, Title};

const STORE: u8 = 1;
const TITLE: u8 = 2;
const CATALOG_CHUNK: u8 = 3;
const FEED: u8 = 4;
const RECORD: u8 = 5;
const COMPLETION: u8 = 6;
const SUBSCRIPTION: u8 = 7;

/// A key, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Store,
    Title(Title),
    CatalogChunk { title: Title, revision: u64, chunk: u32 },
    Feed(Title),
    Record(PlayerKey, NodeId),
    Completion { title: Title, sequence: u64 },
    Subscription(Title, SubscriptionName),
}

impl Key {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Store => vec![STORE],
            Self::Title(title) => of_title(TITLE, title),
            Self::CatalogChunk { title, revision, chunk } => {
                let mut key = of_title(CATALOG_CHUNK, title);
                key.extend_from_slice(&revision.to_be_bytes());
                key.extend_from_slice(&chunk.to_be_bytes());
                key
            }
            Self::Feed(title) => of_title(FEED, title),
            Self::Record(player, node) => record(player, node),
            Self::Completion { title, sequence } => completion(title, *sequence),
            Self::Subscription(title, name) => {
                let mut key = of_title(SUBSCRIPTION, title);
                push_text(&mut key, name.as_str());
                key
            }
        }
    }

    /// Reads a key; `None` where no version of this program writes such a key.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let [tag] = reader.take()?;
        let key = match tag {
            STORE => Self::Store,
            TITLE => Self::Title(reader.title()?),
            CATALOG_CHUNK => Self::CatalogChunk {
                title: reader.title()?,
                revision: u64::from_be_bytes(reader.take()?),
                chunk: u32::from_be_bytes(reader.take()?),
            },
            FEED => Self::Feed(reader.title()?),
            RECORD => {
                let title = reader.title()?;
                let player = PlayerId::parse(reader.text()?).ok()?;
                let node = NodeId::parse(reader.text()?).ok()?;
                Self::Record(PlayerKey { title, player }, node)
            }
            COMPLETION => Self::Completion {
                title: reader.title()?,
                sequence: u64::from_be_bytes(reader.take()?),
            },
            SUBSCRIPTION => {
                let title = reader.title()?;
                Self::Subscription(title, SubscriptionName::parse(reader.text()?).ok()?)
            }
            _ => return None,
        };
        reader.0.is_empty().then_some(key)
    }
}

/// The key of a record.
pub(super) fn record(player: &PlayerKey, node: &NodeId) -> Vec<u8> {
    let mut key = records_of_player(player);
    push_text(&mut key, node.as_str());
    key
}

/// The key of a completion.
pub(super) fn completion(title: &Title, sequence: u64) -> Vec<u8> {
    let mut key = of_title(COMPLETION, title);
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

/// What all records of a player begin with.
pub(super) fn records_of_player(player: &PlayerKey) -> Vec<u8> {
    let mut key = of_title(RECORD, &player.title);
    push_text(&mut key, player.player.as_str());
    key
}

/// What stands behind all records of a player, and before those of the next.
pub(super) fn behind_player(title: &Title, player: &PlayerId) -> Vec<u8> {
    let mut key = of_title(RECORD, title);
    push_text(&mut key, player.as_str());
    // No length of an id is so large.
    key.push(u8::MAX);
    key
}

/// What all records of a title begin with.
pub(super) fn records_of_title(title: &Title) -> Vec<u8> {
    of_title(RECORD, title)
}

/// Where all records and all events stand: from the first of these to before the second.
pub(super) fn records_and_events() -> ([u8; 1], [u8; 1]) {
    ([RECORD], [COMPLETION + 1])
}

/// What all chunks of all revisions of a title's catalogue begin with.
pub(super) fn chunks_of_title(title: &Title) -> Vec<u8> {
    of_title(CATALOG_CHUNK, title)
}

/// What all chunks of all catalogues begin with.
pub(super) fn chunks() -> [u8; 1] {
    [CATALOG_CHUNK]
}

/// What all title rows begin with.
pub(super) fn titles() -> [u8; 1] {
    [TITLE]
}

fn of_title(tag: u8, title: &Title) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.push(tag);
    push_text(&mut key, title.as_str());
    key
}

fn push_text(key: &mut Vec<u8>, text: &str) {
    key.push(u8::try_from(text.len()).expect("ids are at most 128 bytes"));
    key.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn text(&mut self) -> Option<&'a str> {
        let [len] = self.take()?;
        let (text, rest) = self.0.split_at_checked(usize::from(len))?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn title(&mut self) -> Option<Title> {
        Title::parse(self.text()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> impl Strategy<Value = String> {
        "\\PC{1,30}".prop_filter("an id", |text| Title::parse(text).is_ok())
    }

    fn key() -> impl Strategy<Value = Key> {
        (0..7u8, id(), id(), id(), any::<u64>(), any::<u32>()).prop_map(
            |(tag, title, player, node, number, chunk)| {
                let title = Title::parse(&title).unwrap();
                match tag {
                    0 => Key::Store,
                    1 => Key::Title(title),
                    2 => Key::CatalogChunk { title, revision: number, chunk },
                    3 => Key::Feed(title),
                    4 => {
                        let player = PlayerId::parse(&player).unwrap();
                        Key::Record(PlayerKey { title, player }, NodeId::parse(&node).unwrap())
                    }
                    5 => Key::Subscription(title, SubscriptionName::parse(&player).unwrap()),
                    _ => Key::Completion { title, sequence: number },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_key_reads_back_as_itself(key in key()) {
            prop_assert_eq!(Key::decode(&key.encode()), Some(key));
        }

        #[test]
        fn no_key_begins_another(a in key(), b in key()) {
            prop_assert!(a == b || !a.encode().starts_with(&b.encode()));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn completions_sort_by_sequence(a: u64, b: u64, title in id()) {
            let title = Title::parse(&title).unwrap();
            prop_assert_eq!(completion(&title, a).cmp(&completion(&title, b)), a.cmp(&b));
        }
    }

    #[test]
    fn a_separator_in_an_id_does_not_move_the_border() {
        let key = |player: &str, node: &str| {
            let title = Title::parse("t").unwrap();
            let player = PlayerId::parse(player).unwrap();
            record(&PlayerKey { title, player }, &NodeId::parse(node).unwrap())
        };
        assert_ne!(key("a/b", "c"), key("a", "b/c"));
        assert_ne!(key("ab", "c"), key("a", "bc"));
    }
}
