//! Spoils histories, to show that the checker notices.

use fastrand::Rng;

use super::{History, Kind, Operation, Outcome};

/// `None` leaves the history as it was.
type Mutation = fn(&mut History, &mut Rng) -> Option<()>;

/// Spoils a history in one of ten ways, so that no order of its operations can explain the answers.
/// `None` where there is no room for any. The history must be linearizable, or this could mend it.
pub fn mutate(history: &[Operation], rng: &mut Rng) -> Option<(History, &'static str)> {
    let mut mutations: [(Mutation, _); 10] = [
        (same_version, "two sets stored one version"),
        (lost_update, "all later answers forget a set"),
        (late_set, "a version was seen before its set began"),
        (too_few_sets, "more versions were seen than sets can have stored"),
        (unborn_version, "a version was seen beyond all sets"),
        (swap, "two operations swapped what they saw"),
        (stale_read, "an older version was seen after a newer one"),
        (wrong_progress, "a progress is not the one of its version"),
        (stale_set, "a set was stored over another version than it expects"),
        (false_conflict, "a conflict saw the version it expects"),
    ];
    rng.shuffle(&mut mutations);
    let mut mutant = history.to_vec();
    let name = mutations.into_iter().find(|(mutation, _)| mutation(&mut mutant, rng).is_some())?.1;
    Some((mutant, name))
}

fn same_version(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (one, other) = pair(history, rng, |one, other| one.stored() && other.stored())?;
    history[one].outcome = history[other].outcome;
    let version = history[other].version();
    if let Kind::Set { expected: Some(expected), .. } = &mut history[one].kind {
        *expected = version - 1;
    }
    Some(())
}

/// The next set then stored the same version.
fn lost_update(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (lost, _) = pair(history, rng, |lost, next| {
        lost.stored() && next.stored() && lost.version() + 1 == next.version()
    })?;
    let lost = history[lost].clone();
    let Kind::Set { delta: lost_delta, .. } = lost.kind else { return None };
    for op in history.iter_mut().filter(|op| op.key == lost.key && op.version() > lost.version()) {
        let (version, progress) = op.outcome.saw()?;
        op.see(version - 1, progress - lost_delta);
        if let Kind::Set { expected: Some(expected), .. } = &mut op.kind {
            *expected = expected.saturating_sub(1);
        }
    }
    Some(())
}

fn late_set(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (set, saw) = pair(history, rng, |set, saw| set.stored() && set.version() <= saw.version())?;
    let invoked = history[saw].returned? + 1;
    history[set].invoked = invoked;
    history[set].returned = Some(invoked + rng.u64(..10));
    Some(())
}

/// Takes one set away, and those without an answer out of the way, until somebody saw one version
/// more than can have been stored.
fn too_few_sets(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (set, saw) = pair(history, rng, |set, saw| set.stored() && set.version() <= saw.version())?;
    let saw = history[saw].clone();
    history.swap_remove(set);
    let of_record = history.iter_mut().filter(|op| op.key == saw.key);
    let (answered, mut unanswered): (Vec<_>, Vec<_>) = of_record.partition(|op| op.answered());
    let stored = answered.iter().filter(|op| op.stored() && op.version() <= saw.version());
    let holes = saw.version() - stored.count() as u64;
    unanswered.retain(|op| op.kind != Kind::Get);
    rng.shuffle(&mut unanswered);
    for (_, set) in (1..).zip(unanswered).filter(|(nth, _)| *nth >= holes) {
        match &mut set.kind {
            Kind::Set { expected, .. } if rng.bool() => {
                *expected = Some(saw.version() + rng.u64(..3));
            }
            _ => set.invoked = set.invoked.max(saw.returned? + 1),
        }
    }
    Some(())
}

