//! One consumer a subscription, over all servers: whoever has a new one says so, with the number of
//! its claim, and the others end those of lower ones. What is lost of that only means that two
//! consumers get the same for a while: acks of the older one do not count any more.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Duration, sleep},
};

use super::cluster::Cluster;
use crate::{
    domain::{SubscriptionName, Title},
    store::StoreError,
};

/// Claims that wait to be dealt with; older ones are forgotten.
const WAITING_MAX: usize = 1024;

/// Pause before listening is begun anew.
const PAUSE: Duration = Duration::from_millis(200);

/// What servers say to each other. Cloning shares it.
#[derive(Clone)]
pub(super) struct Claims {
    /// Tells this server's own words from others'.
    server_id: u64,
    pub(super) heard: broadcast::Sender<(Title, SubscriptionName, u64)>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { server_id: fastrand::u64(..), heard: broadcast::Sender::new(WAITING_MAX) }
    }
}

impl Claims {
    pub(super) async fn say(
        &self,
        cluster: &Cluster,
        title: &Title,
        name: &SubscriptionName,
        claim: u64,
    ) -> Result<(), StoreError> {
        let (server, title, name) = (self.server_id, title.as_str(), name.as_str());
        let said = json!({ "server": server, "title": title, "name": name, "claim": claim });
        cluster.wire.say(cluster.names.on_claims(), Bytes::from(said.to_string())).await
    }

    /// Hears what others say, without end.
    pub(super) async fn listen(self, cluster: Arc<Cluster>) {
        loop {
            if let Ok(mut said) = cluster.wire.listen(cluster.names.on_claims()).await {
                while let Some(message) = said.next().await {
                    if let Some(claim) = self.read(&message.payload) {
                        let _ = self.heard.send(claim);
                    }
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// What another server said; `None` for what this one did.
    fn read(&self, said: &[u8]) -> Option<(Title, SubscriptionName, u64)> {
        let said: Value = serde_json::from_slice(said).ok()?;
        if said["server"].as_u64()? == self.server_id {
            return None;
        }
        let title = Title::parse(said["title"].as_str()?).ok()?;
        let name = SubscriptionName::parse(said["name"].as_str()?).ok()?;
        Some((title, name, said["claim"].as_u64()?))
    }
}
