//! What the server prints once it listens: the address, and a command to paste.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::json;

use crate::{domain::Title, store::StoredCatalog};

const SET: &str = "accolade.v1.AchievementStorageService/SetAchievementStorage";
const GET: &str = "accolade.v1.AchievementStorageService/GetAchievementStorage";

/// The text; its first line names the address and nothing else.
pub(super) fn text(
    scheme: &str,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    data: &str,
    catalogs: &BTreeMap<Title, StoredCatalog>,
) -> String {
    let titles: Vec<_> = catalogs.keys().map(Title::as_str).take(10).collect();
    let titles = titles.join(", ");
    let mut text =
        format!("accolade listens on {scheme}://{address}\n  data in {data}, titles: {titles}");
    if let Some(admin) = admin {
        text.extend(["\n  metrics and probes on http://", &admin.to_string()]);
    }
    // A line to paste works where nothing but an address is needed.
    let first = catalogs.values().next().filter(|_| scheme == "http");
    if let Some((title, node)) = first.and_then(|it| Some((&it.title, it.catalog.nodes().next()?)))
    {
        let (title, node) = (title.as_str(), node.definition().node_id().as_str());
        let set = json!({"title": title, "player_id": "10001", "node_id": node, "delta": 1});
        let get = json!({"title": title, "player_id": "10001"});
        text += "\n  try, with grpcurl:\n";
        text += &command(&set, address, SET);
        text += &command(&get, address, GET);
    }
    text
}

fn command(request: &serde_json::Value, address: SocketAddr, method: &str) -> String {
    let request = request.to_string().replace('\'', r"'\''");
    format!("    grpcurl -plaintext -emit-defaults -d '{request}' {address} {method}\n")
}
