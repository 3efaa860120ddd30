//! `/livez` and `/readyz`: what each binary says while something it needs is away, and that it is ready afterwards.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use usersync_core::subjects::{
    CHECKER, TARGETS_STREAM, USER_CHECK, USER_EVENTS, USER_REPAIR, USER_STATE,
};
use usersync_stack::{Routes, Service, Signal, Stack, eventually, free_port, http};

use crate::{
    database_targets::Database,
    outbox::Main,
    support::{Bus, LATER, Recorder, SOON, answer, only},
};

/// Notices an outage and its end at once.
const HASTY: &str = "retry = { max_deliver = 100, base = \"200ms\", factor = 1.0, cap = \"200ms\" }\n\
                     breaker = { probe = \"100ms\", probe_cap = \"200ms\" }";

/// What is found wrong may have been asked about shortly before.
const SLACK: Duration = Duration::from_secs(1);

/// One binary's own answers.
pub(crate) struct Asked(String);

impl Asked {
    pub(crate) fn of(service: &Service) -> Self {
        Self::at(service.url())
    }

    pub(crate) fn at(url: &str) -> Self {
        Self(url.to_owned())
    }

    async fn readyz(&self) -> Result<(u16, Value)> {
        let answer = http::client().get(format!("{}/readyz", self.0)).send();
        let answer = answer.await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Waits until `part` says `reason` with this status, having been wrong since `began` or later, and is alive.
    pub(crate) async fn until_wrong(
        &self,
        status: u16,
        part: &str,
        reason: &str,
        began: Timestamp,
    ) -> Result<Value> {
        let said = eventually(SOON, async || {
            let (got, said) = self.readyz().await?;
            let why = said["parts"][part].as_str().unwrap_or_default();
            ensure!(got == status && why.contains(reason), "{got}: {said}");
            ensure!(said["ready"] == (status == 200), "{said}");
            Ok(said)
        });
        let said = said
            .await
            .with_context(|| format!("{part} of {}", self.0))?;
        let since = said["down_since"][part].as_str().context("no down_since")?;
        let since: Timestamp = since.parse()?;
        ensure!(
            began - SLACK <= since && since <= Timestamp::now(),
            "{part}: {said}, began {began}"
        );
        let alive = http::client().get(format!("{}/livez", self.0)).send();
        ensure!(alive.await?.status() == 200, "{} is not alive", self.0);
        Ok(said)
    }

    /// Waits until every part is up again.
    pub(crate) async fn until_well(&self) -> Result<()> {
        eventually(LATER, async || {
            let (status, said) = self.readyz().await?;
            let wrong = said["down_since"].as_object().context("no down_since")?;
            ensure!(
                status == 200 && said["ready"] == true && wrong.is_empty(),
                "{said}"
            );
            let mut parts = said["parts"].as_object().context("no parts")?.values();
            ensure!(parts.all(|part| part == "up"), "{said}");
            Ok(())
        })
        .await
    }
}

/// The parts that are wrong.
pub(crate) fn wrong(said: &Value) -> Vec<&str> {
    let wrong = said["down_since"].as_object().into_iter().flatten();
    wrong.map(|(part, _)| part.as_str()).collect()
}

fn gateway(stack: &Stack) -> Asked {
    Asked::of(stack.gateway())
}

fn worker(stack: &Stack, target: &str) -> Asked {
    Asked::of(&stack.workers[target][0])
}

fn scheduler(stack: &Stack) -> Asked {
    Asked::of(&stack.schedulers[0])
}

/// A gateway, a scheduler and a worker for `audit`.
async fn three(audit: &Recorder) -> Result<Stack> {
    let stack = only(audit.target("audit", HASTY)).schedulers(1);
    stack.start().await
}

#[tokio::test]
async fn each_binary_names_nats_while_it_is_killed() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let mut stack = three(&audit).await?;
    let all = [gateway(&stack), worker(&stack, "audit"), scheduler(&stack)];
    for asked in &all {
        asked.until_well().await?;
    }
    let began = Timestamp::now();
    stack.nats.kill9().await;
    for asked in &all {
        asked
            .until_wrong(503, "nats", "connecting to nats://", began)
            .await?;
    }
    stack.nats.restart().await?;
    for asked in &all {
        asked.until_well().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_binary_names_the_streams_that_are_deleted() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let mut stack = three(&audit).await?;
    let bus = Bus::connect(&stack).await?;
    let (gateway, worker, scheduler) =
        (gateway(&stack), worker(&stack, "audit"), scheduler(&stack));
    // Nobody makes them again meanwhile.
    stack.gateways[0].signal(Signal::SIGTERM)?;
    stack.gateways[0].process().wait_exit(SOON).await?;
    let began = Timestamp::now();
    for stream in [USER_REPAIR, USER_CHECK, TARGETS_STREAM] {
        bus.jetstream().delete_stream(stream).await?;
    }
    let gone = "missing; usersync-gateway creates it";
    let bucket = format!("stream {TARGETS_STREAM}");
    for (asked, feed) in [
        (&worker, format!("{USER_REPAIR} audit")),
        (&scheduler, format!("{USER_CHECK} {CHECKER}")),
    ] {
        asked.until_wrong(503, &bucket, gone, began).await?;
        let said = asked
            .until_wrong(503, &feed, "waiting for the consumer", began)
            .await?;
        assert_eq!(wrong(&said), [feed.as_str(), bucket.as_str()], "{said}");
    }
    stack.gateways[0].restart().await?;
    for asked in [&gateway, &worker, &scheduler] {
        asked.until_well().await?;
    }

    let began = Timestamp::now();
    bus.jetstream().delete_stream(TARGETS_STREAM).await?;
    let missing = format!("missing: {TARGETS_STREAM}");
    let said = gateway.until_wrong(503, "streams", &missing, began).await?;
    assert_eq!(wrong(&said), ["streams"], "{said}");
    stack.gateways[0].restart().await?;
    gateway.until_well().await?;

    let began = Timestamp::now();
    bus.jetstream().delete_stream(USER_STATE).await?;
    let missing = format!("missing: {USER_STATE}");
    gateway.until_wrong(503, "streams", &missing, began).await?;
    let states = format!("stream {USER_STATE}");
    scheduler.until_wrong(503, &states, gone, began).await?;
    worker
        .until_wrong(
            503,
            &format!("{USER_STATE} audit"),
            "waiting for the consumer",
            began,
        )
        .await?;
    stack.gateways[0].restart().await?;
    for asked in [&gateway, &worker, &scheduler] {
        asked.until_well().await?;
    }
    // And what they say is so: a change reaches the target.
    bus.publish("user.created", json!({"user_id": 7, "data": {"n": 1}}))
        .await?;
    bus.until_settled("audit").await?;
    assert_eq!(audit.holds(7)["data"]["n"], 1);
    Ok(())
}

#[tokio::test]
async fn what_is_deleted_is_made_again_where_that_loses_nothing() -> Result<()> {
    const STREAMS: [&str; 12] = [
        "USER_ADVISORY",
        "USER_REPAIR",
        "USER_DEAD",
        "USER_REFUSED",
        "USER_RESULT",
        "USER_CHECK",
        "USER_ALERT",
        "KV_user_breakers",
        "KV_user_checks",
        "KV_user_jobs",
        "KV_user_relays",
        "KV_user_workers",
    ];
    let audit = Recorder::start(async |_| answer(200)).await?;
    let stack = three(&audit).await?;
    let bus = Bus::connect(&stack).await?;
    let (gateway, worker, scheduler) =
        (gateway(&stack), worker(&stack, "audit"), scheduler(&stack));
    for asked in [&gateway, &worker, &scheduler] {
        asked.until_well().await?;
    }
    bus.publish("user.created", json!({"user_id": 7, "data": {"n": 1}}))
        .await?;
    bus.until_settled("audit").await?;
    let client = usersync_stack::connect(&stack.nats.test_url()).await?;
    let mut alerts = client.subscribe("user.alert.streams.*").await?;
    client.flush().await?;
    let told = Arc::new(Mutex::new(Vec::<Value>::new()));
    let hear = {
        let told = told.clone();
        async move {
            while let Some(message) = alerts.next().await {
                let alert = serde_json::from_slice(&message.payload).unwrap_or_default();
                told.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(alert);
            }
        }
    };
    let _hearing = AbortOnDropHandle::new(tokio::spawn(hear));
    let is_told = |what: &str, target: &str| {
        let told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let tells = |alert: &Value| {
            let summary = alert["summary"].as_str().unwrap_or_default();
            alert["target"] == target && summary.contains(what)
        };
        ensure!(told.iter().any(tells), "no alert tells of {what}: {told:?}");
        Ok(())
    };

    for stream in STREAMS {
        bus.jetstream().delete_stream(stream).await?;
    }
    eventually(SOON, async || {
        // Who sends events is served meanwhile.
        let (status, said) = gateway.readyz().await?;
        assert_eq!(status, 200, "{said}");
        for stream in STREAMS {
            bus.jetstream().get_stream(stream).await?;
            is_told(stream, stream)?;
        }
        Ok(())
    })
    .await?;
    for (stream, consumer, target) in [
        (USER_STATE, "audit", "audit"),
        (USER_REPAIR, "audit", "audit"),
        (USER_EVENTS, "gateway-intake", USER_EVENTS),
        (USER_CHECK, CHECKER, USER_CHECK),
    ] {
        let began = Instant::now();
        let known = bus.jetstream().get_stream(stream).await?;
        known.delete_consumer(consumer).await?;
        eventually(SOON, async || {
            ensure!(bus.has_consumer(stream, consumer).await?, "{consumer}");
            is_told(&format!("{consumer} of {stream}"), target)
        })
        .await?;
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(10), "{consumer}: {took:?}");
    }
    for asked in [&gateway, &worker, &scheduler] {
        asked.until_well().await?;
    }
    bus.publish("user.updated", json!({"user_id": 7, "data": {"n": 2}}))
        .await?;
    bus.until_settled("audit").await?;
    assert_eq!(audit.holds(7)["data"]["n"], 2);
    Ok(())
}

