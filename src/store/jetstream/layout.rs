//! How the streams of an installation are laid out: made once, and checked at each start.

use std::time::Duration;

use async_nats::jetstream::{
    ErrorCode,
    context::{CreateStreamErrorKind, GetStreamErrorKind},
    stream::{Config, DiscardPolicy, Republish, RetentionPolicy, StorageType},
};
use bytes::Bytes;
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::{
    Address, cluster,
    names::{Names, PARTITIONS_MAX},
    wire::{Wire, Write, Written},
};
use crate::{
    proto::rows::EngineRow,
    store::{StoreError, frame},
};

/// The oldest version of NATS that syncs a batch as one.
const VERSION: (i64, i64) = (2, 15);

/// Replicas with which one machine may go and nothing is lost.
const REPLICAS_SAFE: usize = 3;

/// How long to try while a cluster is getting ready.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(200);

/// How long a check looks again where a replica is behind: one that is busy is, for a moment.
const BEHIND_TIME_MAX: Duration = Duration::from_secs(5);

/// How an installation is to be. What is not said stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Streams that players are spread over; never changes. 1 for a new one.
    pub partitions: Option<u32>,
    /// Machines that keep each of them. 3 for a new one.
    pub replicas: Option<usize>,
}

/// Why a cluster cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Its servers are too old.
    #[error(
        "runs NATS {0}; use {major}.{minor} or later, which syncs a batch as one",
        major = VERSION.0,
        minor = VERSION.1
    )]
    TooOld(String),
    /// There is no installation under this prefix.
    #[error("is not laid out yet; run `accolade engine init --store {0}` once")]
    NotLaidOut(String),
    /// It has another number of partitions.
    #[error(
        "has {actual} partitions, which never changes; pass --partitions {actual}, or another \
         prefix for an installation of its own"
    )]
    OtherPartitions {
        /// What it has.
        actual: u32,
    },
    /// It is one server.
    #[error(
        "is one server alone, which cannot keep {replicas} replicas; pass --replicas 1 to try it, \
         or run three servers as a cluster"
    )]
    Alone {
        /// What was asked for.
        replicas: usize,
    },
    /// A stream is not as it must be.
    #[error(
        "has a stream {stream} that {problem}; `accolade engine init` mends what can be mended"
    )]
    Stream {
        /// Which.
        stream: String,
        /// What is wrong.
        problem: String,
    },
    /// A server does not sync, or cannot be asked.
    #[error("has a monitor {monitor} that {problem}")]
    Monitor {
        /// Its address.
        monitor: String,
        /// What is wrong.
        problem: String,
    },
    /// The cluster could not.
    #[error("cannot be used: {0}")]
    Store(#[from] StoreError),
}

/// What was found of an installation.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) store_id: u64,
    /// Streams that players are spread over.
    pub partitions: u32,
    /// Machines that keep each stream; the least of all streams.
    pub replicas: usize,
    /// Replicas that are gone, or have not all of a stream: until they do, fewer machines than
    /// planned may be lost.
    pub missing: Vec<String>,
    /// What else may be lost, or is not known.
    pub worries: Vec<String>,
}

/// A stream as it is.
struct FoundStream {
    config: Config,
    missing: Vec<String>,
}

/// Makes what is missing of an installation, and brings streams to so many replicas.
pub(super) async fn init(wire: &Wire, address: &Address, plan: Plan) -> Result<Found, EngineError> {
    check_version(wire)?;
    // The shared stream has the same name, however many partitions there are.
    let names = Names::new(&address.prefix, 1);
    let shared = names.shared_stream();
    let found = find_stream(wire, &shared_config(&names, 1)).await?;
    let mut row = None;
    if found.is_some() {
        row = read_row(wire, &shared, &names.engine()).await?;
    }
    let planned = plan.partitions.or(row.map(|row| row.partitions)).unwrap_or(1);
    let is_planned = |row: &EngineRow| match row.partitions == planned {
        true => Ok(()),
        false => Err(EngineError::OtherPartitions { actual: row.partitions }),
    };
    row.as_ref().map_or(Ok(()), is_planned)?;
    let new = plan.replicas.or(found.map(|found| found.config.num_replicas));
    let (new, names) = (new.unwrap_or(REPLICAS_SAFE), Names::new(&address.prefix, planned));
    make(wire, shared_config(&names, new), plan.replicas).await?;
    let row = EngineRow { store_id: fastrand::u64(1..), partitions: planned };
    let row = write_first(wire, &shared, names.engine(), &row).await?;
    is_planned(&row)?;
    for partition in 0..planned {
        let config = partition_config(&names, partition, new);
        let stream = config.name.clone();
        make(wire, config, plan.replicas).await?;
        write_first(wire, &stream, names.first(partition), &row).await?;
    }
    // New replicas take a moment to have everything.
    let start = Instant::now();
    loop {
        let found = check(wire, address).await?;
        if found.missing.is_empty() || start.elapsed() > READY_TIME_MAX {
            return Ok(found);
        }
        sleep(READY_PAUSE).await;
    }
}

