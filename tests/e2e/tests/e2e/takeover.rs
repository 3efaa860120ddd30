//! Several gateways, one of them active: however it ends, another goes on and nothing is lost or reordered.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_nats::jetstream::{self, message::PublishMessage};
use futures_util::future::{join, join_all};
use serde_json::{Map, Value, json};
use usersync_core::subjects::{INTAKE, USER_EVENTS};
use usersync_stack::{Service, Signal, eventually};

use crate::intake::Intake;
use crate::support::SOON;

const USERS: u64 = 50;
/// Rounds of a burst: enough that a gateway is in the middle of it when it is hit.
const BURST: usize = 30;
/// The pause between rounds of steady load: 50 events every 50 ms.
const PACE: Duration = Duration::from_millis(50);
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn nothing_is_lost_when_the_active_gateway_is_killed() {
    let intake = Intake::with_gateways(2).await;
    let mut load = Load::on(&intake).await;
    let first = active(&intake, &[0, 1]).await;
    load.burst_until(intake.stack.gateways[first].kill9()).await;
    let second = load.during(active(&intake, &[1 - first])).await;
    assert_ne!(first, second);
    load.arrived(&intake).await;
}

#[tokio::test]
async fn nothing_is_lost_when_two_of_three_gateways_are_killed() {
    let intake = Intake::with_gateways(3).await;
    let mut load = Load::on(&intake).await;
    let mut alive = vec![0, 1, 2];
    while alive.len() > 1 {
        let chosen = active(&intake, &alive).await;
        load.burst_until(intake.stack.gateways[chosen].kill9())
            .await;
        alive.retain(|&gateway| gateway != chosen);
        load.during(active(&intake, &alive)).await;
    }
    load.arrived(&intake).await;
}

#[tokio::test]
async fn a_gateway_that_was_stopped_wakes_up_and_spoils_nothing() {
    let intake = Intake::with_gateways(2).await;
    let mut load = Load::on(&intake).await;
    let first = active(&intake, &[0, 1]).await;
    let stopped = &intake.stack.gateways[first];
    let stop = async { stopped.signal(Signal::SIGSTOP).unwrap() };
    load.burst_until(stop).await;
    let second = load.during(active(&intake, &[1 - first])).await;
    assert_ne!(first, second);

    // It still has events in hand that the other has merged by now.
    stopped.signal(Signal::SIGCONT).unwrap();
    let only = load.during(active(&intake, &[0, 1])).await;
    assert_eq!(only, second, "the one that was stopped is active again");
    load.arrived(&intake).await;

    // And it can take over again.
    intake.stack.gateways[second].kill9().await;
    assert_eq!(load.during(active(&intake, &[first])).await, first);
    load.arrived(&intake).await;
}

/// It keeps states at hand; one of them is a tombstone that the other gateway has replaced.
#[tokio::test]
async fn a_gateway_that_is_active_again_drops_nothing_because_of_what_it_remembers() {
    let intake = Intake::with_gateways(2).await;
    let event = |name: &str| json!({"user_id": 7, "username": name});
    intake.publish_json("user.deleted", event("gone")).await;
    let first = active(&intake, &[0, 1]).await;
    intake.all_taken_in().await;

    let (remembers, other) = (
        &intake.stack.gateways[first],
        &intake.stack.gateways[1 - first],
    );
    remembers.signal(Signal::SIGSTOP).unwrap();
    intake.publish_json("user.created", event("back")).await;
    active(&intake, &[1 - first]).await;
    intake.all_taken_in().await;

    remembers.signal(Signal::SIGCONT).unwrap();
    other.stop(GRACE).await.unwrap();
    intake.publish_json("user.updated", event("renamed")).await;
    active(&intake, &[first]).await;
    intake.all_taken_in().await;
    let state = intake.state("7").await;
    assert_eq!(state.username.as_deref(), Some("renamed"));
}

