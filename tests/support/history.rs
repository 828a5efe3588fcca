//! Judges what clients were told: could records that change by one set at a time, in an order that
//! agrees with the clock, have given exactly these answers? (Linearizability.)
//!
//! In general that takes a search through all orders. Here every answer names the version it saw,
//! so there is little to search: put the answers in the order of their versions, and see whether
//! the clock agrees. Only sets without an answer have no version; they may fill holes.
//!
//! Records are judged one by one: that a batch of several is all or nothing is not looked at.
//! Targets must be out of reach: a set that is cut short, or finds its record completed, is not in
//! the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

#[allow(unused_imports, reason = "each test binary uses a part of this")]
pub use mutants::mutate;

#[path = "history_mutants.rs"]
mod mutants;

/// How many ways to fill holes are followed at once. More come up only where sets of many different
/// deltas had no answer, and many of them took effect without anybody looking in between.
const WAYS_MAX: usize = 100_000;

/// One get or set, and what its client was told.
///
/// A set and its retries under the same request id are one operation, from the first invocation to
/// the answer. That holds while the service knows the id again: for 8 updates of the record. With
/// more of them in between, a retry is another set, and the first one has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub client: usize,
    /// Names the record.
    pub key: String,
    pub kind: Kind,
    /// By one monotonic clock for all clients; so is `returned`.
    pub invoked: u64,
    /// `None` exactly where the outcome is unknown.
    pub returned: Option<u64>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Get,
    Set { expected: Option<u64>, delta: u64 },
}

/// An answer; it names the record as it then stood. Version 0 is a record that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored {
        version: u64,
        progress: u64,
    },
    Conflict {
        version: u64,
        progress: u64,
    },
    Read {
        version: u64,
        progress: u64,
    },
    /// No answer came. The operation took effect at any time since its invocation, or never.
    Unknown,
}

/// In any order.
pub type History = Vec<Operation>;

/// The error names the operations that cannot both, or all, be true.
pub fn check(history: &[Operation]) -> Result<(), String> {
    let mut records: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for op in history {
        op.check()?;
        records.entry(&op.key).or_default().push(op);
    }
    records.values().try_for_each(|ops| check_record(ops))
}

/// Walks the answers in the order of their versions: a set, then whatever saw what it stored.
fn check_record(ops: &[&Operation]) -> Result<(), String> {
    let unanswered = Unanswered::new(ops);
    let mut answered: Vec<_> =
        ops.iter().filter_map(|op| op.outcome.saw().map(|saw| (saw, *op))).collect();
    // Those that saw the same version have no order but the clock's.
    answered.sort_by_key(|((version, _), op)| (*version, !op.stored(), op.invoked));
    // For each place in the walk, the operation that is over first, there or later.
    let mut first_over: Vec<_> = answered.iter().map(|(_, op)| *op).collect();
    for place in (1..first_over.len()).rev() {
        if first_over[place].returned < first_over[place - 1].returned {
            first_over[place - 1] = first_over[place];
        }
    }

    let mut version = 0;
    let mut ways = vec![Way { progress: 0, used: vec![0; unanswered.blind.len()] }];
    let mut latest: Option<&Operation> = None;
    for (place, ((saw, progress), op)) in answered.iter().enumerate() {
        if let Some(latest) = latest.filter(|latest| op.returned < Some(latest.invoked)) {
            return Err(format!("{op} was over before {latest} began"));
        }
        if latest.is_none_or(|latest| latest.invoked < op.invoked) {
            latest = Some(op);
        }
        if op.stored() && version == *saw {
            return Err(format!("version {saw} was stored twice: {}; {op}", answered[place - 1].1));
        }
        while version < saw - u64::from(op.stored()) {
            version += 1;
            let first = first_over[place];
            ways = unanswered.fill(version, first.returned, &ways);
            if ways.is_empty() {
                let why = format!("nobody can have stored version {version} in time for {first}");
                return Err(why);
            }
        }
        if let (true, Kind::Set { delta, .. }) = (op.stored(), op.kind) {
            version = *saw;
            ways = ways.iter().filter_map(|way| way.plus(delta)).collect();
        }
        if !ways.iter().any(|way| way.progress == *progress) {
            let sums: BTreeSet<_> = ways.iter().map(|way| way.progress).collect();
            return Err(format!("the deltas up to {op} add up to {sums:?}"));
        }
        ways.retain(|way| way.progress == *progress);
    }
    Ok(())
}

/// One choice of sets for the holes so far.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    progress: u64,
    /// How many blind sets of each delta are taken.
    used: Vec<usize>,
}

impl Way {
    fn plus(&self, delta: u64) -> Option<Self> {
        Some(Self { progress: self.progress.checked_add(delta)?, used: self.used.clone() })
    }
}