#[tokio::test]
async fn whose_nats_takes_no_writes_is_not_ready() -> Result<()> {
    let builder = Stack::builder()
        .nats_cluster(Routes::direct()?)
        .examples(false);
    let mut stack = builder.schedulers(1).start().await?;
    let all = [
        gateway(&stack),
        worker(&stack, "redis-cache"),
        scheduler(&stack),
    ];
    for asked in &all {
        asked.until_well().await?;
    }
    let began = Timestamp::now();
    // One of three is no majority: it answers, and can store nothing.
    for peer in stack.nats.peers() {
        peer.kill9().await;
    }
    for asked in &all {
        asked
            .until_wrong(503, "store", "NATS takes no writes", began)
            .await?;
    }
    for at in 0..2 {
        stack.nats.peers()[at].restart().await?;
    }
    for asked in &all {
        asked.until_well().await?;
    }
    Ok(())
}

#[tokio::test]
async fn intake_says_that_its_stream_is_deleted() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let mut stack = three(&audit).await?;
    let gateway = gateway(&stack);
    let began = Timestamp::now();
    let bus = Bus::connect(&stack).await?;
    bus.jetstream().delete_stream(USER_EVENTS).await?;
    gateway
        .until_wrong(503, "intake", "stream not found", began)
        .await?;
    let missing = format!("missing: {USER_EVENTS}");
    gateway.until_wrong(503, "streams", &missing, began).await?;
    stack.gateways[0].restart().await?;
    gateway.until_well().await
}

