//! Settings: flags over environment over one TOML file over defaults. One table says everything
//! about each; every mistake is found before anything is started, and all are told at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, fs,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use crate::{
    access::{BYTES_PER_SECOND_MIN, Quota, REQUESTS_PER_SECOND_MIN},
    domain::Title,
    feed::RetentionRule,
    store::sled::EXTRA_BYTES_MAX,
};

/// A set without its extra: four ids and a few numbers.
const REQUEST_WITHOUT_EXTRA_BYTES: usize = 1024;

/// One setting: `key` in the file, `--key` with hyphens as a flag, `ACCOLADE_KEY` in the
/// environment.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in the file.
    pub key: &'static str,
    /// What its value looks like.
    pub value: &'static str,
    /// Its default, as one would write it.
    pub default: &'static str,
    /// What it does, in a sentence.
    pub help: &'static str,
}

const fn setting(
    key: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, value, default, help }
}

/// Every setting of the server.
pub const SETTINGS: &[Setting] = &[
    setting("listen", "ADDR", "127.0.0.1:50151", "Address to listen on; port 0 takes a free one"),
    setting("data", "DIR", "./accolade-data", "Folder of the store; made if it does not exist"),
    setting(
        "catalog",
        "TITLE=FILE",
        "",
        "Catalogue of a title, read again when it changes: .toml, .json, NodeSetting.csv or a \
         customAchievements folder; may be given more than once (environment: separated by `;`)",
    ),
    setting(
        "tls_certificate",
        "FILE",
        "",
        "The server's certificate chain (PEM), read again when it changes; with it, connections \
         must use TLS",
    ),
    setting("tls_key", "FILE", "", "The certificate's private key (PEM)"),
    setting(
        "tls_client_ca",
        "FILE",
        "",
        "Authorities of clients (PEM): only clients with a certificate of theirs may connect",
    ),
    setting(
        "tokens",
        "FILE",
        "",
        "Tokens and what each allows (TOML), read again when it changes; with it, every request \
         needs a token. `accolade token` makes one",
    ),
    setting(
        "admin_listen",
        "ADDR",
        "",
        "Address for metrics and probes (HTTP: /metrics, /livez, /readyz); without it, none",
    ),
    setting("insecure", "BOOL", "false", "Allow listening beyond this machine without TLS"),
    setting("reflection", "BOOL", "true", "Answer gRPC reflection, which grpcurl needs"),
    setting("extra_bytes_max", "BYTES", "16384", "Longest extra; 0 to 65536"),
    setting(
        "request_bytes_max",
        "BYTES",
        "65536",
        "Largest request message; 4096 to 1048576, and an extra must fit",
    ),
    setting(
        "response_bytes_max",
        "BYTES",
        "4194304",
        "Largest answer; 4194304 to 67108864. Most clients take 4194304 unless told otherwise",
    ),
    setting(
        "request_seconds_max",
        "SECONDS",
        "10",
        "Longest time for one request that is not a stream; 1 to 600",
    ),
    setting(
        "drain_seconds_max",
        "SECONDS",
        "10",
        "Longest time to finish open requests after SIGTERM; 0 to 600",
    ),
    setting(
        "retention_seconds",
        "SECONDS",
        "0",
        "Completions older than this leave the feed; 0 keeps all",
    ),
    setting(
        "retention_count",
        "COUNT",
        "0",
        "Only so many of a title's newest completions stay in the feed; 0 keeps all",
    ),
    setting(
        "cache_bytes",
        "BYTES",
        "805306368",
        "Memory for the store's caches, filled as records are used: 3/4 for sled's pages, 1/4 for \
         players; the process takes up to 3 times this. 1048576 to 2^40",
    ),
    setting(
        "keepalive_interval_seconds",
        "SECONDS",
        "30",
        "Silence after which a connection is probed; 1 to 3600",
    ),
    setting(
        "keepalive_timeout_seconds",
        "SECONDS",
        "10",
        "Time for the answer to a probe before the connection is closed; 1 to 600",
    ),
    setting("connections_max", "COUNT", "4096", "Connections open at once; 1 to 1000000"),
    setting(
        "connections_per_address_max",
        "COUNT",
        "1024",
        "Connections of one address (IPv6: of one /64 network) open at once; 1 to 1000000",
    ),
    setting(
        "title_requests_per_second_max",
        "COUNT",
        "0",
        "Requests of one title, each update of a batch or stream counted; 100 or more, 0: no limit",
    ),
    setting(
        "title_request_bytes_per_second_max",
        "BYTES",
        "0",
        "Bytes of one title's request messages; 4194304 or more, 0: no limit",
    ),
    setting("title_streams_max", "COUNT", "0", "Watches of one title open at once; 0: no limit"),
    setting(
        "streams_per_connection_max",
        "COUNT",
        "128",
        "Requests and streams at once on one connection; 1 to 65536",
    ),
    setting(
        "stream_sets_max",
        "COUNT",
        "256",
        "Sets of one StreamSetAchievementStorage under way before it is read further; 1 to 65536",
    ),
    setting(
        "reload_poll_seconds",
        "SECONDS",
        "1",
        "How often catalogues, tokens and certificates are looked at for changes; 1 to 3600",
    ),
    setting("log_format", "human|json", "human", "Format of the log on standard error"),
    setting("log_filter", "FILTER", "info", "What is logged, as tracing's EnvFilter reads it"),
];

