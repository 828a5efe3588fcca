//! What is said to JetStream: reads at the leader, pages of a subject, and atomic batches.

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, Message, Request, RequestErrorKind, StatusCode,
    jetstream::{
        self, Context, ContextBuilder,
        message::StreamMessage,
        stream::{LastRawMessageErrorKind, PurgeErrorKind, Stream},
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout},
};

use super::{
    address::Address,
    connection,
    patience::{PATIENCE, Pauses, patiently},
    reach::{Heard, Reach},
};
use crate::store::{StoreError, StoreHealth, crash_point::crash_point};

/// Longest wait for an answer of JetStream. A leader that is gone has none; it takes a cluster 4 to
/// 9 seconds to choose another.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// Longest wait for a message of a read. Shorter than the time in which another leader may be
/// chosen (4 s): an answer that a frozen leader gives when it wakes is not waited for.
const READ_TIME_MAX: Duration = Duration::from_secs(1);

/// Reads under way, and most bytes that each may bring, but for its last message: up to 32 MiB.
/// NATS gives a connection up that has not taken 64 MiB yet (`max_pending`).
const READS_MAX: usize = 16;
pub(super) const READ_BYTES_MAX: usize = 1 << 20;

/// JetStream's code for: the subject has another last sequence.
const WRONG_SEQUENCE: u64 = 10071;

/// A connection to a cluster; found anew where it breaks. Cloning shares it.
#[derive(Clone)]
pub(super) struct Wire {
    client: Client,
    reads: Context,
    pub(super) context: Context,
    reading: Arc<Semaphore>,
    reach: Arc<Reach>,
}

/// A message to store.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) subject: String,
    pub(super) value: Bytes,
    /// The sequence that the subject's last message must have (0: there is none); `None` asks for
    /// nothing, and adds a message where the others stay.
    pub(super) replaces: Option<u64>,
}

/// What was heard of writes. While a leader that was cut off still takes itself for one, it may
/// refuse what the other one stores: so only an acknowledgement is certain, and that nobody was
/// there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// All are stored, the last at this sequence, the others right before it.
    Stored(u64),
    /// Somebody says that a subject has another last sequence.
    Conflict,
    /// None is: they reached nobody.
    NotSent(String),
    /// Nobody knows.
    Unknown(String),
}

/// A page of a subject's messages.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) messages: Vec<StoredMessage>,
    /// How many come behind them.
    pub(super) pending: u64,
}

/// A message as it is stored.
#[derive(Clone, Debug)]
pub(super) struct StoredMessage {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) value: Bytes,
}

impl From<StreamMessage> for StoredMessage {
    fn from(message: StreamMessage) -> Self {
        let StreamMessage { subject, sequence, payload, .. } = message;
        Self { subject: subject.as_str().to_owned(), sequence, value: payload }
    }
}

/// The cluster did not do what it was asked; it may later.
pub(super) fn unavailable(error: impl ToString) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

// === impl Wire ===

impl Wire {
    /// Says in `health` whether the cluster can be reached.
    pub(super) async fn connect(
        address: &Address,
        health: watch::Sender<StoreHealth>,
    ) -> Result<Self, StoreError> {
        let reach = Arc::new(Reach::new(health));
        let client = connection::connect(address, reach.clone(), ANSWER_TIME_MAX).await?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(ANSWER_TIME_MAX);
        let reads = ContextBuilder::new().timeout(READ_TIME_MAX).build(client.clone());
        let reading = Arc::new(Semaphore::new(READS_MAX));
        Ok(Self { client, reads, context, reading, reach })
    }

    /// Notes that nobody answers what a leader must.
    pub(super) fn has_no_leader(&self) {
        self.heard(Heard::NoLeader);
    }

    /// Notes what was heard of a write. Where nothing is stored any more, the NATS server that this
    /// is connected to may be cut off from the others; another one may not be.
    fn heard(&self, heard: Heard) {
        if self.reach.hear(heard, Instant::now()) {
            tracing::warn!("nothing is stored here any more; connecting to another NATS server");
            let client = self.client.clone();
            tokio::spawn(async move { client.force_reconnect().await });
        }
    }

