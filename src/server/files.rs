//! The limit of open files, which is also one of connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside connections: the store's, the log, the listeners.
const OTHERS: u64 = 128;

/// Raises the process's limit to what the system allows, and says so where that is too little.
pub(super) fn raise_limit(connections_max: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = if raised.is_ok() { maximum } else { current };
    let needed = connections_max as u64 + OTHERS;
    if limit.is_some_and(|limit| limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "the system allows fewer open files than `connections_max` needs; connections beyond \
             it will have to wait: raise the limit (`ulimit -n`, `LimitNOFILE=`)"
        );
    }
}
