//! Values of settings as they were given: on the command line, in the environment, in a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use super::{SETTINGS, TlsFiles, environment_name};
use crate::{
    domain::Title,
    store::jetstream::{Address, AddressError, Monitor, MonitorError},
};

/// Values by key, from one place. A key may have several values.
pub type Layer = BTreeMap<String, Vec<String>>;

pub(super) fn environment(get: impl Fn(&str) -> Option<String>) -> Layer {
    let values = SETTINGS.iter().filter_map(|setting| {
        let text = get(&environment_name(setting.key))?;
        let values = match setting.key {
            "catalog" | "cors_origin" | "nats_monitor" => {
                text.split(';').map(str::to_owned).collect()
            }
            _ => vec![text],
        };
        Some((setting.key.to_owned(), values))
    });
    values.collect()
}

pub(super) fn file_layer(text: &str, mistakes: &mut Vec<String>) -> Layer {
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
            ("cors_origin" | "nats_monitor", toml::Value::Array(texts)) => {
                texts.iter().map(scalar).collect()
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

/// What to pass as `otlp_endpoint`.
const OTLP_ENDPOINT: &str = "a URL such as http://127.0.0.1:4317";

pub(super) struct Values<'a> {
    pub(super) layers: &'a [Layer],
    pub(super) mistakes: Vec<String>,
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

    pub(super) fn get<T, E>(
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

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        self.get(key, "true or false", str::parse)
    }

    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("{} to {}", range.start(), range.end());
        self.get(key, &expected, |text| {
            text.parse().ok().filter(|number| range.contains(number)).ok_or(())
        })
    }

    pub(super) fn size(&mut self, key: &str, range: RangeInclusive<u64>) -> usize {
        let number = self.number(key, range).unwrap_or_default();
        usize::try_from(number).unwrap_or(usize::MAX)
    }

    pub(super) fn seconds(&mut self, key: &str, range: RangeInclusive<u64>) -> Duration {
        Duration::from_secs(self.number(key, range).unwrap_or_default())
    }

    /// A value that need not be there.
    pub(super) fn optional<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        let given = self.texts(key).pop()?;
        // Such as a variable that is not set: it must not pass for "none".
        if given.is_empty() {
            self.mistakes.push(format!("`{key}` is empty; pass {expected}, or leave it out"));
            return None;
        }
        self.get(key, expected, str::parse)
    }

    /// At least `least`, or 0, which stands for no limit.
    pub(super) fn quota(&mut self, key: &str, least: u32) -> Option<NonZeroU32> {
        let expected = format!("{least} to {}, or 0 for no limit", u32::MAX);
        let number = self.get(key, &expected, |text| {
            text.parse::<u32>().ok().filter(|number| *number == 0 || *number >= least).ok_or(())
        });
        NonZeroU32::new(number?)
    }

    pub(super) fn tls(&mut self) -> Option<TlsFiles> {
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

    /// The cluster that is the store, and how to get in; none where there is none.
    pub(super) fn cluster(&mut self) -> Option<Address> {
        let problem = format!("none: it {AddressError}");
        let address: Option<Address> = self.optional("store", &problem);
        let files = ["nats_credentials", "nats_ca", "nats_certificate", "nats_key"];
        let [credentials, ca, certificate, key] = files.map(|key| self.optional(key, "a file"));
        let is_half = certificate.is_some() != key.is_some();
        if is_half {
            self.mistakes.push("`nats_certificate` and `nats_key` go together".to_owned());
        }
        let certificate: Option<(PathBuf, PathBuf)> = certificate.zip(key);
        let monitors = self.monitors();
        let has_more =
            credentials.is_some() || ca.is_some() || certificate.is_some() || !monitors.is_empty();
        if address.is_none() && has_more {
            self.mistakes.push("settings of NATS are given, and no `store`".to_owned());
        }
        address.map(|address| Address { credentials, ca, certificate, monitors, ..address })
    }

    fn monitors(&mut self) -> Vec<Monitor> {
        let mut monitors = Vec::new();
        for text in self.texts("nats_monitor") {
            match text.parse() {
                Ok(monitor) => monitors.push(monitor),
                Err(MonitorError) => {
                    self.mistakes.push(format!("`nats_monitor` is {text:?}; {MonitorError}"));
                }
            }
        }
        monitors
    }

    /// Where traces go; nowhere in a program that cannot send them.
    pub(super) fn otlp_endpoint(&mut self) -> Option<String> {
        let endpoint: http::Uri = self.optional("otlp_endpoint", OTLP_ENDPOINT)?;
        if !cfg!(feature = "otel") {
            let without = "`otlp_endpoint` is given, and this program was built without traces; \
                           build it with `--features otel`, or leave it out";
            self.mistakes.push(without.to_owned());
        } else if endpoint.scheme_str() != Some("http") {
            self.mistakes.push(format!("`otlp_endpoint` is \"{endpoint}\"; pass {OTLP_ENDPOINT}"));
        }
        Some(endpoint.to_string())
    }

    /// Origins as browsers write them, or `*`.
    pub(super) fn origins(&mut self) -> Vec<String> {
        let origins = self.texts("cors_origin");
        let is_origin = |text: &str| {
            let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            host.is_some_and(|host| {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
            })
        };
        for text in origins.iter().filter(|text| *text != "*" && !is_origin(text)) {
            let problem = "pass an origin such as https://play.example.com, or *";
            self.mistakes.push(format!("`cors_origin` is {text:?}; {problem}"));
        }
        origins
    }

    pub(super) fn catalogs(&mut self) -> BTreeMap<Title, PathBuf> {
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
