//! Whether a majority of the cluster answers, judged by what becomes of writes: only what is stored
//! proves one. The NATS server that this one is connected to may be cut off from the others, and
//! go on answering for itself; then another one is to be tried.

use std::time::Duration;

use async_nats::{ReconnectToServer, Server, ServerAddr};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::store::StoreHealth;

/// How long writes may have no answer at all before another NATS server is tried.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// How long there may be no leader, or nothing that is stored: longer than a cluster takes to
/// choose a leader (4 to 9 seconds).
const LEADERLESS_MAX: Duration = Duration::from_secs(12);

/// How long a connection may be gone before that is told: another one takes a moment.
const DISCONNECTED_MAX: Duration = Duration::from_secs(3);

/// After so long without anything that was stored, something is to be written to see whether it
/// would be.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// Pause between two words in the log of what JetStream refuses.
const REFUSALS_PAUSE: Duration = Duration::from_secs(10);

/// What was heard of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A majority has it.
    Stored,
    /// Somebody answered who may be cut off.
    Answer,
    /// Somebody answered that it cannot be stored.
    Refused,
    /// Nothing.
    Silence,
    /// That nobody leads.
    NoLeader,
}

/// See the module.
pub(super) struct Reach {
    state: Mutex<State>,
    health: watch::Sender<StoreHealth>,
}

struct State {
    disconnected_since: Option<Instant>,
    stored_at: Instant,
    /// Since when nothing was stored that should have been.
    failing_since: Option<Instant>,
    /// The same, of this connection.
    trying_since: Option<Instant>,
    refusal_told_at: Option<Instant>,
    /// Which was chosen last, where one was.
    chosen: Option<ServerAddr>,
}

impl Reach {
    pub(super) fn new(health: watch::Sender<StoreHealth>) -> Self {
        let state = State {
            disconnected_since: None,
            stored_at: Instant::now(),
            failing_since: None,
            trying_since: None,
            refusal_told_at: None,
            chosen: None,
        };
        Self { state: Mutex::new(state), health }
    }

    /// Notes that the connection stands, or does not.
    pub(super) fn connected(&self, is_connected: bool, now: Instant) {
        let mut state = self.state.lock();
        state.disconnected_since = (!is_connected).then_some(now);
        state.trying_since = None;
        self.tell(&state, now);
    }

    /// Notes what was heard; tells whether another NATS server is to be tried.
    pub(super) fn hear(&self, heard: Heard, now: Instant) -> bool {
        let mut state = self.state.lock();
        let patience = match heard {
            Heard::Answer => return false,
            Heard::Refused => {
                state.failing_since.get_or_insert(now);
                self.tell(&state, now);
                return false;
            }
            Heard::Stored => {
                state.stored_at = now;
                state.disconnected_since = None;
                (state.failing_since, state.trying_since) = (None, None);
                self.tell(&state, now);
                return false;
            }
            Heard::Silence => SILENCE_MAX,
            Heard::NoLeader => LEADERLESS_MAX,
        };
        state.failing_since.get_or_insert(now);
        let since = *state.trying_since.get_or_insert(now);
        self.tell(&state, now);
        // Without a connection another one is being looked for already.
        let is_over = state.disconnected_since.is_none() && now.duration_since(since) > patience;
        if is_over {
            state.trying_since = None;
        }
        is_over
    }

    fn tell(&self, state: &State, now: Instant) {
        let is_over = |since: Option<Instant>, time_max| {
            since.is_some_and(|since| now.duration_since(since) > time_max)
        };
        let is_reached = !is_over(state.disconnected_since, DISCONNECTED_MAX)
            && !is_over(state.failing_since, LEADERLESS_MAX);
        let health = if is_reached { StoreHealth::Serving } else { StoreHealth::Unreachable };
        self.health.send_if_modified(|told| std::mem::replace(told, health) != health);
    }

    /// Whether nothing shows that a majority answers.
    pub(super) fn is_in_doubt(&self) -> bool {
        let state = self.state.lock();
        state.failing_since.is_some()
            || state.disconnected_since.is_some()
            || state.stored_at.elapsed() > QUIET_MAX
    }

    /// Whether it is time to say that JetStream refuses something.
    pub(super) fn may_tell_of_refusal(&self, now: Instant) -> bool {
        let told_at = &mut self.state.lock().refusal_told_at;
        let is_time = told_at.is_none_or(|at| now.duration_since(at) > REFUSALS_PAUSE);
        if is_time {
            *told_at = Some(now);
        }
        is_time
    }

