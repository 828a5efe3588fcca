//! Settings: flags over environment over one TOML file over defaults. One table says everything
//! about each; every mistake is found before anything is started, and all are told at once.

mod table;
mod values;

use std::{
    collections::BTreeMap, env, fmt, fs, net::SocketAddr, path::PathBuf, str::FromStr,
    time::Duration,
};

use self::values::{Values, environment, file_layer};
pub use self::{
    table::{SETTINGS, Setting, environment_name},
    values::Layer,
};
use crate::{
    access::{BYTES_PER_SECOND_MIN, Quota, REQUESTS_PER_SECOND_MIN},
    domain::Title,
    feed::RetentionRule,
    store::{jetstream::Address, sled::EXTRA_BYTES_MAX},
};

/// A set without its extra: four ids and a few numbers.
const REQUEST_WITHOUT_EXTRA_BYTES: usize = 1024;

/// What the server is to do. Always legal.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field is the setting of its name in `SETTINGS`")]
pub struct Settings {
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub store: Option<Address>,
    pub catalogs: BTreeMap<Title, PathBuf>,
    pub tls: Option<TlsFiles>,
    pub tokens: Option<PathBuf>,
    pub admin_listen: Option<SocketAddr>,
    pub cors_origins: Vec<String>,
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
    pub otlp_endpoint: Option<String>,
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

impl TlsFiles {
    /// All of them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let Self { certificate, key, client_ca } = self;
        [certificate, key].into_iter().chain(client_ca).cloned().collect()
    }
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

    /// Where everything is kept, to be shown.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.store {
            Some(address) => address.shown(),
            None => self.data.display().to_string(),
        }
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
            store: values.cluster(),
            catalogs: values.catalogs(),
            tls,
            tokens: values.optional("tokens", "a file"),
            admin_listen,
            cors_origins: values.origins(),
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
            otlp_endpoint: values.otlp_endpoint(),
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

    /// A variable that is not set must not switch tokens or TLS off.
    #[test]
    fn an_empty_value_is_a_mistake_and_not_none() {
        for key in ["tokens", "tls_certificate", "tls_key", "tls_client_ca", "admin_listen"] {
            let error = Settings::from_layers(&[layer(&[(key, "")])], vec![]).unwrap_err();
            assert!(error.to_string().contains(&format!("`{key}` is empty")), "{error}");
        }
        let settings = Settings::from_layers(&[layer(&[("tokens", "t.toml")])], vec![]).unwrap();
        assert_eq!(settings.tokens, Some(PathBuf::from("t.toml")));
    }
}