/// What the server is to do. Always legal.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field is the setting of its name in `SETTINGS`")]
pub struct Settings {
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub catalogs: BTreeMap<Title, PathBuf>,
    pub tls: Option<TlsFiles>,
    pub tokens: Option<PathBuf>,
    pub admin_listen: Option<SocketAddr>,
    pub reflection: bool,
    pub extra_bytes_max: usize,
    pub request_bytes_max: usize,
    pub response_bytes_max: usize,
    pub request_time_max: Duration,
    pub drain_time_max: Duration,
    pub retention: RetentionRule,
    pub cache_bytes: u64,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub title_quota: Quota,
    pub streams_per_connection_max: u32,
    pub stream_sets_max: usize,
    pub reload_poll: Duration,
    pub log_format: LogFormat,
    pub log_filter: String,
}

/// Where the certificates are; all are PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities of clients: only clients with a certificate of theirs may connect.
    pub client_ca: Option<PathBuf>,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Human,
    /// An object a line.
    Json,
}

/// Every mistake in the settings.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError(Vec<String>);

/// Values by key, from one place. A key may have several values.
pub type Layer = BTreeMap<String, Vec<String>>;

// === impl Settings ===

impl Settings {
    /// Puts flags, environment and file together.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every mistake in all of them.
    pub fn load(flags: Layer, config_file: Option<PathBuf>) -> Result<Self, ConfigError> {
        let environment = environment(|name| env::var(name).ok());
        let file = config_file.or_else(|| env::var_os("ACCOLADE_CONFIG").map(PathBuf::from));
        let mut mistakes = Vec::new();
        let file = match file {
            None => Layer::new(),
            Some(path) => match fs::read_to_string(&path) {
                Ok(text) => file_layer(&text, &mut mistakes),
                Err(error) => {
                    mistakes.push(format!("`{}` cannot be read: {error}", path.display()));
                    Layer::new()
                }
            },
        };
        Self::from_layers(&[flags, environment, file], mistakes)
    }