    /// Which NATS server to connect to: the one behind the last, so that each has its turn. The
    /// first is the client's choice.
    pub(super) fn next(&self, servers: &[Server]) -> Option<ReconnectToServer> {
        let mut state = self.state.lock();
        let last = servers.iter().position(|it| match &state.chosen {
            Some(chosen) => it.addr == *chosen,
            None => it.did_connect,
        });
        let addr = servers[(last? + 1) % servers.len()].addr.clone();
        state.chosen = Some(addr.clone());
        Some(ReconnectToServer { addr, delay: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach() -> (Reach, watch::Receiver<StoreHealth>, Instant) {
        let health = watch::Sender::new(StoreHealth::Serving);
        let told = health.subscribe();
        (Reach::new(health), told, Instant::now())
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_server_that_says_nothing_is_left_soon_and_one_without_a_leader_later() {
        let (reach, _, start) = reach();
        assert!(!reach.hear(Heard::Silence, start));
        assert!(!reach.hear(Heard::Silence, at(start, 4)));
        assert!(reach.hear(Heard::Silence, at(start, 5)));
        // From then on the next one has its time.
        assert!(!reach.hear(Heard::NoLeader, at(start, 6)));
        assert!(!reach.hear(Heard::NoLeader, at(start, 18)));
        assert!(reach.hear(Heard::NoLeader, at(start, 19)));
    }

    #[test]
    fn only_what_is_stored_is_a_proof() {
        let (reach, told, start) = reach();
        assert!(!reach.hear(Heard::NoLeader, start));
        assert!(!reach.hear(Heard::Answer, at(start, 11)));
        assert_eq!(*told.borrow(), StoreHealth::Serving, "an election takes a while");
        assert!(reach.hear(Heard::NoLeader, at(start, 13)));
        assert_eq!(*told.borrow(), StoreHealth::Unreachable);
        reach.connected(true, at(start, 13));
        assert!(reach.is_in_doubt());
        assert!(!reach.hear(Heard::Stored, at(start, 14)));
        assert_eq!(*told.borrow(), StoreHealth::Serving);
        assert!(!reach.hear(Heard::Silence, at(start, 30)), "it begins anew");
    }

    #[test]
    fn a_connection_that_is_gone_for_a_moment_is_not_told() {
        let (reach, told, start) = reach();
        reach.connected(false, start);
        assert!(reach.is_in_doubt());
        reach.hear(Heard::Silence, at(start, 3));
        assert_eq!(*told.borrow(), StoreHealth::Serving);
        reach.hear(Heard::Silence, at(start, 4));
        assert_eq!(*told.borrow(), StoreHealth::Unreachable);
        // Whoever is looking for another connection need not be told to.
        assert!(!reach.hear(Heard::Silence, at(start, 10)));
        reach.connected(true, at(start, 11));
        assert_eq!(*told.borrow(), StoreHealth::Serving);
    }

    #[test]
    fn a_cluster_that_refuses_everything_is_not_reached_and_not_left() {
        let (reach, told, start) = reach();
        assert!(!reach.hear(Heard::Refused, start));
        assert_eq!(*told.borrow(), StoreHealth::Serving);
        assert!(!reach.hear(Heard::Refused, at(start, 13)));
        assert_eq!(*told.borrow(), StoreHealth::Unreachable);
    }

    #[test]
    fn servers_have_their_turns() {
        let (reach, _, _) = reach();
        let server = |name: &str, did_connect| Server {
            addr: format!("nats://{name}:4222").parse().unwrap(),
            failed_attempts: 0,
            did_connect,
            is_discovered: false,
            last_error: None,
        };
        let next = |servers: &[Server]| reach.next(servers).map(|it| it.addr.host().to_owned());
        let begun = ["a", "b", "c"].map(|name| server(name, false));
        assert_eq!(next(&begun), None, "the first is the client's choice");
        let connected =
            [("a", false), ("b", true), ("c", false)].map(|(name, it)| server(name, it));
        for expected in ["c", "a", "b", "c"] {
            assert_eq!(next(&connected).as_deref(), Some(expected));
        }
        assert_eq!(next(&[server("x", true)]), None, "what was chosen is not there any more");
    }

    #[test]
    fn refusals_are_not_told_all_the_time() {
        let (reach, _, start) = reach();
        assert!(reach.may_tell_of_refusal(start));
        assert!(!reach.may_tell_of_refusal(at(start, 10)));
        assert!(reach.may_tell_of_refusal(at(start, 11)));
    }
}