#[tokio::test]
async fn a_worker_names_its_consumer_that_is_deleted() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let mut stack = three(&audit).await?;
    let bus = Bus::connect(&stack).await?;
    let worker = worker(&stack, "audit");
    // Nobody makes it again meanwhile.
    stack.gateways[0].signal(Signal::SIGTERM)?;
    stack.gateways[0].process().wait_exit(SOON).await?;
    let began = Timestamp::now();
    let states = bus.jetstream().get_stream(USER_STATE).await?;
    states.delete_consumer("audit").await?;
    let part = format!("{USER_STATE} audit");
    let said = worker
        .until_wrong(503, &part, "waiting for the consumer", began)
        .await?;
    assert_eq!(wrong(&said), [part.as_str()], "{said}");
    stack.gateways[0].restart().await?;
    worker.until_well().await
}

#[tokio::test]
async fn a_consumer_whose_subjects_somebody_has_changed_misses_nobody() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let mut stack = three(&audit).await?;
    let bus = Bus::connect(&stack).await?;
    worker(&stack, "audit").until_well().await?;
    let states = bus.jetstream().get_stream(USER_STATE).await?;
    let found = states.consumer_info("audit").await?;
    let narrowed = pull::Config {
        durable_name: Some("audit".to_owned()),
        filter_subject: "user.state.nobody".to_owned(),
        ack_wait: found.config.ack_wait,
        max_deliver: found.config.max_deliver,
        max_ack_pending: found.config.max_ack_pending,
        ..pull::Config::default()
    };
    states.update_consumer(narrowed).await?;
    bus.publish("user.created", json!({"user_id": 7, "username": "zaphod"}))
        .await?;
    bus.until_taken_in().await?;
    // A gateway looks every minute, and when it starts.
    stack.gateways[0].restart().await?;
    eventually(SOON, async || {
        let calls = audit.calls();
        ensure!(
            calls.iter().any(|call| call.body["user_id"] == 7),
            "{} calls",
            calls.len()
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_worker_names_a_target_that_is_down_and_stays_ready() -> Result<()> {
    let mut audit = Recorder::start(async |_| answer(200)).await?;
    let mut crm = Database::start().await?;
    crm.init("init", &[]).await?;
    let catalogue = audit.target("audit", HASTY) + &crm.entry + "[redis-cache]\n" + HASTY + "\n";
    let stack = Stack::builder().examples(false);
    let mut stack = stack.targets_toml(move |_| catalogue).start().await?;
    let bus = Bus::connect(&stack).await?;
    let targets = ["audit", "crm", "redis-cache"];
    for target in targets {
        worker(&stack, target).until_well().await?;
    }

    let began = Timestamp::now();
    audit.stop().await;
    crm.server.kill9().await;
    stack.redis.kill9().await;
    let user = json!({"user_id": 7, "username": "zaphod", "data": {"n": 1}});
    bus.publish("user.created", user).await?;
    for target in targets {
        let said = worker(&stack, target)
            .until_wrong(
                200,
                target,
                "nothing is delivered: the target can't be",
                began,
            )
            .await?;
        assert_eq!(wrong(&said), [target], "{said}");
        ensure!(!said.to_string().contains("zaphod"), "{said}");
    }
    audit.listen().await?;
    crm.server.restart().await?;
    stack.redis.restart().await?;
    for target in targets {
        worker(&stack, target).until_well().await?;
        bus.until_settled(target).await?;
    }
    Ok(())
}

#[tokio::test]
async fn gateway_and_scheduler_name_a_main_database_that_is_down() -> Result<()> {
    let mut main = Main::mariadb().await?;
    main.install().await?;
    let stack = main.stack(1).await?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let listen = ["--listen", &address];
    let _scheduler = main.spawn_scheduler("scheduler", Some(&stack.nats), &listen)?;
    let both = [gateway(&stack), Asked::at(&format!("http://{address}"))];
    for asked in &both {
        asked.until_well().await?;
    }
    let began = Timestamp::now();
    main.kill9().await;
    for asked in &both {
        let said = asked
            .until_wrong(503, "source main", "connecting to 127.0.0.1", began)
            .await?;
        assert_eq!(wrong(&said), ["source main"], "{said}");
    }
    main.restart().await?;
    for asked in &both {
        asked.until_well().await?;
    }
    // A table that isn't as the settings say is a reason, too.
    let began = Timestamp::now();
    main.run("ALTER TABLE people RENAME COLUMN city TO town")
        .await?;
    both[1]
        .until_wrong(503, "source main", "city", began)
        .await?;
    main.run("ALTER TABLE people RENAME COLUMN town TO city")
        .await?;
    both[1].until_well().await
}