    /// Takes each value from the first layer that has it.
    fn from_layers(layers: &[Layer], mistakes: Vec<String>) -> Result<Self, ConfigError> {
        let mut values = Values { layers, mistakes };
        let listen = values.get("listen", "an address such as 127.0.0.1:50151", str::parse);
        let insecure = values.flag("insecure");
        let listen: SocketAddr = listen.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let tls = values.tls();
        if !listen.ip().is_loopback() && tls.is_none() && insecure == Some(false) {
            values.mistakes.push(format!(
                "`listen` is {listen}, which other machines reach, without TLS; give it \
                 `tls_certificate` and `tls_key`, listen on 127.0.0.1, or say `insecure`"
            ));
        }
        let admin_listen = values.optional("admin_listen", "an address such as 127.0.0.1:50152");
        if let Some(admin) = admin_listen.filter(|admin: &SocketAddr| !admin.ip().is_loopback())
            && insecure == Some(false)
        {
            values.mistakes.push(format!(
                "`admin_listen` is {admin}, which other machines reach, and has no TLS; listen on \
                 127.0.0.1, or say `insecure`"
            ));
        }
        let retention = RetentionRule {
            age: values.number("retention_seconds", 0..=u64::MAX / 4).and_then(seconds_or_all),
            count: values.number("retention_count", 0..=u64::MAX).filter(|count| *count > 0),
        };
        let extra_max = EXTRA_BYTES_MAX as u64;
        let settings = Self {
            listen,
            data: values
                .get("data", "a folder", |text| Ok::<_, fmt::Error>(text.into()))
                .unwrap_or_default(),
            catalogs: values.catalogs(),
            tls,
            tokens: values.optional("tokens", "a file"),
            admin_listen,
            reflection: values.flag("reflection").unwrap_or_default(),
            extra_bytes_max: values.size("extra_bytes_max", 0..=extra_max),
            request_bytes_max: values.size("request_bytes_max", 4096..=1 << 20),
            response_bytes_max: values.size("response_bytes_max", 4 << 20..=64 << 20),
            request_time_max: values.seconds("request_seconds_max", 1..=600),
            drain_time_max: values.seconds("drain_seconds_max", 0..=600),
            retention,
            cache_bytes: values.number("cache_bytes", 1 << 20..=1 << 40).unwrap_or_default(),
            keepalive_interval: values.seconds("keepalive_interval_seconds", 1..=3600),
            keepalive_timeout: values.seconds("keepalive_timeout_seconds", 1..=600),
            connections_max: values.size("connections_max", 1..=1_000_000),
            connections_per_address_max: values.size("connections_per_address_max", 1..=1_000_000),
            title_quota: Quota {
                requests_per_second: values
                    .quota("title_requests_per_second_max", REQUESTS_PER_SECOND_MIN),
                request_bytes_per_second: values
                    .quota("title_request_bytes_per_second_max", BYTES_PER_SECOND_MIN),
                streams_max: values.quota("title_streams_max", 1),
            },
            streams_per_connection_max: values
                .number("streams_per_connection_max", 1..=65536)
                .map_or(1, |count| u32::try_from(count).unwrap_or(u32::MAX)),
            stream_sets_max: values.size("stream_sets_max", 1..=65536),
            reload_poll: values.seconds("reload_poll_seconds", 1..=3600),
            log_format: values
                .get("log_format", "human or json", LogFormat::from_str)
                .unwrap_or(LogFormat::Human),
            log_filter: values
                .get("log_filter", "a filter such as info,accolade=debug", |text| {
                    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.to_owned())
                })
                .unwrap_or_default(),
        };
        if settings.request_bytes_max < settings.extra_bytes_max + REQUEST_WITHOUT_EXTRA_BYTES {
            values.mistakes.push(format!(
                "`request_bytes_max` is {}; pass at least {REQUEST_WITHOUT_EXTRA_BYTES} more than \
                 `extra_bytes_max`, which is {}",
                settings.request_bytes_max, settings.extra_bytes_max
            ));
        }
        match values.mistakes.is_empty() {
            true => Ok(settings),
            false => Err(ConfigError(values.mistakes)),
        }
    }
}

fn seconds_or_all(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

impl FromStr for LogFormat {
    type Err = fmt::Error;

    fn from_str(text: &str) -> Result<Self, fmt::Error> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(fmt::Error),
        }
    }
}

/// The name of a setting in the environment.
#[must_use]
pub fn environment_name(key: &str) -> String {
    format!("ACCOLADE_{}", key.to_uppercase())
}

fn environment(get: impl Fn(&str) -> Option<String>) -> Layer {
    let values = SETTINGS.iter().filter_map(|setting| {
        let text = get(&environment_name(setting.key))?;
        let values = match setting.key {
            "catalog" => text.split(';').map(str::to_owned).collect(),
            _ => vec![text],
        };
        Some((setting.key.to_owned(), values))
    });
    values.collect()
}

fn file_layer(text: &str, mistakes: &mut Vec<String>) -> Layer {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            mistakes.push(format!("the file is not TOML: {error}"));
            return Layer::new();
        }
    };
    let known: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.key).collect();
    let mut layer = Layer::new();
    for (key, value) in table {
        if !known.contains(key.as_str()) {
            mistakes.push(format!("`{key}` is no setting; `accolade serve --help` lists them"));
            continue;
        }
        let values = match (key.as_str(), value) {
            ("catalog", toml::Value::Table(files)) => {
                let files = files.into_iter();
                files.map(|(title, file)| format!("{title}={}", scalar(&file))).collect()
            }
            (_, value @ (toml::Value::Table(_) | toml::Value::Array(_))) => {
                mistakes.push(format!("`{key}` must be one value, not {}", value.type_str()));
                continue;
            }
            (_, value) => vec![scalar(&value)],
        };
        layer.insert(key, values);
    }
    layer
}

fn scalar(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        other => format!("a {}", other.type_str()),
    }
}

struct Values<'a> {
    layers: &'a [Layer],
    mistakes: Vec<String>,
}

