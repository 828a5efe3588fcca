//! The real binary, driven from outside.

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
#[path = "../support/disk.rs"]
mod disk;

mod abuse;
mod access;
mod admin;
mod architecture;
mod backup;
mod bad_input;
mod cases;
mod catalog;
mod client;
mod cluster;
mod cluster_access;
mod cluster_faults;
mod cluster_transfer;
mod cluster_trouble;
mod command_line;
mod consume;
#[cfg(feature = "failpoints")]
mod crash_points;
mod crowds;
mod deadlines;
#[cfg(target_os = "linux")]
mod disk_faults;
mod documents;
mod doors;
mod durability;
mod every_method;
mod handshakes;
mod lifecycle;
mod linear;
mod log_lines;
mod metrics;
mod network;
mod pauses;
#[cfg(target_os = "linux")]
mod power_cut;
#[cfg(all(target_os = "linux", feature = "failpoints"))]
mod sled_bounds;
mod story;
mod stream_set;
mod sync;
mod tls;
#[cfg(any(target_os = "linux", feature = "failpoints"))]
mod told;
#[cfg(feature = "otel")]
mod traces;
mod transfer;
mod upgrade;
mod watch;