    /// Whether nothing shows that a majority answers.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.reach.is_in_doubt()
    }

    /// The version of the server that this is connected to.
    pub(super) fn version(&self) -> String {
        self.client.server_info().version
    }

    pub(super) fn is_at_least(&self, major: i64, minor: i64) -> bool {
        self.client.is_server_compatible(major, minor, 0)
    }

    /// The largest message that the server takes.
    pub(super) fn message_bytes_max(&self) -> usize {
        self.client.max_payload()
    }

    /// A handle of a stream; nothing is asked.
    async fn stream(&self, name: &str) -> Result<Stream<()>, StoreError> {
        self.context.get_stream_no_info(name).await.map_err(unavailable)
    }

    /// The last message of a subject, as the stream's leader has it.
    pub(super) async fn last(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StoredMessage>, StoreError> {
        patiently!(self.last_once(stream, subject))
    }

    /// The same, asked once.
    pub(super) async fn last_once(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<StoredMessage>, StoreError> {
        let handle = self.reads.get_stream_no_info(stream).await.map_err(unavailable)?;
        let found = in_time(handle.get_last_raw_message_by_subject(subject)).await?;
        found_or_none(found)
    }

    /// The last message of each of some subjects, as any replica has it: it may be a moment behind.
    /// Asked once; far cheaper than the leader's word. Those that have none are left out. `None`
    /// where they are too large to be read together.
    pub(super) async fn last_of_any(
        &self,
        stream: &str,
        subjects: &[String],
    ) -> Result<Option<Vec<StoredMessage>>, StoreError> {
        let asked = match subjects {
            [subject] => json!({ "last_by_subj": subject }),
            subjects => json!({ "multi_last": subjects, "max_bytes": READ_BYTES_MAX }),
        };
        let _place = self.place_to_read().await?;
        let mut replies = self.ask_any(stream, &asked).await?;
        let mut messages = Vec::with_capacity(subjects.len());
        loop {
            let reply = next_reply(&mut replies).await?;
            match reply.status {
                None => messages.push(from_page(reply)?),
                Some(StatusCode::NOT_FOUND) if messages.is_empty() => return Ok(Some(messages)),
                Some(status) if status.as_u16() == 204 => {
                    let is_whole = number(&reply, "Nats-Num-Pending")? == 0;
                    return Ok(is_whole.then_some(messages));
                }
                Some(status) => return Err(unavailable(format!("status {status} of a read"))),
            }
            if subjects.len() == 1 {
                return Ok(Some(messages));
            }
        }
    }

    /// Waits until few enough reads are under way.
    async fn place_to_read(&self) -> Result<SemaphorePermit<'_>, StoreError> {
        self.reading.acquire().await.map_err(unavailable)
    }

    /// Asks any replica of a stream; the answers come on their own.
    async fn ask_any(
        &self,
        stream: &str,
        asked: &Value,
    ) -> Result<async_nats::Subscriber, StoreError> {
        let inbox = self.client.new_inbox();
        let replies = in_time(self.client.subscribe(inbox.clone())).await?.map_err(unavailable)?;
        let api = format!("$JS.API.DIRECT.GET.{stream}");
        let asked = Bytes::from(asked.to_string());
        let sent = in_time(self.client.publish_with_reply(api, inbox, asked)).await?;
        sent.map_err(unavailable)?;
        Ok(replies)
    }

    /// The first message of a subject from a sequence on, as the stream's leader has it.
    pub(super) async fn next(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredMessage>, StoreError> {
        patiently!(self.next_once(stream, subject, from))
    }

    async fn next_once(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredMessage>, StoreError> {
        let handle = self.reads.get_stream_no_info(stream).await.map_err(unavailable)?;
        let asked = handle.raw_message_builder().sequence(from).next_by_subject(subject);
        found_or_none(in_time(asked.send()).await?)
    }

    /// Messages of a subject from a sequence on, as any replica has them: it may be a moment
    /// behind, but what it gives has no holes. At most so many, and about so many bytes.
    pub(super) async fn page(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Page, StoreError> {
        patiently!(self.page_once(stream, subject, from, (limit, bytes_max)))
    }

    async fn page_once(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        (limit, bytes_max): (usize, usize),
    ) -> Result<Page, StoreError> {
        let asked = json!({
            "seq": from, "next_by_subj": subject, "batch": limit, "max_bytes": bytes_max,
        });
        let _place = self.place_to_read().await?;
        let mut replies = self.ask_any(stream, &asked).await?;
        let mut page = Page::default();
        loop {
            let reply = next_reply(&mut replies).await?;
            match reply.status {
                None => {
                    check_follows(&reply, &page)?;
                    page.messages.push(from_page(reply)?);
                }
                Some(StatusCode::NOT_FOUND) if page.messages.is_empty() => return Ok(page),
                Some(status) if status.as_u16() == 204 => {
                    check_follows(&reply, &page)?;
                    page.pending = number(&reply, "Nats-Num-Pending")?;
                    return Ok(page);
                }
                Some(status) => return Err(unavailable(format!("status {status} of a page"))),
            }
        }
    }

    /// Stores all or none, in their order; all are of one stream.
    pub(super) async fn write(&self, mut writes: Vec<Write>) -> Written {
        let last = writes.pop().expect("there is something to write");
        let id = format!("{:032x}", fastrand::u128(..));
        let batch = (!writes.is_empty()).then_some((id, writes.len() + 1));
        for (number, write) in (1..).zip(writes) {
            let (id, _) = batch.as_ref().expect("it has several messages");
            let headers = headers(&write, Some((id, number)));
            let sent = self.client.publish_with_headers(write.subject, headers, write.value);
            // Where the last is not sent, none is stored.
            match in_time(sent).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Written::NotSent(error.to_string()),
                Err(error) => return Written::NotSent(error.to_string()),
            }
            // What a crash leaves behind is to be a message that was sent.
            #[cfg(feature = "failpoints")]
            let _ = self.client.flush().await;
            crash_point!("batch-begun");
        }
        let mut headers = headers(&last, batch.as_ref().map(|(id, count)| (&**id, *count)));
        if batch.is_some() {
            headers.insert("Nats-Batch-Commit", "1");
        }
        let request = Request::new().headers(headers).payload(last.value);
        self.send(last.subject, request).await
    }

    /// Writes a message that says nothing, after all that is there; tells its sequence.
    pub(super) async fn mark(&self, subject: &str) -> Result<u64, StoreError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        match self.send(subject.to_owned(), Request::new().headers(headers)).await {
            Written::Stored(sequence) => Ok(sequence),
            other => Err(unavailable(format!("{subject} could not be written: {other:?}"))),
        }
    }

    /// The same, if another subject of the stream has no message; tells whether that is so.
    pub(super) async fn mark_without(
        &self,
        subject: &str,
        without: &str,
    ) -> Result<bool, StoreError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", without);
        match self.send(subject.to_owned(), Request::new().headers(headers)).await {
            Written::Stored(_) => Ok(true),
            Written::Conflict => Ok(false),
            other => Err(unavailable(format!("{subject} could not be written: {other:?}"))),
        }
    }

    async fn send(&self, subject: String, request: Request) -> Written {
        let (heard, written) = match in_time(self.client.send_request(subject, request)).await {
            Ok(Ok(reply)) => match said(&reply) {
                written @ Written::Stored(_) => (Heard::Stored, written),
                written @ Written::Unknown(_) => (Heard::Refused, written),
                written => (Heard::Answer, written),
            },
            Ok(Err(error)) => match error.kind() {
                RequestErrorKind::NoResponders => {
                    (Heard::NoLeader, Written::NotSent(error.to_string()))
                }
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                    (Heard::Answer, Written::NotSent(error.to_string()))
                }
                RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                    (Heard::Silence, Written::Unknown(error.to_string()))
                }
            },
            Err(error) => (Heard::Silence, Written::Unknown(error.to_string())),
        };
        self.heard(heard);
        if let (Heard::Refused, Written::Unknown(refusal)) = (heard, &written)
            && self.reach.may_tell_of_refusal(Instant::now())
        {
            tracing::warn!(refusal, "JetStream refuses to store something");
        }
        written
    }

    /// Removes the messages of a subject through a sequence; tells how many those were.
    pub(super) async fn purge(
        &self,
        stream: &str,
        subject: &str,
        through: u64,
    ) -> Result<u64, StoreError> {
        patiently!(self.purge_once(stream, subject, through))
    }

    async fn purge_once(
        &self,
        stream: &str,
        subject: &str,
        through: u64,
    ) -> Result<u64, StoreError> {
        let stream = self.stream(stream).await?;
        let purge = stream.purge().filter(subject).sequence(through + 1);
        match in_time(purge.into_future()).await? {
            Ok(purged) => Ok(purged.purged),
            Err(error) => match error.kind() {
                // What passes (there is no leader just now) has this code.
                PurgeErrorKind::JetStream(error) if error.code() != 503 => {
                    Err(StoreError::Failed(error.to_string()))
                }
                _ => Err(unavailable(error)),
            },
        }
    }

    /// Removes one message; tells whether it did. Where not, it was not there, or could not be.
    pub(super) async fn delete(&self, stream: &str, sequence: u64) -> Result<bool, StoreError> {
        patiently!(self.delete_once(stream, sequence))
    }

    async fn delete_once(&self, stream: &str, sequence: u64) -> Result<bool, StoreError> {
        let api = format!("STREAM.MSG.DELETE.{stream}");
        let asked = json!({ "seq": sequence });
        let answer = in_time(self.context.request::<_, _, Value>(api, &asked)).await?;
        let answer = answer.map_err(unavailable)?;
        match answer["error"]["err_code"].as_u64() {
            None => Ok(true),
            Some(10043 | 10037 | 10057) => Ok(false),
            Some(code) => Err(unavailable(format!("code {code}: {}", answer["error"]))),
        }
    }

    /// How many messages a stream has of each subject that fits, and its last sequence; the
    /// leader's words.
    pub(super) async fn counts(
        &self,
        stream: &str,
        subjects: &str,
    ) -> Result<(Vec<(String, u64)>, u64), StoreError> {
        patiently!(self.counts_once(stream, subjects))
    }

    /// The same, asked once.
    pub(super) async fn counts_once(
        &self,
        stream: &str,
        subjects: &str,
    ) -> Result<(Vec<(String, u64)>, u64), StoreError> {
        let handle = self.stream(stream).await?;
        let counted = in_time(handle.info_with_subjects(subjects)).await?;
        let mut counted = counted.map_err(unavailable)?;
        let last_sequence = counted.info.state.last_sequence;
        let mut counts = Vec::new();
        while let Some(count) = in_time(counted.next()).await? {
            let (subject, count) = count.map_err(unavailable)?;
            counts.push((subject, count as u64));
        }
        Ok((counts, last_sequence))
    }

    /// What is said on a subject from now on.
    pub(super) async fn listen(
        &self,
        subject: String,
    ) -> Result<async_nats::Subscriber, StoreError> {
        let listening = in_time(self.client.subscribe(subject)).await?.map_err(unavailable)?;
        // Told to the server before this returns.
        let flushed = timeout(READ_TIME_MAX, self.client.flush()).await;
        flushed.map_err(unavailable)?.map_err(unavailable)?;
        Ok(listening)
    }

    /// Says something to whoever listens.
    pub(super) async fn say(&self, subject: String, value: Bytes) -> Result<(), StoreError> {
        in_time(self.client.publish(subject, value)).await?.map_err(unavailable)
    }
}