/// The sets of one record that may fill holes. A hole is a version that somebody saw, or went
/// beyond, and that nobody was told to have stored.
///
/// A set fits a hole if it began before anything was over that saw this version or a later one:
/// that is the hole's deadline. Time asks no more of it, since its own end is open. The deadline of
/// a later hole is never an earlier one. Therefore
///
/// - of blind sets with the same delta, only the one that began first need be tried: those that fit
///   here fit all later holes too, so it makes no difference to these which one is taken;
/// - where a set with an expected version fits, blind ones with the same delta need not be tried:
///   it is of no use anywhere else.
///
/// What is left is to choose a delta. Mostly the progress that was seen next leaves one choice;
/// where it leaves several, all of them are followed.
struct Unanswered {
    /// By the version they would store: when they began, and their deltas.
    conditional: BTreeMap<u64, Vec<(u64, u64)>>,
    /// By delta: when they began, the first one first.
    blind: BTreeMap<u64, Vec<u64>>,
}

impl Unanswered {
    fn new(ops: &[&Operation]) -> Self {
        let mut unanswered = Self { conditional: BTreeMap::new(), blind: BTreeMap::new() };
        for op in ops.iter().filter(|op| op.outcome == Outcome::Unknown) {
            let Kind::Set { expected, delta } = op.kind else { continue };
            match expected {
                Some(expected) => {
                    let stores = expected.saturating_add(1);
                    unanswered.conditional.entry(stores).or_default().push((op.invoked, delta));
                }
                None => unanswered.blind.entry(delta).or_default().push(op.invoked),
            }
        }
        unanswered.blind.values_mut().for_each(|invoked| invoked.sort_unstable());
        unanswered
    }

    fn fill(&self, version: u64, deadline: Option<u64>, ways: &[Way]) -> Vec<Way> {
        let in_time = |invoked: u64| Some(invoked) <= deadline;
        let conditional = self.conditional.get(&version).into_iter().flatten();
        let conditional: BTreeSet<_> =
            conditional.filter(|set| in_time(set.0)).map(|set| set.1).collect();
        let mut filled = BTreeSet::new();
        for way in ways {
            filled.extend(conditional.iter().filter_map(|delta| way.plus(*delta)));
            for (class, (delta, invoked)) in self.blind.iter().enumerate() {
                let first = invoked.get(way.used[class]).filter(|invoked| in_time(**invoked));
                if first.is_some() && !conditional.contains(delta) {
                    let mut way = way.clone();
                    way.used[class] += 1;
                    filled.extend(way.plus(*delta));
                }
            }
        }
        assert!(filled.len() <= WAYS_MAX, "too many ways: use fewer different deltas");
        filled.into_iter().collect()
    }
}

impl Operation {
    /// What is wrong with it, whatever the others say.
    fn check(&self) -> Result<(), String> {
        let wrong = match (self.kind, self.outcome) {
            (_, Outcome::Unknown) if self.returned.is_none() => None,
            (_, Outcome::Unknown) => Some("returned without an answer"),
            _ if self.returned < Some(self.invoked) => Some("returned before it began"),
            (Kind::Get, Outcome::Read { .. }) => None,
            (Kind::Set { expected: Some(expected), .. }, Outcome::Conflict { version, .. }) => {
                (version == expected).then_some("conflicts with what it expects")
            }
            (Kind::Set { expected, .. }, Outcome::Stored { version, .. }) => (version == 0
                || expected.is_some_and(|expected| expected != version - 1))
            .then_some("stored what does not follow"),
            _ => Some("has an answer of another kind"),
        };
        wrong.map_or(Ok(()), |wrong| Err(format!("{self} {wrong}")))
    }

    fn stored(&self) -> bool {
        matches!(self.outcome, Outcome::Stored { .. })
    }
}

impl Outcome {
    /// Version and progress.
    fn saw(self) -> Option<(u64, u64)> {
        match self {
            Self::Stored { version, progress }
            | Self::Conflict { version, progress }
            | Self::Read { version, progress } => Some((version, progress)),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[client {}, {}: ", self.client, self.key)?;
        match self.kind {
            Kind::Get => write!(f, "get")?,
            Kind::Set { expected: None, delta } => write!(f, "+{delta}")?,
            Kind::Set { expected: Some(expected), delta } => write!(f, "+{delta} on {expected}")?,
        }
        match self.returned {
            Some(returned) => write!(f, ", {}..={returned}", self.invoked)?,
            None => write!(f, ", {}..", self.invoked)?,
        }
        match self.outcome {
            Outcome::Stored { version, progress } => write!(f, ", stored {version} ({progress})]"),
            Outcome::Conflict { version, progress } => {
                write!(f, ", conflict with {version} ({progress})]")
            }
            Outcome::Read { version, progress } => write!(f, ", read {version} ({progress})]"),
            Outcome::Unknown => write!(f, ", no answer]"),
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
