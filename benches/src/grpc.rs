//! Callers of a gRPC service of ours: the real one, or the bare one that only answers.

use std::time::{Duration, Instant};

use accolade::proto::v1::{
    GetAchievementStorageRequest, SetAchievementStorageRequest, StreamSetAchievementStorageRequest,
    achievement_storage_service_client::AchievementStorageServiceClient,
    set_achievement_storage_request::Change, stream_set_achievement_storage_response::Outcome,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::{
    load::{Caller, Error, Measured, Phase, Result, closed_loop, histogram, micros},
    records::{self, EXTRA, NODES, Record, Share, TITLE, Versions},
};

pub type Client = AchievementStorageServiceClient<Channel>;

/// A gRPC server to load.
#[derive(Clone)]
pub struct Target {
    pub url: String,
    pub versions: Versions,
    pub connections: usize,
}

pub async fn connect(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
    Ok(endpoint.connect().await?)
}

impl Target {
    async fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            clients.push(Client::new(connect(&self.url).await?));
        }
        Ok(clients)
    }

    pub async fn setters(&self, in_flight: usize) -> Result<Vec<Setter>> {
        let clients = self.clients().await?;
        let shares = self.versions.shares(in_flight).into_iter();
        let callers = shares.zip(clients.iter().cycle());
        Ok(callers.map(|(share, client)| Setter { client: client.clone(), share }).collect())
    }

    /// Compare-and-sets, each on its own.
    pub async fn set(&self, in_flight: usize, time: Duration) -> Result<Measured> {
        closed_loop(self.setters(in_flight).await?, time).await
    }

    /// Reads of one player's records.
    pub async fn get(&self, in_flight: usize, time: Duration) -> Result<Measured> {
        let clients = self.clients().await?;
        let shares = self.versions.shares(in_flight).into_iter();
        let callers = shares.zip(clients.iter().cycle());
        let callers = callers.map(|(share, client)| Getter { client: client.clone(), share });
        closed_loop(callers.collect(), time).await
    }

    /// Compare-and-sets on one stream a connection.
    pub async fn stream_set(&self, in_flight: usize, time: Duration) -> Result<Measured> {
        let phase = Phase::default();
        let mut tasks = JoinSet::new();
        let window = (in_flight / self.connections).max(1);
        let shares = self.versions.shares(self.connections);
        for (client, share) in self.clients().await?.into_iter().zip(shares) {
            tasks.spawn(pipeline(client, share, window, phase.clone()));
        }
        let measured = phase.run(time).await;
        let mut latency = histogram();
        while let Some(done) = tasks.join_next().await {
            latency.add(done??)?;
        }
        Ok(Measured { rate: latency.len() as f64 / measured.as_secs_f64(), latency })
    }

    /// Makes every record, at version 1.
    pub async fn fill(&self) -> Result<()> {
        let mut tasks = JoinSet::new();
        let shares = self.versions.shares(self.connections);
        for (client, share) in self.clients().await?.into_iter().zip(shares) {
            tasks.spawn(fill(client, share));
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    }
}

pub struct Setter {
    client: Client,
    share: Share,
}

impl Caller for Setter {
    async fn call(&mut self) -> Result<()> {
        let record = self.share.next();
        let answer = self.client.set_achievement_storage(set(record)).await?.into_inner();
        check(answer.code)?;
        self.share.wrote(record);
        Ok(())
    }
}

struct Getter {
    client: Client,
    share: Share,
}

impl Caller for Getter {
    async fn call(&mut self) -> Result<()> {
        let request = GetAchievementStorageRequest {
            title: TITLE.to_owned(),
            player_id: records::player(self.share.next().index),
            achievement_ids: Vec::new(),
        };
        let answer = self.client.get_achievement_storage(request).await?.into_inner();
        match answer.entity.len() {
            NODES => Ok(()),
            count => Err(format!("{count} records, not {NODES}").into()),
        }
    }
}

pub fn set(record: Record) -> SetAchievementStorageRequest {
    SetAchievementStorageRequest {
        title: TITLE.to_owned(),
        player_id: records::player(record.index),
        node_id: records::node(record.index),
        change: Some(Change::Delta(1)),
        extra: Some(EXTRA.to_owned()),
        expected_version: Some(record.version),
        request_id: String::new(),
    }
}

fn check(code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(format!("code {code}: somebody else wrote").into()),
    }
}

async fn pipeline(
    mut client: Client,
    mut share: Share,
    window: usize,
    phase: Phase,
) -> Result<hdrhistogram::Histogram<u64>> {
    let (requests, queue) = mpsc::channel(window);
    let mut sent: Vec<(Record, Instant)> = Vec::new();
    for tag in 0..window as u64 {
        let record = share.next();
        sent.push((record, Instant::now()));
        requests.send(StreamSetAchievementStorageRequest { tag, set: Some(set(record)) }).await?;
    }
    let answers = client.stream_set_achievement_storage(ReceiverStream::new(queue)).await?;
    let mut answers = answers.into_inner();
    let mut latency = histogram();
    while !phase.is_done() {
        let answer = answers.message().await?.ok_or("the stream ended")?;
        let slot = &mut sent[usize::try_from(answer.tag)?];
        match answer.outcome {
            Some(Outcome::Response(response)) => check(response.code)?,
            other => return Err(format!("{other:?}").into()),
        }
        let now = Instant::now();
        if phase.is_measuring() {
            latency.saturating_record(micros(now - slot.1));
        }
        share.wrote(slot.0);
        *slot = (share.next(), now);
        let next = StreamSetAchievementStorageRequest { tag: answer.tag, set: Some(set(slot.0)) };
        requests.send(next).await?;
    }
    // The last ones are stored too, and must be known.
    drop(requests);
    while let Some(answer) = answers.message().await? {
        share.wrote(sent[usize::try_from(answer.tag)?].0);
    }
    Ok(latency)
}

async fn fill(mut client: Client, mut share: Share) -> Result<()> {
    let count = share.count();
    let (requests, queue) = mpsc::channel(1024);
    let feeder = tokio::spawn(async move {
        for tag in 0..count as u64 {
            let record = Record { version: 0, ..share.next() };
            let set = Some(set(record));
            requests.send(StreamSetAchievementStorageRequest { tag, set }).await?;
            share.versions().set(record.index, 1);
        }
        Ok::<_, Error>(())
    });
    let answers = client.stream_set_achievement_storage(ReceiverStream::new(queue)).await?;
    let mut answers = answers.into_inner();
    while let Some(answer) = answers.message().await? {
        match answer.outcome {
            Some(Outcome::Response(response)) => check(response.code)?,
            other => return Err(format!("{other:?}").into()),
        }
    }
    feeder.await?
}