/// The connection's own queue has no time of its own: it may be full for as long as nothing can be
/// sent.
async fn in_time<T>(asked: impl Future<Output = T>) -> Result<T, StoreError> {
    const TIME_MAX: Duration = Duration::from_secs(3);
    timeout(TIME_MAX, asked).await.map_err(|_| unavailable("there was no answer in time"))
}

fn found_or_none(
    found: Result<StreamMessage, async_nats::jetstream::stream::RawMessageError>,
) -> Result<Option<StoredMessage>, StoreError> {
    match found {
        Ok(message) => Ok(Some(message.into())),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            _ => Err(unavailable(error)),
        },
    }
}

fn headers(write: &Write, batch: Option<(&str, usize)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some((id, number)) = batch {
        headers.insert("Nats-Batch-Id", id);
        headers.insert("Nats-Batch-Sequence", number.to_string());
    }
    if let Some(sequence) = write.replaces {
        headers.insert("Nats-Rollup", "sub");
        headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
    }
    headers
}

/// What JetStream answered to a write.
fn said(reply: &Message) -> Written {
    let answer: Value = serde_json::from_slice(&reply.payload).unwrap_or_default();
    match (answer["error"]["err_code"].as_u64(), answer["seq"].as_u64()) {
        (None, Some(sequence)) if sequence > 0 => Written::Stored(sequence),
        (Some(WRONG_SEQUENCE), _) => Written::Conflict,
        _ => Written::Unknown(answer.to_string()),
    }
}

