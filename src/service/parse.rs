//! Requests into domain values, with every wrong field told at once.

use std::{collections::HashSet, fmt, hash::Hash, time::Duration};

use tonic::Status;

use super::{
    FILTER_IDS_MAX,
    status::{self, Violation},
};
use crate::domain::{
    Change, CompletionFilter, Extra, IdError, NodeId, PlayerId, Reason, RequestId, SetUpdate,
    SubscriptionName, Title, ValueError, Version,
};

/// Collects wrong fields while a request is parsed.
#[derive(Default)]
pub(super) struct Fields(Vec<Violation>);

/// The part of a set that says what is asked, alike in a single set and in a batch.
pub(super) struct Asked<'a> {
    pub(super) change: Option<AskedChange>,
    pub(super) extra: Option<&'a str>,
    pub(super) expected_version: Option<i64>,
}

/// The `change` of a request.
#[derive(Clone, Copy)]
pub(super) enum AskedChange {
    Delta(i64),
    AtLeast(i64),
    Finish(bool),
}

// === impl Fields ===

impl Fields {
    pub(super) fn wrong(&mut self, field: impl Into<String>, problem: impl fmt::Display) {
        self.0.push(Violation { field: field.into(), problem: problem.to_string() });
    }

    /// The value, where every field was right.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Status> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(status::invalid(self.0)),
        }
    }

    fn take<T, E: fmt::Display>(&mut self, field: &str, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.wrong(field, error)).ok()
    }

    pub(super) fn title(&mut self, text: &str) -> Option<Title> {
        self.title_at("title", text)
    }

    pub(super) fn title_at(&mut self, field: &str, text: &str) -> Option<Title> {
        self.take(field, Title::parse(text))
    }

    pub(super) fn player(&mut self, text: &str) -> Option<PlayerId> {
        self.player_at("player_id", text)
    }

    pub(super) fn player_at(&mut self, field: &str, text: &str) -> Option<PlayerId> {
        self.take(field, PlayerId::parse(text))
    }

    pub(super) fn reason(&mut self, text: &str) -> Option<Reason> {
        self.take("reason", Reason::parse(text))
    }

    pub(super) fn expected_version(&mut self, version: Option<i64>) -> Option<Version> {
        version.and_then(|version| self.take("expected_version", Version::parse(version)))
    }

    pub(super) fn subscription(&mut self, field: &str, text: &str) -> Option<SubscriptionName> {
        self.take(field, SubscriptionName::parse(text))
    }

    pub(super) fn node(&mut self, field: &str, text: &str) -> Option<NodeId> {
        self.take(field, NodeId::parse(text))
    }

    /// "" stands for none.
    pub(super) fn request_id(&mut self, text: &str) -> Option<RequestId> {
        self.request_id_at("request_id", text)
    }

    /// "" stands for none.
    pub(super) fn request_id_at(&mut self, field: &str, text: &str) -> Option<RequestId> {
        match text {
            "" => None,
            text => self.take(field, RequestId::parse(text)),
        }
    }

    pub(super) fn update(
        &mut self,
        prefix: &str,
        asked: &Asked<'_>,
        extra_bytes_max: usize,
    ) -> Option<SetUpdate> {
        let change = asked.change.and_then(|change| self.change(prefix, change));
        let extra = asked.extra.and_then(|text| {
            self.take(&format!("{prefix}extra"), Extra::parse(text, extra_bytes_max))
        });
        let expected = asked.expected_version.and_then(|version| {
            self.take(&format!("{prefix}expected_version"), Version::parse(version))
        });
        if asked.change.is_none() && asked.extra.is_none() {
            let problem = "is missing: pass delta, at_least or finish, or extra alone";
            self.wrong(format!("{prefix}change"), problem);
        }
        SetUpdate::new(change, extra, expected)
    }

    pub(super) fn change(&mut self, prefix: &str, change: AskedChange) -> Option<Change> {
        let number = |this: &mut Self, field, parsed: Result<Change, ValueError>| {
            this.take(&format!("{prefix}{field}"), parsed)
        };
        match change {
            AskedChange::Delta(value) => number(self, "delta", Change::delta(value)),
            AskedChange::AtLeast(value) => number(self, "at_least", Change::at_least(value)),
            AskedChange::Finish(true) => Some(Change::Finish),
            AskedChange::Finish(false) => {
                self.wrong(format!("{prefix}finish"), "is false; pass true, or leave it out");
                None
            }
        }
    }

    /// A list of ids without repetition.
    pub(super) fn ids<T: Eq + Hash>(
        &mut self,
        field: &str,
        texts: &[String],
        count_max: usize,
        parse: fn(&str) -> Result<T, IdError>,
    ) -> HashSet<T> {
        if texts.len() > count_max {
            let count = texts.len();
            self.wrong(field, format!("has {count} ids; pass at most {count_max}"));
            return HashSet::new();
        }
        let items = texts.iter().enumerate();
        items.filter_map(|(i, text)| self.take(&format!("{field}[{i}]"), parse(text))).collect()
    }

    pub(super) fn filter(
        &mut self,
        prefix: &str,
        players: &[String],
        nodes: &[String],
    ) -> CompletionFilter {
        let [of_players, of_nodes] =
            ["player_ids", "achievement_ids"].map(|field| format!("{prefix}{field}"));
        CompletionFilter {
            players: self.ids(&of_players, players, FILTER_IDS_MAX, PlayerId::parse),
            nodes: self.ids(&of_nodes, nodes, FILTER_IDS_MAX, NodeId::parse),
        }
    }

    /// A duration in a range; absent is the default.
    pub(super) fn duration(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
        range: std::ops::RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(value) = value else { return default };
        match Duration::try_from(value) {
            Ok(duration) if range.contains(&duration) => duration,
            _ => {
                let (min, max) = (range.start().as_secs_f64(), range.end().as_secs_f64());
                self.wrong(field, format!("is out of range; pass {min} to {max} seconds"));
                default
            }
        }
    }
}