fn unborn_version(history: &mut History, rng: &mut Rng) -> Option<()> {
    let op = pick(history, rng, |op| op.answered() && !op.stored())?;
    let (_, progress) = history[op].outcome.saw()?;
    let sets = history.iter().filter(|set| {
        set.key == history[op].key
            && (set.stored() || !set.answered() && set.kind != Kind::Get)
            && Some(set.invoked) <= history[op].returned
    });
    let beyond = sets.count() as u64 + 1;
    history[op].see(beyond, progress + rng.u64(1..4));
    Some(())
}

fn swap(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (one, later) = pair(history, rng, |one, later| {
        one.returned < Some(later.invoked) && one.version() < later.version()
    })?;
    let (older_version, older_progress) = history[one].outcome.saw()?;
    let (newer_version, newer_progress) = history[later].outcome.saw()?;
    history[one].see(newer_version, newer_progress);
    history[later].see(older_version, older_progress);
    Some(())
}

fn stale_read(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (before, later) = pair(history, rng, |before, later| {
        before.version() > 0 && before.returned < Some(later.invoked) && !later.stored()
    })?;
    let before = history[before].clone();
    let older = pick(history, rng, |op| {
        op.key == before.key && op.answered() && op.version() < before.version()
    });
    let older = older.and_then(|older| history[older].outcome.saw());
    let (version, progress) = older.unwrap_or_default();
    history[later].see(version, progress);
    Some(())
}

/// Where another answer tells what the progress must be.
fn wrong_progress(history: &mut History, rng: &mut Rng) -> Option<()> {
    let (wrong, _) = pair(history, rng, |wrong, right| {
        wrong.version() == right.version()
            || right.stored() && wrong.version() + 1 == right.version()
            || wrong.stored() && wrong.version() == right.version() + 1
    })?;
    let (version, progress) = history[wrong].outcome.saw()?;
    let less = progress.checked_sub(1).filter(|_| rng.bool());
    history[wrong].see(version, less.unwrap_or(progress + 1));
    Some(())
}

fn stale_set(history: &mut History, rng: &mut Rng) -> Option<()> {
    let set = pick(history, rng, Operation::stored)?;
    let version = history[set].version();
    let Kind::Set { expected, .. } = &mut history[set].kind else { return None };
    *expected = Some(if version > 1 && rng.bool() { version - 2 } else { version });
    Some(())
}

fn false_conflict(history: &mut History, rng: &mut Rng) -> Option<()> {
    let conflict = pick(history, rng, |op| matches!(op.outcome, Outcome::Conflict { .. }))?;
    let version = history[conflict].version();
    let Kind::Set { expected, .. } = &mut history[conflict].kind else { return None };
    *expected = Some(version);
    Some(())
}

/// An operation that fits.
fn pick(history: &[Operation], rng: &mut Rng, fits: impl Fn(&Operation) -> bool) -> Option<usize> {
    rng.choice((0..history.len()).filter(|op| fits(&history[*op])).collect::<Vec<_>>())
}

/// Two operations on one record, both answered, that fit.
fn pair(
    history: &[Operation],
    rng: &mut Rng,
    fits: impl Fn(&Operation, &Operation) -> bool,
) -> Option<(usize, usize)> {
    let mut answered: Vec<_> = (0..history.len()).filter(|op| history[*op].answered()).collect();
    rng.shuffle(&mut answered);
    answered.iter().find_map(|one| {
        let op = &history[*one];
        let others =
            answered.iter().filter(|other| *other != one && history[**other].key == op.key);
        let other =
            rng.choice(others.filter(|other| fits(op, &history[**other])).collect::<Vec<_>>());
        other.map(|other| (*one, *other))
    })
}

impl Operation {
    fn answered(&self) -> bool {
        self.outcome != Outcome::Unknown
    }

    /// 0 where there is no answer.
    fn version(&self) -> u64 {
        self.outcome.saw().map_or(0, |(version, _)| version)
    }

    fn see(&mut self, saw_version: u64, saw_progress: u64) {
        if let Outcome::Stored { version, progress }
        | Outcome::Conflict { version, progress }
        | Outcome::Read { version, progress } = &mut self.outcome
        {
            (*version, *progress) = (saw_version, saw_progress);
        }
    }
}