/// The next of several answers.
async fn next_reply(replies: &mut async_nats::Subscriber) -> Result<Message, StoreError> {
    let reply = timeout(READ_TIME_MAX, replies.next()).await;
    let reply = reply.map_err(|_| unavailable("an answer did not come in time"))?;
    reply.ok_or_else(|| unavailable("the connection ended"))
}

/// Each reply of a page names the sequence of the one before: none was lost on its way.
fn check_follows(reply: &Message, page: &Page) -> Result<(), StoreError> {
    let before = page.messages.last().map_or(0, |last| last.sequence);
    match number(reply, "Nats-Last-Sequence")? == before {
        true => Ok(()),
        false => Err(unavailable("a part of a page was lost")),
    }
}

fn from_page(reply: Message) -> Result<StoredMessage, StoreError> {
    let sequence = number(&reply, "Nats-Sequence")?;
    let headers = reply.headers.as_ref();
    let subject = headers.and_then(|headers| headers.get("Nats-Subject"));
    let subject = subject.ok_or_else(|| unavailable("a message of a page has no subject"))?;
    Ok(StoredMessage { subject: subject.as_str().to_owned(), sequence, value: reply.payload })
}

/// The number that a header of JetStream has.
pub(super) fn number(message: &Message, header: &str) -> Result<u64, StoreError> {
    let value = message.headers.as_ref().and_then(|headers| headers.get(header));
    let number = value.and_then(|value| value.as_str().parse().ok());
    number.ok_or_else(|| unavailable(format!("a message has no `{header}`")))
}
