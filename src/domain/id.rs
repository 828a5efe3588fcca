//! Ids: 1 to 128 bytes of UTF-8 without control characters. A value of these types is always
//! legal; cloning one is cheap.

use std::{fmt, sync::Arc};

use thiserror::Error;

/// Longest id, in bytes. Keys hold lengths in one byte, and 128 is twice the longest id seen in
/// the field (a SHA-256 in hex).
pub const ID_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdError {
    /// The text is empty.
    #[error("must not be empty; pass 1 to {ID_BYTES_MAX} bytes")]
    Empty,
    /// The text is too long.
    #[error("is {bytes} bytes long; pass 1 to {ID_BYTES_MAX} bytes")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The text has a control character.
    #[error("has a control character at byte {at}; pass printable characters only")]
    ControlCharacter {
        /// Where, in bytes from the start.
        at: usize,
    },
}

fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong { bytes: text.len() });
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(IdError::ControlCharacter { at }),
        None => Ok(()),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes the text.
            ///
            /// # Errors
            ///
            /// [`IdError`] where the text is not 1 to 128 bytes without control characters.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        // Ids come from outside: the quoted form keeps odd characters out of terminals and logs.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

id!(
    /// A game or mod; every key begins with it, and titles never see each other.
    Title
);
id!(
    /// A player of a title.
    PlayerId
);
id!(
    /// One achievement of a title.
    NodeId
);
id!(
    /// A caller's name for one update, the same on every retry.
    RequestId
);

id!(
    /// A named subscription of a title, whose cursor the store keeps.
    SubscriptionName
);

/// A player of a title: what a set or a read is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlayerKey {
    /// The title.
    pub title: Title,
    /// The player.
    pub player: PlayerId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_printable_text_of_1_to_128_bytes_is_an_id() {
        for text in ["10001", "../../x", "a/b", "玩家", "😀", " ", "\u{202e}x", &"x".repeat(128)]
        {
            assert_eq!(PlayerId::parse(text).map(|id| id.as_str().to_owned()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_to_do() {
        assert_eq!(NodeId::parse(""), Err(IdError::Empty));
        assert_eq!(NodeId::parse(&"x".repeat(129)), Err(IdError::TooLong { bytes: 129 }));
        for (text, at) in [("a\0b", 1), ("\n", 0), ("ab\x1b[2J", 2), ("\u{85}", 0), ("x\x7f", 1)] {
            assert_eq!(NodeId::parse(text), Err(IdError::ControlCharacter { at }), "{text:?}");
        }
    }

    #[test]
    fn debug_output_is_one_line_of_visible_characters() {
        let id = PlayerId::parse("\u{202e}\"x").unwrap();
        assert_eq!(format!("{id:?}"), r#""\u{202e}\"x""#);
    }
}
