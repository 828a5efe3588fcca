//! What is counted, under which names. Labels come from closed sets, never from outside: no id of a
//! title or a player is one. The lag of named subscriptions alone has their titles and names, which
//! are bounded in number.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    sync::LazyLock,
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

/// The process's metrics.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Upper ends of the buckets of times, in seconds: from a read in memory to a disk that hangs.
const SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Upper ends of the buckets of groups, in updates.
const GROUP_UPDATES: [f64; 8] = [1.0, 4.0, 16.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetOutcome {
    /// A new version.
    Stored,
    /// Nothing was to be done.
    Unchanged,
    /// The version was another.
    Conflict,
    /// It had been stored before.
    Replayed,
}

/// Why something was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The system could not accept a connection.
    AcceptFailed,
    /// As many connections as may be are open.
    Connections,
    /// As many connections as an address may have are open.
    ConnectionsOfAddress,
    /// A connection did not open in time.
    TooSlow,
    /// TLS failed.
    Handshake,
    /// No token, or one that is unknown or was taken away.
    Unauthenticated,
    /// The token does not allow it.
    Forbidden,
    /// A quota of a token or title.
    Quota,
}

impl EncodeLabelValue for SetOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Stored => "stored",
            Self::Unchanged => "unchanged",
            Self::Conflict => "conflict",
            Self::Replayed => "replayed",
        })
    }
}