#[tokio::test]
async fn a_gateway_that_is_asked_to_stop_hands_over_at_once() {
    let intake = Intake::with_gateways(2).await;
    let mut load = Load::on(&intake).await;
    let first = active(&intake, &[0, 1]).await;
    load.rounds(10).await;
    let asked = Instant::now();
    let handed_over = load
        .during(async {
            let stopped = async { intake.stack.gateways[first].stop(GRACE).await.unwrap() };
            let successor = async {
                active(&intake, &[1 - first]).await;
                asked.elapsed()
            };
            join(stopped, successor).await.1
        })
        .await;
    // Whoever has to wait for the pin to time out needs 3 s.
    assert!(
        handed_over < Duration::from_millis(2_000),
        "{handed_over:?}"
    );
    load.rounds(10).await;
    load.arrived(&intake).await;
}

#[tokio::test]
async fn gateways_may_be_replaced_one_after_the_other_under_load() {
    let mut intake = Intake::with_gateways(2).await;
    let mut load = Load::on(&intake).await;
    for gateway in [0, 1, 0] {
        load.rounds(4).await;
        intake.stack.gateways[gateway].stop(GRACE).await.unwrap();
        let restarted = &mut intake.stack.gateways[gateway];
        load.during(async { restarted.restart().await.unwrap() })
            .await;
    }
    load.arrived(&intake).await;
}

#[tokio::test]
async fn nothing_is_lost_when_the_nats_server_is_killed_and_comes_back() {
    let mut intake = Intake::with_gateways(2).await;
    let mut load = Load::on(&intake).await;
    active(&intake, &[0, 1]).await;
    // Killed with SIGKILL, then started again with what it has on disk.
    let nats = &mut intake.stack.nats;
    load.burst_until(async { nats.restart().await.unwrap() })
        .await;
    active(&intake, &[0, 1]).await;
    load.rounds(10).await;
    load.arrived(&intake).await;
    for gateway in &intake.stack.gateways {
        gateway.until_ready().await.unwrap();
    }
}

#[tokio::test]
async fn one_gateway_is_active_and_all_of_them_serve_http() {
    let intake = Intake::with_gateways(3).await;
    for (number, gateway) in intake.stack.gateways.iter().enumerate() {
        let url = format!("{}/v1/events", gateway.url());
        let event = json!({"type": "user.created", "user_id": number});
        let request = usersync_stack::http::client().post(url).json(&event);
        assert_eq!(
            request.send().await.unwrap().status(),
            202,
            "{url}",
            url = gateway.url()
        );
    }
    active(&intake, &[0, 1, 2]).await;
    intake.equals_the_reference().await;
    assert_eq!(intake.states().await.len(), 3);
    assert_eq!(intake.counted("changed").await, 3.0, "each was merged once");
}

/// Waits until exactly one of these gateways is active; which one.
async fn active(intake: &Intake, among: &[usize]) -> usize {
    let is_active = async |gateway: &Service| -> Result<bool> {
        Ok(gateway.metrics().await?.sum("usersync_intake_active", &[]) == 1.0)
    };
    eventually(SOON, async || {
        let mut found = Vec::new();
        for &number in among {
            if is_active(&intake.stack.gateways[number]).await? {
                found.push(number);
            }
        }
        ensure!(found.len() == 1, "of {among:?} these are active: {found:?}");
        Ok(found[0])
    })
    .await
    .unwrap()
}

/// Publishes partial updates of 50 users in rounds of one each, and knows what must come out.
///
/// Even rounds set a member of their own, so one that is lost is missing. Odd rounds set the username and the
/// status, so one that is applied too late shows. Every tenth round has an invalid event as well.
struct Load {
    jetstream: jetstream::Context,
    round: usize,
}

impl Load {
    /// Begins with one round: nobody is chosen before there is an event.
    async fn on(intake: &Intake) -> Self {
        let mut load = Self {
            jetstream: intake.jetstream.clone(),
            round: 0,
        };
        load.round().await;
        load
    }