/// Whether everything is there, and as it must be.
pub(super) async fn check(wire: &Wire, address: &Address) -> Result<Found, EngineError> {
    check_version(wire)?;
    let deadline = Instant::now() + BEHIND_TIME_MAX;
    let names = Names::new(&address.prefix, 1);
    let not_laid_out = || EngineError::NotLaidOut(address.shown());
    let shared = shared_config(&names, 1);
    let FoundStream { config, mut missing } =
        look_again(wire, &shared, deadline).await?.ok_or_else(not_laid_out)?;
    let mut replicas = config.num_replicas;
    let row = read_row(wire, &names.shared_stream(), &names.engine()).await?;
    let row = row.ok_or_else(not_laid_out)?;
    if !(1..=PARTITIONS_MAX).contains(&row.partitions) {
        let problem = format!("says that there are {} partitions", row.partitions);
        return Err(EngineError::Stream { stream: names.shared_stream(), problem });
    }
    let names = Names::new(&address.prefix, row.partitions);
    for partition in 0..row.partitions {
        let expected = partition_config(&names, partition, 1);
        let not_there = || EngineError::Stream {
            stream: expected.name.clone(),
            problem: "is not there".to_owned(),
        };
        let found = look_again(wire, &expected, deadline).await?.ok_or_else(not_there)?;
        replicas = replicas.min(found.config.num_replicas);
        missing.extend(found.missing);
        let first = read_row(wire, &expected.name, &names.first(partition)).await?;
        if first.is_none_or(|first| first.store_id != row.store_id) {
            let problem = "is not of this installation, or was emptied: restore all streams from \
                           one backup";
            return Err(EngineError::Stream { stream: expected.name, problem: problem.to_owned() });
        }
    }
    let mut worries = Vec::new();
    if replicas < REPLICAS_SAFE {
        worries.push(format!(
            "streams have {replicas} replicas: what one machine loses may be lost; run `accolade \
             engine init --replicas {REPLICAS_SAFE}` on {REPLICAS_SAFE} NATS servers"
        ));
    }
    let EngineRow { store_id, partitions } = row;
    Ok(Found { store_id, partitions, replicas, missing, worries })
}

fn check_version(wire: &Wire) -> Result<(), EngineError> {
    match wire.is_at_least(VERSION.0, VERSION.1) {
        true => Ok(()),
        false => Err(EngineError::TooOld(wire.version())),
    }
}

async fn read_row(
    wire: &Wire,
    stream: &str,
    subject: &str,
) -> Result<Option<EngineRow>, EngineError> {
    let message = wire.last(stream, subject).await?;
    Ok(message.as_ref().map(cluster::read_row).transpose()?)
}

/// Writes the first message of a subject, unless there is one; gives what is there.
async fn write_first(
    wire: &Wire,
    stream: &str,
    subject: String,
    row: &EngineRow,
) -> Result<EngineRow, EngineError> {
    let value = Bytes::from(frame::encode(subject.as_bytes(), row));
    let start = Instant::now();
    loop {
        if let Some(row) = read_row(wire, stream, &subject).await? {
            return Ok(row);
        }
        let (subject, value) = (subject.clone(), value.clone());
        let written = wire.write(vec![Write { subject, value, replaces: Some(0) }]).await;
        if start.elapsed() > READY_TIME_MAX {
            let error = format!("the layout could not be written: {written:?}");
            return Err(StoreError::Unavailable(error).into());
        }
        if !matches!(written, Written::Stored(_)) {
            sleep(READY_PAUSE).await;
        }
    }
}

/// What all streams have in common: nothing leaves them by itself.
fn config(name: String, subjects: Vec<String>, replicas: usize) -> Config {
    Config {
        name,
        subjects,
        num_replicas: replicas,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        allow_atomic_publish: true,
        allow_direct: true,
        allow_rollup: true,
        ..Config::default()
    }
}

fn republish((source, destination): (String, String)) -> Republish {
    Republish { source, destination, headers_only: true }
}

