//! The one table of settings.

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
    setting(
        "data",
        "DIR",
        "./accolade-data",
        "Folder of the store on this machine; made if it does not exist",
    ),
    setting(
        "store",
        "URL",
        "",
        "NATS JetStream cluster that keeps everything instead of the folder: \
         nats://host:4222,host2:4222, with /prefix behind it where several installations share a \
         cluster; tls:// insists on TLS. `accolade engine init` lays it out",
    ),
    setting("nats_credentials", "FILE", "", "Credentials for the cluster (.creds: JWT and key)"),
    setting("nats_ca", "FILE", "", "Authorities of the cluster's certificates (PEM)"),
    setting("nats_certificate", "FILE", "", "Certificate to show to the cluster (PEM)"),
    setting("nats_key", "FILE", "", "That certificate's private key (PEM)"),
    setting(
        "nats_monitor",
        "URL",
        "",
        "Monitoring address of a server of the cluster, such as http://host:8222, asked at start \
         whether it syncs every write; may be given more than once (environment: separated by `;`)",
    ),
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
    setting(
        "cors_origin",
        "ORIGIN",
        "",
        "Web pages that may call this server from a browser, such as https://play.example.com; `*` \
         for all; may be given more than once (environment: separated by `;`). Without it, none",
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
         players; the process takes up to 3 times this. With a cluster, all for players that this \
         server wrote last. 1048576 to 2^40",
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
    setting(
        "otlp_endpoint",
        "URL",
        "",
        "OpenTelemetry collector that gets traces over OTLP/gRPC, in plain text; needs a program \
         built with the feature `otel`",
    ),
];

/// The name of a setting in the environment.
#[must_use]
pub fn environment_name(key: &str) -> String {
    format!("ACCOLADE_{}", key.to_uppercase())
}
