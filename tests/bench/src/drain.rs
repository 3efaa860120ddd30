//! Times how long a process takes to empty a durable consumer: the same way for ours and for the bare loops.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream::{consumer::Info, stream::Stream};
use usersync_stack::Process;

use crate::report::number;
use crate::usage;

/// How often the consumer is looked at: a hundredth of the shortest run at most.
const LOOK: Duration = Duration::from_millis(2);
/// Nothing that works takes longer than this per message, plus [`PATIENCE`].
const SLOWEST: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(30);

/// What draining took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    /// Messages per second, from the last look that saw nothing acknowledged to the one that saw all.
    pub rate: f64,
    /// CPU seconds of the process per 1,000 messages.
    pub cpu: f64,
    /// The largest resident set of the process, in MB.
    pub rss_mb: f64,
}

impl Display for Drained {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (rate, cpu, rss) = (number(self.rate), number(self.cpu), number(self.rss_mb));
        write!(f, "{rate}/s, {cpu} CPU s per 1,000, {rss} MB")
    }
}

/// Something about to drain a consumer. Made before the consumer has anything, or before it exists.
pub(crate) struct Drain<'a> {
    stream: &'a Stream,
    consumer: &'a str,
    process: &'a Process,
    cpu_before: f64,
}

impl<'a> Drain<'a> {
    /// Notes what `process` has used so far.
    ///
    /// # Errors
    /// When the process has ended.
    pub(crate) fn of(stream: &'a Stream, consumer: &'a str, process: &'a Process) -> Result<Self> {
        Ok(Self {
            stream,
            consumer,
            process,
            cpu_before: usage::cpu_seconds(process.pid())?,
        })
    }

    /// Waits until the `messages` that end with stream sequence `last`, which have no gap, are acknowledged,
    /// each delivered once.
    ///
    /// # Errors
    /// When the process ends, is too slow, or got a message twice.
    pub(crate) async fn watch(self, messages: u64, last: u64) -> Result<Drained> {
        let deadline = PATIENCE + SLOWEST * u32::try_from(messages).unwrap_or(u32::MAX);
        tokio::select! {
            drained = tokio::time::timeout(deadline, self.until_empty(messages, last)) => {
                drained.map_err(|_| self.stuck(deadline))?
            }
            status = self.process.ended() => {
                bail!("{} ended ({status:?}):\n{}", self.process.name(), self.process.log_tail())
            }
        }
    }

    async fn until_empty(&self, messages: u64, last: u64) -> Result<Drained> {
        let mut began = Instant::now();
        let mut redelivered = 0;
        let seconds = loop {
            let info = self.look().await?;
            redelivered = redelivered.max(info.num_redelivered);
            let handed_out = (info.delivered.stream_sequence + messages).saturating_sub(last);
            let acknowledged = handed_out.saturating_sub(info.num_ack_pending as u64);
            if acknowledged == 0 {
                began = Instant::now();
            }
            if info.ack_floor.stream_sequence >= last {
                break began.elapsed().as_secs_f64();
            }
            tokio::time::sleep(LOOK).await;
        };
        ensure!(
            redelivered == 0,
            "{} got {redelivered} messages more than once; see {}",
            self.process.name(),
            self.process.log().display()
        );
        let cpu = usage::cpu_seconds(self.process.pid())? - self.cpu_before;
        Ok(Drained {
            rate: messages as f64 / seconds,
            cpu: cpu * 1_000.0 / messages as f64,
            rss_mb: usage::peak_rss_mb(self.process.pid())?,
        })
    }

    async fn look(&self) -> Result<Info> {
        let info = self.stream.consumer_info(self.consumer).await;
        info.with_context(|| format!("asking for consumer {}", self.consumer))
    }

    fn stuck(&self, deadline: Duration) -> anyhow::Error {
        anyhow::anyhow!(
            "{} did not finish within {deadline:?}; the end of its log:\n{}",
            self.process.name(),
            self.process.log_tail()
        )
    }
}
