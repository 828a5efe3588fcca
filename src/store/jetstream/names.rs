//! Names in a JetStream cluster, and which partition a player is in.
//!
//! With the prefix `ach`, the stream `ACH` has what all titles share, and `ACH_0`, `ACH_1`, … have
//! the partitions. Ids are base64url without padding, since subjects take no dots and no spaces.
//!
//! | subject | holds |
//! |---|---|
//! | `ach.engine` | how the streams are laid out |
//! | `ach.title.<title>` | which pieces are a title's catalogue |
//! | `ach.piece.<title>.<n>` | the pieces |
//! | `ach.<p>.layout` | the same as `ach.engine`; the first message |
//! | `ach.<p>.mark` | nothing; who has the last one has all that was stored before it |
//! | `ach.<p>.kv.<title>.<player>` | a player's document, only the last |
//! | `ach.<p>.ev.<title>` | what happened in the feed, all of it |
//! | `ach.<p>.feed.<title>` | what is known of the feed beside its events |
//! | `ach.<p>.sub.<title>.<name>` | a named subscription, in the partition of its title |
//! | `ach.on.…` | in no stream: tells servers at once what was stored |

use data_encoding::BASE64URL_NOPAD;

use crate::domain::{PlayerId, PlayerKey, SubscriptionName, Title};

/// Most partitions of an installation.
pub const PARTITIONS_MAX: u32 = 256;

/// The names of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    prefix: String,
    pub(super) partitions: u32,
}

fn encode(id: &str) -> String {
    BASE64URL_NOPAD.encode(id.as_bytes())
}

fn decode(token: &str) -> Option<String> {
    String::from_utf8(BASE64URL_NOPAD.decode(token.as_bytes()).ok()?).ok()
}

impl Names {
    pub(super) fn new(prefix: &str, partitions: u32) -> Self {
        Self { prefix: prefix.to_owned(), partitions }
    }