    /// Publishes one event of every user, each until it is stored.
    async fn round(&mut self) {
        let round = self.round;
        self.round += 1;
        let events = (0..USERS).map(|user| match round % 2 {
            0 => (
                "user.updated",
                json!({"user_id": user, "data": {member(round): round}}).to_string(),
            ),
            _ if user % 2 == 0 => (
                "user.updated",
                json!({"user_id": user, "username": name(round)}).to_string(),
            ),
            _ => (
                "user.status_changed",
                json!({"user_id": user, "status": name(round)}).to_string(),
            ),
        });
        let invalid = (round % 10 == 9).then(|| ("user.updated", format!("{{\"round\": {round},")));
        let jetstream = &self.jetstream;
        let stored = events.chain(invalid).enumerate();
        join_all(stored.map(|(number, (subject, body))| async move {
            let id = format!("{round}-{number}");
            while !stored_once(jetstream, subject, &body, &id).await {
                tokio::time::sleep(PACE).await;
            }
        }))
        .await;
    }

    /// That many rounds, at the pace of steady load.
    async fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round().await;
            tokio::time::sleep(PACE).await;
        }
    }

    /// Steady load for as long as `what` takes.
    async fn during<T>(&mut self, what: impl Future<Output = T>) -> T {
        let done = Cell::new(false);
        let what = async {
            let value = what.await;
            done.set(true);
            value
        };
        let load = async {
            while !done.get() {
                self.rounds(1).await;
            }
        };
        join(what, load).await.0
    }

    /// A burst as fast as it goes; `blow` falls in the middle of it, while events are in a gateway's hands.
    async fn burst_until(&mut self, blow: impl Future<Output = ()>) {
        self.rounds(4).await;
        let end = self.round + BURST;
        let events = self.jetstream.get_stream_no_info(USER_EVENTS).await;
        let events = events.unwrap();
        let blow = async {
            eventually(SOON, async || {
                let in_hand = events.consumer_info(INTAKE).await?.num_ack_pending;
                ensure!(in_hand >= 20, "{in_hand} events in hand");
                Ok(())
            })
            .await
            .unwrap();
            blow.await;
        };
        let struck = Cell::new(false);
        let blow = async {
            blow.await;
            struck.set(true);
        };
        let load = async {
            while !struck.get() {
                self.round().await;
            }
        };
        join(blow, load).await;
        // What the dead one leaves behind is followed by more of the same users.
        while self.round < end {
            self.round().await;
        }
    }

    /// Everything published has arrived, once and in order.
    async fn arrived(&mut self, intake: &Intake) {
        intake.equals_the_reference().await;
        let members: Map<String, Value> = (0..self.round)
            .step_by(2)
            .map(|round| (member(round), round.into()))
            .collect();
        let newest = (0..self.round).rev().find(|round| round % 2 == 1);
        let newest = newest.map(name);
        let states: BTreeMap<_, _> = intake.states().await;
        assert_eq!(states.len() as u64, USERS);
        for (user, state) in states {
            let mut data = state.data;
            data.as_object_mut().unwrap().remove("status");
            assert_eq!(data, Value::Object(members.clone()), "user {user}");
            let told = state.username.or(state.status);
            assert_eq!(told, newest, "user {user}");
        }
    }
}

fn member(round: usize) -> String {
    format!("m{round}")
}

fn name(round: usize) -> String {
    format!("n{round}")
}

/// Whether JetStream confirmed it. Sent again with the same id, it is stored once.
async fn stored_once(
    jetstream: &jetstream::Context,
    subject: &'static str,
    body: &str,
    id: &str,
) -> bool {
    let message = PublishMessage::build()
        .payload(body.to_owned().into())
        .message_id(id);
    match jetstream.send_publish(subject, message).await {
        Ok(sent) => sent.await.is_ok(),
        Err(_) => false,
    }
}