fn shared_config(names: &Names, replicas: usize) -> Config {
    Config {
        republish: Some(republish(names.repeated_titles())),
        ..config(names.shared_stream(), names.shared_subjects(), replicas)
    }
}

fn partition_config(names: &Names, partition: u32, replicas: usize) -> Config {
    Config {
        republish: Some(republish(names.repeated_events(partition))),
        ..config(names.stream(partition), names.subjects(partition), replicas)
    }
}

/// Makes a stream, or brings the one there is to a number of replicas, where one is given, and
/// changes nothing else of it. One that is not ours is refused.
async fn make(wire: &Wire, config: Config, replicas: Option<usize>) -> Result<(), EngineError> {
    let start = Instant::now();
    loop {
        if let Some(FoundStream { config: found, .. }) = find_stream(wire, &config).await? {
            let num_replicas = replicas.unwrap_or(found.num_replicas);
            if found.num_replicas == num_replicas {
                return Ok(());
            }
            let stream = config.name;
            let updated = wire.context.update_stream(Config { num_replicas, ..found }).await;
            return updated.map(drop).map_err(|error| EngineError::Stream {
                stream,
                problem: format!("cannot be brought to {num_replicas} replicas: {error}"),
            });
        }
        let Err(error) = wire.context.create_stream(config.clone()).await else {
            return Ok(());
        };
        if let CreateStreamErrorKind::JetStream(it) = error.kind()
            && it.error_code() == ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED
        {
            return Err(EngineError::Alone { replicas: config.num_replicas });
        }
        // A cluster that has just been started refuses for a while.
        if start.elapsed() > READY_TIME_MAX {
            let problem = format!("cannot be made: {error}");
            return Err(EngineError::Stream { stream: config.name, problem });
        }
        sleep(READY_PAUSE).await;
    }
}

/// The same as [`find_stream`], as long as replicas are missing, until a time.
async fn look_again(
    wire: &Wire,
    expected: &Config,
    deadline: Instant,
) -> Result<Option<FoundStream>, EngineError> {
    loop {
        let found = find_stream(wire, expected).await?;
        let is_whole = found.as_ref().is_none_or(|found| found.missing.is_empty());
        if is_whole || Instant::now() > deadline {
            return Ok(found);
        }
        sleep(READY_PAUSE).await;
    }
}

/// A stream as it is, which must be as this version needs it; `None` where there is none.
async fn find_stream(wire: &Wire, expected: &Config) -> Result<Option<FoundStream>, EngineError> {
    let start = Instant::now();
    let info = loop {
        match wire.context.get_stream(&expected.name).await {
            Ok(stream) => break stream.cached_info().clone(),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(it)
                    if it.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    return Ok(None);
                }
                _ if start.elapsed() < READY_TIME_MAX => {
                    wire.has_no_leader();
                    sleep(READY_PAUSE).await;
                }
                kind => return Err(StoreError::Unavailable(kind.to_string()).into()),
            },
        }
    };
    let (found, replicas) = (info.config, info.cluster.unwrap_or_default().replicas);
    let missing = replicas.iter().filter(|replica| replica.offline || !replica.current);
    let missing = missing.map(|replica| {
        // NATS itself takes a while to tell these apart.
        let how = if replica.offline { "is gone" } else { "is gone, or behind" };
        format!("of stream {}, the replica on NATS server {:?} {how}", found.name, replica.name)
    });
    let missing = missing.collect();
    let wrong = |problem: &str| {
        let problem = problem.to_owned();
        Err(EngineError::Stream { stream: expected.name.clone(), problem })
    };
    if found.storage != StorageType::File {
        return wrong("is not kept in files");
    }
    if !found.allow_atomic_publish || !found.allow_direct || !found.allow_rollup {
        return wrong("does not allow atomic batches, direct gets and rollups");
    }
    let has_limits = found.retention != RetentionPolicy::Limits
        || found.discard != DiscardPolicy::New
        || found.max_messages_per_subject > 0
        || found.max_messages > 0
        || !found.max_age.is_zero();
    if has_limits {
        return wrong("has limits by which messages would leave it");
    }
    if found.deny_delete || found.deny_purge || found.sealed {
        return wrong("denies deletes or purges, which retention and erasures need");
    }
    let repeats = |it: &Config| it.republish.as_ref().map(|it| it.destination.clone());
    if found.subjects != expected.subjects || repeats(&found) != repeats(expected) {
        return wrong("has other subjects than this version writes");
    }
    Ok(Some(FoundStream { config: found, missing }))
}
