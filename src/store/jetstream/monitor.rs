//! Asking servers of a cluster about themselves, over their monitoring addresses: clients are not
//! told whether a server syncs every write.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    address::{Address, Monitor},
    layout::EngineError,
};

const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// Refuses a cluster of which a server says that it does not sync every write; tells where that is
/// not known.
pub(super) async fn check(address: &Address) -> Result<Vec<String>, EngineError> {
    let mut worries = Vec::new();
    if address.monitors.is_empty() {
        worries.push(
            "nobody was asked whether the cluster syncs every write; its servers need \
             `sync_interval: always`, or what is acknowledged may be lost in a power cut. Give \
             their monitoring addresses (`nats_monitor`) to have it checked"
                .to_owned(),
        );
    }
    for monitor in &address.monitors {
        let problem =
            |problem: String| EngineError::Monitor { monitor: monitor.to_string(), problem };
        let asked = timeout(ANSWER_TIME_MAX, ask(monitor)).await;
        let answer = match asked.unwrap_or_else(|_| Err("does not answer".to_owned())) {
            Ok(answer) => answer,
            // One server that is away must not keep others from starting.
            Err(problem) => {
                worries.push(format!(
                    "the monitor {monitor} {problem}: whether that server syncs every write is \
                     not known"
                ));
                continue;
            }
        };
        if answer["jetstream"]["config"]["sync_always"] != Value::Bool(true) {
            let name = answer["server_name"].as_str().unwrap_or_default();
            return Err(problem(format!(
                "says that server {name:?} does not sync every write: set `sync_interval: always` \
                 in its `jetstream` block"
            )));
        }
    }
    Ok(worries)
}

/// What a server says of itself.
async fn ask(Monitor(host): &Monitor) -> Result<Value, String> {
    let failed = |error: std::io::Error| format!("cannot be asked: {error}");
    let mut stream = TcpStream::connect(host).await.map_err(failed)?;
    // HTTP/1.0: the answer ends with the connection.
    let request = format!("GET /varz HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await.map_err(failed)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(|_| "does not answer as a NATS server does".to_owned())
}
