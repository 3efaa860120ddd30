//! A real gateway merges a preloaded USER_EVENTS into states. The limit: a bare loop that pulls the same
//! events, publishes each again under its user's subject and acknowledges.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::PublishMessage;
use usersync_core::{streams, subjects};

use super::Contest;
use crate::drain::{Drain, Drained};
use crate::options::Options;
use crate::preload::publish_all;
use crate::report::{Aim, Row};
use crate::rig::{Rig, stop};
use crate::{states, users};

const KNOWN_USERS: u64 = 5_000;
/// What the bare loop reads and writes: streams like USER_EVENTS and USER_STATE.
const BARE_EVENTS: &str = "BARE_EVENTS";
const BARE_SUBJECT: &str = "bare.event";
const BARE_STATE: &str = "BARE_STATE";

/// Many events of few users.
pub(super) async fn known(options: &Options, name: &str) -> Result<Vec<Row>> {
    let aim = Aim::AtLeast(40_000.0);
    run(options, name, KNOWN_USERS, options.events(), aim).await
}

/// One event each of many users; the gateway is a new process, so it knows none of them.
pub(super) async fn cold(options: &Options, name: &str) -> Result<Vec<Row>> {
    let users = options.cold_users();
    run(options, name, users, users, Aim::AtLeast(20_000.0)).await
}

async fn run(options: &Options, name: &str, users: u64, events: u64, aim: Aim) -> Result<Vec<Row>> {
    let rig = Rig::start().await?;
    rig.twin(subjects::USER_STATE, BARE_STATE, "bare.state.*")
        .await?;
    rig.twin(subjects::USER_EVENTS, BARE_EVENTS, BARE_SUBJECT)
        .await?;
    states::fill(&rig, users).await?;
    let merge = async || gateway(&rig, users, events).await;
    let republish = async || republish(&rig, users, events).await;
    let contest = Contest::hold(options, name, "pull+publish+ack", merge, republish).await?;
    let [rate, cpu, rss] = contest.rows(name, "events/s");
    Ok(vec![rate.aim(aim), cpu, rss])
}

/// Stores events of every user in turn, in a stream that is otherwise empty; the sequence of the last.
async fn publish(rig: &Rig, stream: &str, subject: &str, users: u64, events: u64) -> Result<u64> {
    let handle = rig.stream(stream).await?;
    handle
        .purge()
        .await
        .context("emptying a stream of events")?;
    let before = handle.cached_info().state.last_sequence;
    let messages = (before..before + events).map(|number| {
        let id = format!("bench-{number}");
        let event = users::event(number % users, Some(&id))?;
        let message = PublishMessage::build().payload(event).message_id(id);
        Ok((subject.to_owned(), message))
    });
    publish_all(&rig.jetstream, messages).await?;
    let last = rig.stream(stream).await?.cached_info().state.last_sequence;
    ensure!(
        last == before + events,
        "{events} events after sequence {before} end at {last}"
    );
    Ok(last)
}

async fn gateway(rig: &Rig, users: u64, events: u64) -> Result<Drained> {
    let last = publish(rig, subjects::USER_EVENTS, "user.updated", users, events).await?;
    let stream = rig.stream(subjects::USER_EVENTS).await?;
    let gateway = rig.gateway()?;
    let drain = Drain::of(&stream, subjects::INTAKE, gateway.process())?;
    let drained = drain.watch(events, last).await?;
    let metrics = gateway.metrics().await?;
    let changed = metrics.sum("usersync_intake_events_total", &[("result", "changed")]);
    ensure!(
        changed == events as f64,
        "the gateway merged {changed} of {events} events"
    );
    stop(gateway).await?;
    Ok(drained)
}

async fn republish(rig: &Rig, users: u64, events: u64) -> Result<Drained> {
    let name = "bare-intake";
    let last = publish(rig, BARE_EVENTS, BARE_SUBJECT, users, events).await?;
    let stream = rig.stream(BARE_EVENTS).await?;
    let args = ["republish", "--prefix", "bare.state."];
    let process = states::bare_loop(rig, name, BARE_EVENTS, &args).await?;
    let drain = Drain::of(&stream, name, &process)?;
    let consumer = pull::Config {
        durable_name: Some(name.to_owned()),
        max_ack_pending: streams::intake_consumer().max_ack_pending,
        ..pull::Config::default()
    };
    rig.fresh_consumer(BARE_EVENTS, consumer).await?;
    let drained = drain.watch(events, last).await?;
    let stored = rig.stream(BARE_STATE).await?.cached_info().state.messages;
    ensure!(
        stored == users,
        "the bare loop stored {stored} of {users} users"
    );
    Ok(drained)
}
