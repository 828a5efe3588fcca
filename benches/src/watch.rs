//! Subscribers: how fast completions reach many, what idle ones cost, and whether they slow sets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use accolade::proto::v1::{
    SetAchievementStorageRequest, WatchCompletionsRequest,
    completion_service_client::CompletionServiceClient, set_achievement_storage_request::Change,
    watch_completions_response::Event,
};
use tokio::{sync::watch, task::JoinSet};
use tonic::transport::Channel;

use crate::{
    grpc::{Client, connect},
    load::{Caller, Error, Phase, Result},
    records::{self, TITLE},
};

/// Streams of one connection; the server's limit is 128.
const STREAMS: usize = 100;

/// Completions between two looks at how far the subscribers are.
const BURST: u64 = 64;

/// Open subscriptions. They end when this is dropped.
pub struct Subscribers {
    tasks: JoinSet<Result<()>>,
    /// What all of them have received together.
    pub received: Arc<AtomicU64>,
    _channels: Vec<Channel>,
}

impl Subscribers {
    pub async fn open(url: &str, count: usize) -> Result<Self> {
        let received = Arc::new(AtomicU64::new(0));
        let (mut tasks, mut channels) = (JoinSet::new(), Vec::new());
        let (opened, mut all_opened) = watch::channel(0);
        let opened = Arc::new(opened);
        for place in 0..count {
            if place % STREAMS == 0 {
                channels.push(connect(url).await?);
            }
            let channel = channels[channels.len() - 1].clone();
            tasks.spawn(subscribe(channel, received.clone(), opened.clone()));
        }
        all_opened.wait_for(|opened| *opened == count).await?;
        Ok(Self { tasks, received, _channels: channels })
    }

    /// An error of any of them.
    pub fn check(&mut self) -> Result<()> {
        match self.tasks.try_join_next() {
            Some(ended) => ended?.and(Err("a subscription ended".into())),
            None => Ok(()),
        }
    }
}

/// Opens subscriptions, says so, and follows them until the process is killed.
pub async fn subscribe_many(url: &str, count: usize) -> Result<()> {
    let mut open = Subscribers::open(url, count).await?;
    println!("{count} subscribers of {url}");
    match open.tasks.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

async fn subscribe(
    channel: Channel,
    received: Arc<AtomicU64>,
    opened: Arc<watch::Sender<usize>>,
) -> Result<()> {
    let mut events = follow(channel).await?;
    opened.send_modify(|count| *count += 1);
    while let Some(message) = events.message().await? {
        if let Some(Event::Completion(_)) = message.event {
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A watch that has started.
pub async fn follow(
    channel: Channel,
) -> Result<tonic::Streaming<accolade::proto::v1::WatchCompletionsResponse>> {
    let request =
        WatchCompletionsRequest { title: TITLE.to_owned(), ..WatchCompletionsRequest::default() };
    let mut client = CompletionServiceClient::new(channel);
    let mut events = client.watch_completions(request).await?.into_inner();
    events.message().await?.ok_or("the watch ended at once")?;
    Ok(events)
}

/// Deliveries a second, of completions that real sets make: a burst, and the next once it has
/// arrived everywhere.
pub async fn deliveries(url: &str, subscribers: usize, time: Duration) -> Result<f64> {
    let mut subscribers_open = Subscribers::open(url, subscribers).await?;
    let client = Client::new(connect(url).await?);
    let (mut sent, start) = (0, Instant::now());
    while start.elapsed() < time {
        let mut sets = JoinSet::new();
        for _ in 0..BURST {
            let mut client = client.clone();
            sets.spawn(async move { client.set_achievement_storage(complete()).await });
        }
        while let Some(done) = sets.join_next().await {
            done??;
        }
        sent += BURST * subscribers as u64;
        while subscribers_open.received.load(Ordering::Relaxed) < sent {
            subscribers_open.check()?;
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

/// Deliveries a second of streams that bare tonic sends as fast as it can.
pub async fn bare_deliveries(url: &str, subscribers: usize, time: Duration) -> Result<f64> {
    let open = Subscribers::open(url, subscribers).await?;
    let phase = Phase::default();
    let counting = {
        let (phase, received) = (phase.clone(), open.received.clone());
        tokio::spawn(async move {
            while !phase.is_measuring() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            received.load(Ordering::Relaxed)
        })
    };
    let measured = phase.run(time).await;
    let received = open.received.load(Ordering::Relaxed) - counting.await?;
    Ok(received as f64 / measured.as_secs_f64())
}

/// A set that completes a record nobody has written yet.
pub fn complete() -> SetAchievementStorageRequest {
    SetAchievementStorageRequest {
        title: TITLE.to_owned(),
        player_id: format!("finisher-{:016x}", fastrand::u64(..)),
        node_id: records::node(0),
        change: Some(Change::Finish(true)),
        ..SetAchievementStorageRequest::default()
    }
}

/// A caller of whose sets one in twenty completes a record.
pub struct MixedSetter {
    pub client: Client,
}

impl Caller for MixedSetter {
    async fn call(&mut self) -> Result<()> {
        let change = match fastrand::u8(..20) {
            0 => Change::Finish(true),
            _ => Change::Delta(1),
        };
        let request = SetAchievementStorageRequest { change: Some(change), ..complete() };
        let answer = self.client.set_achievement_storage(request).await?.into_inner();
        match answer.code {
            0 => Ok(()),
            code => Err(Error::from(format!("code {code}"))),
        }
    }
}