    /// The partition of a player.
    pub(super) fn partition(&self, player: &PlayerKey) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(player.title.as_str().as_bytes());
        hasher.update(&[0]);
        hasher.update(player.player.as_str().as_bytes());
        hasher.finalize() % self.partitions
    }

    /// The partition that has a title's subscriptions.
    pub(super) fn home(&self, title: &Title) -> u32 {
        crc32fast::hash(title.as_str().as_bytes()) % self.partitions
    }

    pub(super) fn shared_stream(&self) -> String {
        self.prefix.to_uppercase()
    }

    pub(super) fn stream(&self, partition: u32) -> String {
        format!("{}_{partition}", self.prefix.to_uppercase())
    }

    /// Everything in the stream that is shared.
    pub(super) fn shared_subjects(&self) -> Vec<String> {
        ["engine", "title.*", "piece.*.*"].map(|it| format!("{}.{it}", self.prefix)).to_vec()
    }

    /// Everything in a partition.
    pub(super) fn subjects(&self, partition: u32) -> Vec<String> {
        vec![format!("{}.{partition}.>", self.prefix)]
    }

    pub(super) fn engine(&self) -> String {
        format!("{}.engine", self.prefix)
    }

    /// Where messages go that say nothing, and tell how far a replica is.
    pub(super) fn mark(&self, partition: u32) -> String {
        format!("{}.{partition}.mark", self.prefix)
    }

    /// The first message of a partition, so that its first sequence is no event's.
    pub(super) fn first(&self, partition: u32) -> String {
        format!("{}.{partition}.layout", self.prefix)
    }

    pub(super) fn title(&self, title: &Title) -> String {
        format!("{}.title.{}", self.prefix, encode(title.as_str()))
    }

    /// Stands for the subjects of all titles.
    pub(super) fn titles(&self) -> String {
        format!("{}.title.*", self.prefix)
    }

    /// The title of a subject that [`Self::title`] made.
    pub(super) fn title_of(subject: &str) -> Option<Title> {
        Title::parse(&decode(subject.split('.').nth(2)?)?).ok()
    }

    pub(super) fn piece(&self, title: &Title, number: u32) -> String {
        format!("{}.piece.{}.{number}", self.prefix, encode(title.as_str()))
    }

    pub(super) fn document(&self, partition: u32, player: &PlayerKey) -> String {
        let (title, id) = (encode(player.title.as_str()), encode(player.player.as_str()));
        format!("{}.{partition}.kv.{title}.{id}", self.prefix)
    }

    /// Stands for the documents of a title.
    pub(super) fn documents(&self, partition: u32, title: &Title) -> String {
        format!("{}.{partition}.kv.{}.*", self.prefix, encode(title.as_str()))
    }

    /// The player of a subject that [`Self::document`] made.
    pub(super) fn player_of(subject: &str) -> Option<PlayerId> {
        PlayerId::parse(&decode(subject.split('.').nth(4)?)?).ok()
    }

    pub(super) fn events(&self, partition: u32, title: &Title) -> String {
        format!("{}.{partition}.ev.{}", self.prefix, encode(title.as_str()))
    }

    pub(super) fn feed(&self, partition: u32, title: &Title) -> String {
        format!("{}.{partition}.feed.{}", self.prefix, encode(title.as_str()))
    }

    pub(super) fn subscription(&self, title: &Title, name: &SubscriptionName) -> String {
        let home = self.home(title);
        let (title, name) = (encode(title.as_str()), encode(name.as_str()));
        format!("{}.{home}.sub.{title}.{name}", self.prefix)
    }

    /// Stands for the subscriptions of a title.
    pub(super) fn subscriptions(&self, title: &Title) -> String {
        format!("{}.{}.sub.{}.*", self.prefix, self.home(title), encode(title.as_str()))
    }

    /// The name in a subject that [`Self::subscription`] made.
    pub(super) fn subscription_of(subject: &str) -> Option<SubscriptionName> {
        SubscriptionName::parse(&decode(subject.split('.').nth(4)?)?).ok()
    }

    /// What a partition repeats of its events: from these subjects, to those.
    pub(super) fn repeated_events(&self, partition: u32) -> (String, String) {
        let Self { prefix, .. } = self;
        (format!("{prefix}.{partition}.ev.>"), format!("{prefix}.on.{partition}.>"))
    }

    /// What the shared stream repeats of its catalogues: from these subjects, to those.
    pub(super) fn repeated_titles(&self) -> (String, String) {
        let Self { prefix, .. } = self;
        (format!("{prefix}.title.>"), format!("{prefix}.on.title.>"))
    }

    /// Where the events of a title are repeated, of all partitions.
    pub(super) fn on_events(&self, title: &Title) -> String {
        format!("{}.on.*.{}", self.prefix, encode(title.as_str()))
    }

    /// The partition of a subject under [`Self::on_events`].
    pub(super) fn partition_of(subject: &str) -> Option<u32> {
        subject.split('.').nth(2)?.parse().ok()
    }

    /// Where servers say things to each other.
    pub(super) fn on_words(&self) -> String {
        format!("{}.on.words", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{player, subscription, title};

    #[test]
    fn any_id_reads_back_from_its_subject() {
        let names = Names::new("ach", 4);
        for id in ["p", "a.b c*>", "玩家", &"x".repeat(128)] {
            let subject = names.document(2, &player(id, id));
            assert_eq!(Names::player_of(&subject).unwrap().as_str(), id);
            assert_eq!(subject.split('.').count(), 5, "{subject}");
            assert_eq!(Names::title_of(&names.title(&title(id))), Some(title(id)));
            let subject = names.subscription(&title(id), &subscription(id));
            assert_eq!(Names::subscription_of(&subject), Some(subscription(id)));
        }
    }

    /// Which partition a player is in may never change: these were written down once.
    #[test]
    fn players_stay_where_they_are() {
        let names = Names::new("ach", 16);
        let found: Vec<_> =
            (0..8).map(|n| names.partition(&player("t", &format!("p{n}")))).collect();
        assert_eq!(found, [13, 11, 1, 7, 4, 2, 8, 14]);
        let mut counts = [0; 16];
        for n in 0..16_000 {
            counts[names.partition(&player("t", &n.to_string())) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
    }
}