impl Values<'_> {
    fn texts(&self, key: &str) -> Vec<String> {
        let given = self.layers.iter().find_map(|layer| layer.get(key));
        let default = || {
            let setting = SETTINGS.iter().find(|setting| setting.key == key);
            let default = setting.expect("every setting is in the table").default;
            if default.is_empty() { Vec::new() } else { vec![default.to_owned()] }
        };
        given.cloned().unwrap_or_else(default)
    }

    fn get<T, E>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.texts(key).pop().unwrap_or_default();
        match parse(&text) {
            Ok(value) => Some(value),
            Err(_) => {
                self.mistakes.push(format!("`{key}` is {text:?}; pass {expected}"));
                None
            }
        }
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        self.get(key, "true or false", str::parse)
    }

    fn number(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("{} to {}", range.start(), range.end());
        self.get(key, &expected, |text| {
            text.parse().ok().filter(|number| range.contains(number)).ok_or(())
        })
    }

    fn size(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> usize {
        let number = self.number(key, range).unwrap_or_default();
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    fn seconds(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.number(key, range).unwrap_or_default())
    }

    /// A value that need not be there.
    fn optional<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        match self.texts(key).pop().unwrap_or_default().as_str() {
            "" => None,
            _ => self.get(key, expected, str::parse),
        }
    }

    /// At least `least`, or 0, which stands for no limit.
    fn quota(&mut self, key: &str, least: u32) -> Option<NonZeroU32> {
        let expected = format!("{least} to {}, or 0 for no limit", u32::MAX);
        let number = self.get(key, &expected, |text| {
            text.parse::<u32>().ok().filter(|number| *number == 0 || *number >= least).ok_or(())
        });
        NonZeroU32::new(number?)
    }

    fn tls(&mut self) -> Option<TlsFiles> {
        let [certificate, key, client_ca] =
            ["tls_certificate", "tls_key", "tls_client_ca"].map(|key| self.optional(key, "a file"));
        match (certificate, key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_ca }),
            (None, None) if client_ca.is_none() => None,
            _ => {
                let mistake = "TLS needs both `tls_certificate` and `tls_key`";
                self.mistakes.push(mistake.to_owned());
                None
            }
        }
    }

    fn catalogs(&mut self) -> BTreeMap<Title, PathBuf> {
        let mut catalogs = BTreeMap::new();
        for text in self.texts("catalog") {
            let parsed = text.split_once('=').ok_or_else(|| "pass TITLE=FILE".to_owned());
            let parsed = parsed.and_then(|(title, file)| {
                let title = Title::parse(title).map_err(|error| format!("the title {error}"))?;
                Ok((title, PathBuf::from(file)))
            });
            match parsed {
                Ok((title, file)) => {
                    if catalogs.insert(title.clone(), file).is_some() {
                        self.mistakes.push(format!("`catalog` names the title {title:?} twice"));
                    }
                }
                Err(problem) => self.mistakes.push(format!("`catalog` is {text:?}; {problem}")),
            }
        }
        catalogs
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} {noun} in the settings:", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::EXTRA_BYTES_DEFAULT;

    fn layer(pairs: &[(&str, &str)]) -> Layer {
        pairs.iter().map(|(key, value)| ((*key).into(), vec![(*value).into()])).collect()
    }

    #[test]
    fn the_defaults_are_legal() {
        let settings = Settings::from_layers(&[], vec![]).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:50151");
        assert_eq!(settings.extra_bytes_max, EXTRA_BYTES_DEFAULT);
        assert_eq!(settings.retention, RetentionRule::default());
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = file_layer(
            "data = \"f\"\nlisten = \"127.0.0.1:1\"\ncache_bytes = 2097152",
            &mut vec![],
        );
        let environment = environment(|name| match name {
            "ACCOLADE_DATA" => Some("e".to_owned()),
            "ACCOLADE_LISTEN" => Some("127.0.0.1:2".to_owned()),
            "ACCOLADE_CATALOG" => Some("a=x.toml;b=y.csv".to_owned()),
            _ => None,
        });
        let layers = [layer(&[("data", "flag")]), environment, file];
        let settings = Settings::from_layers(&layers, vec![]).unwrap();
        assert_eq!(settings.data, PathBuf::from("flag"));
        assert_eq!(settings.listen.port(), 2);
        assert_eq!(settings.cache_bytes, 2_097_152);
        assert_eq!(settings.catalogs.len(), 2);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mut mistakes = Vec::new();
        let file = file_layer("lisen = 1\ndata = [1]\nextra_bytes_max = 70000", &mut mistakes);
        let flags = layer(&[("listen", "0.0.0.0:1"), ("log_format", "xml"), ("catalog", "x")]);
        let error = Settings::from_layers(&[flags, file], mistakes).unwrap_err().to_string();
        for part in [
            "6 mistakes",
            "`lisen`",
            "`data`",
            "0 to 65536",
            "insecure",
            "human or json",
            "TITLE=FILE",
        ] {
            assert!(error.contains(part), "{part} is missing from: {error}");
        }
    }

    #[test]
    fn a_table_of_catalogues_reads_like_flags() {
        let file = file_layer("[catalog]\ndemo = \"samples/demo.toml\"", &mut vec![]);
        let settings = Settings::from_layers(&[file], vec![]).unwrap();
        let title = Title::parse("demo").unwrap();
        assert_eq!(settings.catalogs[&title], PathBuf::from("samples/demo.toml"));
    }
}
