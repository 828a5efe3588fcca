//! What servers say to each other, and may miss. A new consumer of a subscription: whoever has one
//! says so, with the number of its claim, and the others end those of lower ones; where that is
//! lost, two consumers get the same for a while, and acks of the older one do not count any more.
//! An erasure: the others forget what they knew of the player; they believed it no longer anyway.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Duration, sleep},
};

use super::{cluster::Cluster, players::Players};
use crate::{
    domain::{PlayerId, PlayerKey, SubscriptionName, Title},
    store::StoreError,
};

/// Claims that wait to be dealt with; older ones are forgotten.
const WAITING_MAX: usize = 1024;

/// Pause before listening is begun anew.
const PAUSE: Duration = Duration::from_millis(200);

/// How this server takes part. Cloning shares it.
#[derive(Clone)]
pub(super) struct Words {
    /// Tells this server's own words from others'.
    server_id: u64,
    pub(super) claims: broadcast::Sender<(Title, SubscriptionName, u64)>,
}

impl Default for Words {
    fn default() -> Self {
        Self { server_id: fastrand::u64(..), claims: broadcast::Sender::new(WAITING_MAX) }
    }
}

impl Words {
    /// Says that a subscription has a new consumer, or is gone.
    pub(super) async fn say_claim(
        &self,
        cluster: &Cluster,
        title: &Title,
        name: &SubscriptionName,
        claim: u64,
    ) -> Result<(), StoreError> {
        self.say(cluster, json!({ "title": title.as_str(), "name": name.as_str(), "claim": claim }))
            .await
    }

    /// Says that a player was erased.
    pub(super) async fn say_erased(
        &self,
        cluster: &Cluster,
        player: &PlayerKey,
    ) -> Result<(), StoreError> {
        let PlayerKey { title, player } = player;
        self.say(cluster, json!({ "title": title.as_str(), "erased": player.as_str() })).await
    }

    async fn say(&self, cluster: &Cluster, mut word: Value) -> Result<(), StoreError> {
        word["server"] = self.server_id.into();
        cluster.wire.say(cluster.names.on_words(), Bytes::from(word.to_string())).await
    }

    /// Hears what others say, without end.
    pub(super) async fn listen(self, cluster: Arc<Cluster>, players: Arc<Players>) {
        loop {
            if let Ok(mut said) = cluster.wire.listen(cluster.names.on_words()).await {
                while let Some(message) = said.next().await {
                    self.hear(&message.payload, &players);
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Does what follows from what another server said; `None` where nothing does.
    fn hear(&self, said: &[u8], players: &Players) -> Option<()> {
        let said: Value = serde_json::from_slice(said).ok()?;
        if said["server"].as_u64()? == self.server_id {
            return None;
        }
        let title = Title::parse(said["title"].as_str()?).ok()?;
        if let Some(player) = said["erased"].as_str() {
            players.forget(&PlayerKey { title, player: PlayerId::parse(player).ok()? });
        } else {
            let name = SubscriptionName::parse(said["name"].as_str()?).ok()?;
            let _ = self.claims.send((title, name, said["claim"].as_u64()?));
        }
        Some(())
    }
}
