//! A full USER_STATE, and what it takes for a real worker or a bare loop to empty it.

use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::{consumer::pull, message::PublishMessage, stream::Stream};
use serde_json::Value;
use usersync_core::user_id::UserId;
use usersync_core::{streams, subjects, target::TargetConfig};
use usersync_stack::{Process, Service, http};

use crate::drain::{Drain, Drained};
use crate::limits::READY;
use crate::preload::publish_all;
use crate::quiet::alone;
use crate::rig::{Rig, stop};
use crate::users;

const READY_WITHIN: Duration = Duration::from_secs(20);

/// USER_STATE with one state of each user from 0 on, in order, and nothing else.
pub(crate) struct States<'a> {
    rig: &'a Rig,
    stream: Stream,
    target: TargetConfig,
    users: u64,
}

/// Stores the states of the users from 0 on.
///
/// # Errors
/// When not all are stored.
pub(crate) async fn fill(rig: &Rig, users: u64) -> Result<()> {
    let _alone = alone().await?;
    let states = (0..users).map(|user| {
        let message = PublishMessage::build().payload(users::state(user)?);
        Ok((subjects::state(&UserId::from(user)), message))
    });
    publish_all(&rig.jetstream, states).await
}

impl<'a> States<'a> {
    /// Fills the stream, for a target with this URL and these other keys in its entry.
    ///
    /// # Errors
    /// When not all is stored, or the entry is none of a target.
    pub(crate) async fn of(rig: &'a Rig, users: u64, url: &str, settings: Value) -> Result<Self> {
        let target = rig.target("bench", url, &settings).await?;
        fill(rig, users).await?;
        let stream = rig.stream(subjects::USER_STATE).await?;
        let last = stream.cached_info().state.last_sequence;
        ensure!(last == users, "{users} states end at sequence {last}");
        Ok(Self {
            rig,
            stream,
            target,
            users,
        })
    }

    /// The same states for another target.
    ///
    /// # Errors
    /// When the entry is none of a target.
    pub(crate) async fn for_another(&self, name: &str, url: &str, settings: Value) -> Result<Self> {
        Ok(Self {
            rig: self.rig,
            stream: self.stream.clone(),
            target: self.rig.target(name, url, &settings).await?,
            users: self.users,
        })
    }

    /// Has a fresh worker deliver every state.
    ///
    /// # Errors
    /// When it doesn't, or doesn't end cleanly.
    pub(crate) async fn worker(&self) -> Result<Drained> {
        let worker = self.rig.worker(&self.target)?;
        let drained = self.drained_by(&worker).await?;
        let delivered = worker.metrics().await?;
        let delivered = delivered.sum("usersync_deliveries_total", &[("outcome", "delivered")]);
        ensure!(
            delivered == self.users as f64,
            "the worker counts {delivered} deliveries of {} states",
            self.users
        );
        stop(worker).await?;
        Ok(drained)
    }

    /// The same with one that records no metrics and logs nothing.
    ///
    /// # Errors
    /// When it doesn't, or doesn't end cleanly.
    pub(crate) async fn unobserved_worker(&self) -> Result<Drained> {
        let worker = self.rig.unobserved_worker(&self.target)?;
        let drained = self.drained_by(&worker).await?;
        stop(worker).await?;
        Ok(drained)
    }

    async fn drained_by(&self, worker: &Service) -> Result<Drained> {
        until_it_waits(worker, &self.target).await?;
        let consumer = streams::state_consumer(&self.target);
        self.drained(worker.process(), consumer).await
    }

    /// Has a bare loop (see `limits`) take every state.
    ///
    /// # Errors
    /// When it doesn't.
    pub(crate) async fn bare(&self, name: &str, args: &[&str]) -> Result<Drained> {
        let process = bare_loop(self.rig, name, subjects::USER_STATE, args).await?;
        let consumer = pull::Config {
            durable_name: Some(name.to_owned()),
            ..streams::state_consumer(&self.target)
        };
        self.drained(&process, consumer).await
    }

    /// Creates the consumer that `process` waits for, and watches it being emptied.
    async fn drained(&self, process: &Process, config: pull::Config) -> Result<Drained> {
        let name = config.durable_name.clone().unwrap_or_default();
        let drain = Drain::of(&self.stream, &name, process)?;
        self.rig
            .fresh_consumer(subjects::USER_STATE, config)
            .await?;
        drain.watch(self.users, self.users).await
    }
}

/// Starts a bare loop on consumer `name` of `stream`, and waits until it looks for that consumer.
///
/// # Errors
/// When it ends before.
pub(crate) async fn bare_loop(
    rig: &Rig,
    name: &str,
    stream: &str,
    args: &[&str],
) -> Result<Process> {
    let nats = rig.nats_url();
    let (kind, more) = args.split_first().unwrap_or((&"ack", &[]));
    let common = [
        "limit",
        "--nats",
        &nats,
        kind,
        "--stream",
        stream,
        "--consumer",
        name,
    ];
    let process = rig.role(name, common.iter().chain(more))?;
    let waits = async || {
        let log = process.log_tail();
        ensure!(log.ends_with(READY), "it says {log:?}");
        Ok(())
    };
    process.until_ready(READY_WITHIN, waits).await?;
    Ok(process)
}

/// Waits until `worker` has opened everything but its consumer of states, which isn't there yet.
async fn until_it_waits(worker: &Service, target: &TargetConfig) -> Result<()> {
    let client = http::client();
    let url = format!("{}/readyz", worker.url());
    let part = format!("{} {}", subjects::USER_REPAIR, target.name);
    let waits = async || {
        let answer: serde_json::Value = client.get(&url).send().await?.json().await?;
        ensure!(answer["parts"][&part] == "up", "{url} says {answer}");
        Ok(())
    };
    worker.process().until_ready(READY_WITHIN, waits).await
}