impl EncodeLabelValue for Refused {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::AcceptFailed => "accept_failed",
            Self::Connections => "connections",
            Self::ConnectionsOfAddress => "connections_of_address",
            Self::TooSlow => "too_slow",
            Self::Handshake => "handshake",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::Quota => "quota",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: SetOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: Refused,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SubscriptionLabels {
    title: String,
    subscription: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    code: &'static str,
}

/// See the module. Times are in seconds.
pub struct Metrics {
    registry: Registry,
    sets: Family<OutcomeLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
    methods: HashMap<String, MethodMetrics>,
    unknown: MethodMetrics,
    group_updates: Histogram,
    sync_seconds: Histogram,
    feed_lag_seconds: Histogram,
    subscription_lag: Family<SubscriptionLabels, Gauge>,
    /// Completions that became durable.
    pub completions: Counter,
    /// Connections that are open.
    pub connections: Gauge,
    /// Watches that are open.
    pub subscribers: Gauge,
    /// Updates that wait for the committer or are being committed.
    pub updates_waiting: Gauge,
    /// Bytes of the data folder on disk.
    pub store_bytes: Gauge,
    /// 1 where the store takes no more writes.
    pub store_poisoned: Gauge,
    /// When the certificates were last read, in seconds since 1970; 0 without TLS.
    pub certificates_read: Gauge,
}

/// What every request of a method touches, found without making labels.
#[derive(Debug)]
pub struct MethodMetrics {
    /// Its path; "unknown" for all that are none of ours.
    pub name: String,
    answered: Counter,
    seconds: Histogram,
}

fn times() -> Histogram {
    Histogram::new(SECONDS)
}

// === impl Metrics ===

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::with_prefix("accolade");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", build);
        let metrics = Self {
            registry,
            sets: Family::default(),
            refusals: Family::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(times),
            methods: HashMap::new(),
            unknown: MethodMetrics {
                name: String::new(),
                answered: Counter::default(),
                seconds: times(),
            },
            group_updates: Histogram::new(GROUP_UPDATES),
            sync_seconds: times(),
            feed_lag_seconds: times(),
            subscription_lag: Family::default(),
            completions: Counter::default(),
            connections: Gauge::default(),
            subscribers: Gauge::default(),
            updates_waiting: Gauge::default(),
            store_bytes: Gauge::default(),
            store_poisoned: Gauge::default(),
            certificates_read: Gauge::default(),
        };
        metrics.registered().with_methods()
    }

    fn registered(mut self) -> Self {
        let all = &mut self.registry;
        all.register("sets", "Updates that were answered, by outcome", self.sets.clone());
        all.register("refusals", "What was not let in, by reason", self.refusals.clone());
        all.register("requests", "Requests, by method and status code", self.requests.clone());
        let help = "Time until a request was answered, or a stream began";
        all.register_with_unit("request", help, Unit::Seconds, self.request_seconds.clone());
        let help = "Updates that became durable together";
        all.register("group_updates", help, self.group_updates.clone());
        let help = "Time to make a group durable";
        all.register_with_unit("sync", help, Unit::Seconds, self.sync_seconds.clone());
        let help = "Time from noticing a completion to its being queued for every live subscriber";
        all.register_with_unit("feed_lag", help, Unit::Seconds, self.feed_lag_seconds.clone());
        let help = "Completions that a named subscription has not acked";
        all.register("subscription_lag_completions", help, self.subscription_lag.clone());
        all.register("completions", "Completions that became durable", self.completions.clone());
        all.register("connections", "Connections that are open", self.connections.clone());
        all.register("subscribers", "Watches that are open", self.subscribers.clone());
        let help = "Updates that wait for the store";
        all.register("updates_waiting", help, self.updates_waiting.clone());
        let help = "Size of the data folder";
        all.register_with_unit("store", help, Unit::Bytes, self.store_bytes.clone());
        let help = "1 where the store takes no more writes";
        all.register("store_poisoned", help, self.store_poisoned.clone());
        let help = "When the certificates were read, since 1970; 0 without TLS";
        let read = self.certificates_read.clone();
        all.register_with_unit("certificates_read_time", help, Unit::Seconds, read);
        self
    }

    /// Every method of the API has its metrics from the start; others are counted as "unknown".
    fn with_methods(mut self) -> Self {
        for name in crate::proto::methods() {
            self.methods.insert(name.clone(), self.of_method(name));
        }
        self.unknown = self.of_method("unknown".to_owned());
        self
    }

    fn of_method(&self, name: String) -> MethodMetrics {
        let labels = RequestLabels { method: name.clone(), code: "OK" };
        let answered = self.requests.get_or_create_owned(&labels);
        let label = MethodLabel { method: name.clone() };
        let seconds = self.request_seconds.get_or_create_owned(&label);
        MethodMetrics { name, answered, seconds }
    }

    /// An update was answered.
    pub fn set(&self, outcome: SetOutcome) {
        self.sets.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Something was not let in.
    pub fn refused(&self, reason: Refused) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The metrics of a method, by its path without the first slash.
    #[must_use]
    pub fn method(&self, path: &str) -> &MethodMetrics {
        self.methods.get(path).unwrap_or(&self.unknown)
    }

    /// A request was answered, or a stream began.
    pub fn request(&self, method: &MethodMetrics, code: &'static str, time: Duration) {
        method.seconds.observe(time.as_secs_f64());
        match code {
            "OK" => drop(method.answered.inc()),
            code => {
                let labels = RequestLabels { method: method.name.clone(), code };
                self.requests.get_or_create(&labels).inc();
            }
        }
    }

    /// A group became durable.
    #[allow(clippy::cast_precision_loss, reason = "a group has at most thousands of updates")]
    pub fn group(&self, updates: usize, sync: Duration) {
        self.group_updates.observe(updates as f64);
        self.sync_seconds.observe(sync.as_secs_f64());
    }

    /// Completions were handed to every live subscriber of their title.
    pub fn feed_lag(&self, lag: Duration) {
        self.feed_lag_seconds.observe(lag.as_secs_f64());
    }

    /// How far each named subscription is behind: (title, name, completions). Those that are not
    /// named any more are forgotten.
    pub fn subscription_lags(&self, lags: impl Iterator<Item = (String, String, u64)>) {
        self.subscription_lag.clear();
        for (title, subscription, lag) in lags {
            let labels = SubscriptionLabels { title, subscription };
            let lag = i64::try_from(lag).unwrap_or(i64::MAX);
            self.subscription_lag.get_or_create(&labels).set(lag);
        }
    }

    /// All of them, in the text format of OpenMetrics, which Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

/// Counts one while it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// One more of these.
    #[must_use]
    pub fn in_gauge(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
