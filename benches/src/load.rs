//! Callers and how fast they get their answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// Somebody who asks one thing at a time.
pub trait Caller: Send + 'static {
    fn call(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// What a load gave.
pub struct Measured {
    /// Answers a second.
    pub rate: f64,
    /// From question to answer, in microseconds.
    pub latency: Histogram<u64>,
}

/// Before this, a run warms up.
const MEASURING: u8 = 1;
const DONE: u8 = 2;

/// Where a run is; callers look at it after each answer.
#[derive(Clone, Default)]
pub struct Phase(Arc<AtomicU8>);

impl Phase {
    pub fn is_measuring(&self) -> bool {
        self.0.load(Ordering::Relaxed) == MEASURING
    }

    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::Relaxed) == DONE
    }

    /// Lets a load run for `time` after a warm-up; gives the time that was measured.
    pub async fn run(&self, time: Duration) -> Duration {
        tokio::time::sleep(time / 4).await;
        let start = Instant::now();
        self.0.store(MEASURING, Ordering::Relaxed);
        tokio::time::sleep(time).await;
        self.0.store(DONE, Ordering::Relaxed);
        start.elapsed()
    }
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("sound bounds")
}

pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Every caller asks again as soon as it has its answer.
pub async fn closed_loop<C: Caller>(callers: Vec<C>, time: Duration) -> Result<Measured> {
    let phase = Phase::default();
    let mut tasks = JoinSet::new();
    for mut caller in callers {
        let phase = phase.clone();
        tasks.spawn(async move {
            let mut latency = histogram();
            let mut asked = Instant::now();
            while !phase.is_done() {
                caller.call().await?;
                let answered = Instant::now();
                if phase.is_measuring() {
                    latency.saturating_record(micros(answered - asked));
                }
                asked = answered;
            }
            Ok::<_, Error>(latency)
        });
    }
    let measured = phase.run(time).await;
    let mut latency = histogram();
    while let Some(done) = tasks.join_next().await {
        latency.add(done??)?;
    }
    Ok(Measured { rate: latency.len() as f64 / measured.as_secs_f64(), latency })
}

/// Questions come at a fixed rate, whether or not earlier ones are answered. The time of one that
/// had to wait for an earlier answer of its caller counts from when it was due, so that a stall is
/// seen by every question it kept waiting; of the others, from when the timer let it go.
pub async fn open_loop<C: Caller>(
    callers: Vec<C>,
    rate: f64,
    time: Duration,
) -> Result<Histogram<u64>> {
    let interval = Duration::from_secs_f64(callers.len() as f64 / rate);
    let start = Instant::now() + Duration::from_millis(50);
    let mut tasks = JoinSet::new();
    let count = callers.len() as f64;
    for (index, mut caller) in callers.into_iter().enumerate() {
        let mut due = start + interval.mul_f64(index as f64 / count);
        tasks.spawn(async move {
            let mut latency = histogram();
            while due < start + time {
                let is_late = Instant::now() > due;
                tokio::time::sleep_until(due.into()).await;
                let asked = if is_late { due } else { Instant::now() };
                caller.call().await?;
                if due > start + time / 4 {
                    latency.saturating_record(micros(asked.elapsed()));
                }
                due += interval;
            }
            Ok::<_, Error>(latency)
        });
    }
    let mut latency = histogram();
    while let Some(done) = tasks.join_next().await {
        latency.add(done??)?;
    }
    Ok(latency)
}
