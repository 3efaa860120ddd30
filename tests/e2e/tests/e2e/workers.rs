//! Workers as processes: several for one target, killed, stopped, late, checked.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use serde_json::{Value, json};
use usersync_core::subjects::{TARGETS_BUCKET, USER_DEAD, USER_STATE};
use usersync_stack::{
    Directory, Launch, NatsServer, Process, Profile, Service, Signal, Stack, eventually, free_port,
    http, tools,
};

use crate::support::{Api, Bus, Call, Gate, LATER, Recorder, SOON, answer, only};

/// Tries again soon, and for long enough.
const PATIENT: &str =
    "retry = { max_deliver = 100, base = \"200ms\", factor = 1.0, cap = \"200ms\" }";

fn change(user: u64, n: u64) -> Value {
    json!({"user_id": user, "username": format!("name-{user}"), "data": {"n": n}})
}

/// Creates `users`, then updates them at random until `updates` were published in all. Answers the number
/// of each user's last change.
async fn random_updates(bus: &Bus, users: u64, updates: u64) -> Result<BTreeMap<u64, u64>> {
    let mut newest = BTreeMap::new();
    let mut events = Vec::new();
    for n in 0..updates {
        let (kind, user) = match n {
            n if n < users => ("user.created", n),
            _ => ("user.updated", fastrand::u64(0..users)),
        };
        newest.insert(user, n);
        events.push((kind, change(user, n)));
    }
    bus.publish_all(events).await?;
    Ok(newest)
}

/// How many deliveries a worker has made.
async fn delivered(worker: &Service) -> Result<f64> {
    let metrics = worker.metrics().await?;
    Ok(metrics.sum("usersync_deliveries_total", &[("outcome", "delivered")]))
}

#[tokio::test]
async fn two_workers_of_each_target_end_with_the_newest_states() -> Result<()> {
    let hesitates = async |_| {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        answer(200)
    };
    let guarded = Recorder::start_guarded(hesitates).await?;
    let plain = Recorder::start(hesitates).await?;
    let catalogue = guarded.target("guarded", PATIENT) + &plain.target("plain", PATIENT);
    let targets = ["guarded", "plain", "redis-cache"];
    let mut builder = Stack::builder()
        .examples(false)
        .targets_toml(move |_| catalogue);
    for target in targets {
        builder = builder.workers(target, 2);
    }
    let stack = builder.start().await?;
    let bus = Bus::connect(&stack).await?;
    let newest = random_updates(&bus, 200, 10_000).await?;
    for target in targets {
        bus.until_settled(target).await?;
    }

    let redis = redis::Client::open(stack.redis.url())?;
    let mut redis = redis.get_multiplexed_async_connection().await?;
    for (&user, &n) in &newest {
        let state = bus.state(user).await?;
        assert_eq!(
            state["data"]["n"], n,
            "intake keeps the order of user {user}"
        );
        let text = redis.get(format!("user:{user}")).await?.unwrap_or_default();
        let cached: Value = serde_json::from_str(&text)?;
        for (target, held) in [("redis-cache", cached), ("guarded", guarded.holds(user))] {
            assert_eq!(held["version"], state["version"], "user {user} at {target}");
            assert_eq!(held["data"]["n"], n, "user {user} at {target}");
        }
    }
    // A target without a guard is put right a moment later.
    plain.until_all_answered().await?;
    eventually(SOON, async || {
        let stale: Vec<_> = newest
            .iter()
            .filter(|(user, n)| plain.holds(**user)["data"]["n"] != **n)
            .collect();
        ensure!(
            stale.is_empty(),
            "stale at the target without a guard: {stale:?}"
        );
        Ok(())
    })
    .await?;
    for target in targets {
        for worker in &stack.workers[target] {
            let count = delivered(worker).await?;
            assert!(count > 0.0, "{} delivered nothing", worker.name());
        }
    }
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

/// What a service holds that goes on with a call although nobody waits for it any more: by user, the number of the change.
#[derive(Clone, Default)]
struct Late(Arc<Mutex<BTreeMap<String, u64>>>);

impl Late {
    /// Change 1 of every user lands only after `delay`.
    async fn start(delay: Duration) -> Result<(Recorder, Self)> {
        let late = Self::default();
        let holding = late.clone();
        let recorder = Recorder::start(move |call: Call| {
            let late = holding.clone();
            let landing = tokio::spawn(async move {
                if call.n() == 1 {
                    tokio::time::sleep(delay).await;
                }
                late.held().insert(call.user(), call.n());
            });
            async move {
                landing.await.ok();
                answer(200)
            }
        });
        Ok((recorder.await?, late))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same of user 1, 0 for nothing.
    fn of_first(&self) -> u64 {
        self.held().get("1").copied().unwrap_or_default()
    }
}

/// What the call of a worker that is killed does, it does late: the target goes on with it, and nobody waits any more.
#[tokio::test]
async fn what_a_killed_worker_has_sent_lands_late_and_is_put_right() -> Result<()> {
    const USERS: u64 = 50;
    const LANDS: Duration = Duration::from_secs(3);
    let (plain, late) = Late::start(LANDS).await?;
    let settings = "timeout = \"4s\"";
    let mut stack = only(plain.target("plain", settings))
        .workers("plain", 2)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let events = |n| (1..=USERS).map(move |user| ("user.updated", change(user, n)));
    bus.publish_all(events(1)).await?;
    eventually(SOON, async || {
        let calls = plain.calls();
        ensure!(calls.len() as u64 == USERS, "{} calls", calls.len());
        Ok(())
    })
    .await?;
    let killed = stack.workers.get_mut("plain").and_then(Vec::pop);
    killed.context("two workers")?.kill9().await;
    bus.publish_all(events(2)).await?;

    let stale = || late.held().values().filter(|n| **n == 1).count();
    tokio::time::sleep(LANDS + Duration::from_secs(1)).await;
    let before = stale();
    ensure!(before > 0, "no call of the killed worker has landed late");
    let status = async || {
        let tasks = api.get("/v1/users/1/targets").await?;
        anyhow::Ok(tasks["targets"][0]["status"].as_str().map(str::to_owned))
    };
    // Once it is known that a worker has vanished, nobody says that all is well.
    eventually(SOON, async || {
        let status = status().await?;
        ensure!(status.as_deref() == Some("unproven"), "{status:?}");
        Ok(())
    })
    .await?;
    eventually(SOON, async || {
        let (stale, status) = (stale(), status().await?);
        ensure!(stale == 0, "{stale} of {before} users are stale");
        ensure!(status.as_deref() == Some("synced"), "{status:?}");
        Ok(())
    })
    .await
}

/// A worker that is asked to end waits for its calls, and another delivers something newer meanwhile.
#[tokio::test]
async fn what_a_stopping_worker_has_sent_lands_late_and_is_put_right() -> Result<()> {
    const USERS: u64 = 50;
    let (plain, late) = Late::start(Duration::from_secs(3)).await?;
    let stack = only(plain.target("plain", "")).workers("plain", 2);
    let mut stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    let events = |n| (1..=USERS).map(move |user| ("user.updated", change(user, n)));
    bus.publish_all(events(1)).await?;
    eventually(SOON, async || {
        let calls = plain.calls();
        ensure!(calls.len() as u64 == USERS, "{} calls", calls.len());
        Ok(())
    })
    .await?;
    let stopped = stack.workers.get_mut("plain").and_then(Vec::pop);
    let stopped = stopped.context("two workers")?;
    stopped.signal(Signal::SIGTERM)?;
    bus.publish_all(events(2)).await?;
    stopped.process().wait_exit(SOON).await?;
    // All that was under way has landed.
    plain.until_all_answered().await?;
    eventually(SOON, async || {
        let stale = late.held().values().filter(|n| **n == 1).count();
        ensure!(stale == 0, "{stale} of {USERS} users are stale");
        Ok(())
    })
    .await
}

/// A worker that is told of another entry doesn't wait for ever for the calls it has made by the old one.
#[tokio::test]
async fn a_call_that_outlives_a_change_of_the_entry_is_put_right() -> Result<()> {
    const LANDS: Duration = Duration::from_secs(10);
    let (plain, late) = Late::start(LANDS).await?;
    let settings = "timeout = \"15s\"";
    let stack = only(plain.target("plain", settings)).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", change(1, 1)).await?;
    let calls = async |count: usize| {
        eventually(SOON, async || {
            ensure!(plain.arrived() == count, "{} calls", plain.arrived());
            Ok(())
        })
        .await
    };
    calls(1).await?;
    let mut entry = bus
        .kv_get(TARGETS_BUCKET, "plain")
        .await?
        .context("plain")?;
    entry["concurrency"] = json!(50);
    bus.kv_put(TARGETS_BUCKET, "plain", &entry.to_string())
        .await?;
    bus.publish("user.updated", change(1, 2)).await?;
    // By the entry of now, and before the call by the old one lands.
    calls(2).await?;
    let status = async || {
        let task = api.task(1, "plain").await?;
        anyhow::Ok(task["status"].as_str().map(str::to_owned))
    };
    let until = async |n: u64, expected: &str| {
        eventually(LATER, async || {
            let now = late.of_first();
            let status = status().await?;
            ensure!(
                now == n && status.as_deref() == Some(expected),
                "{now}, {status:?}"
            );
            Ok(())
        })
        .await
    };
    until(1, "unproven").await?;
    until(2, "synced").await
}

/// A call that timed out may land after the newer one that followed it.
#[tokio::test]
async fn a_call_that_timed_out_lands_late_and_is_put_right() -> Result<()> {
    const LANDS: Duration = Duration::from_millis(1_700);
    let (plain, late) = Late::start(LANDS).await?;
    let settings = "timeout = \"1s\"\nretry = { max_deliver = 9, base = \"10s\", factor = 1.0, cap = \"10s\" }";
    let stack = only(plain.target("plain", settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(1, 1)).await?;
    // Nobody waits for it any more, and the next attempt is far away.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    bus.publish("user.updated", change(1, 2)).await?;
    let now = || late.of_first();
    eventually(SOON, async || {
        ensure!(now() == 2, "the newer one has not come");
        Ok(())
    })
    .await?;
    eventually(SOON, async || {
        ensure!(now() == 1, "the late one has not landed");
        Ok(())
    })
    .await?;
    eventually(SOON, async || {
        ensure!(now() == 2, "it stays stale");
        Ok(())
    })
    .await
}

/// Calls that take long are the hard case without a guard: the newer version is delivered by the other
/// worker and proven long before the older one lands.
#[tokio::test]
async fn a_slow_call_of_one_worker_does_not_undo_what_the_other_delivered() -> Result<()> {
    let gate = Gate::closed();
    let plain = Recorder::start({
        let gate = gate.clone();
        move |call: Call| {
            let gate = gate.clone();
            async move {
                if call.n() == 1 {
                    gate.pass().await;
                    // Long after the workers have looked whether what they delivered was the newest.
                    tokio::time::sleep(Duration::from_millis(1_500)).await;
                }
                answer(200)
            }
        }
    })
    .await?;
    let stack = only(plain.target("plain", PATIENT))
        .workers("plain", 2)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    let others = async |users: std::ops::Range<u64>| {
        bus.publish_all(users.clone().map(|user| ("user.created", change(user, 2))))
            .await?;
        eventually(SOON, async || {
            let missing = users
                .clone()
                .filter(|user| plain.holds(*user).is_null())
                .count();
            ensure!(missing == 0, "{missing} of {users:?} are missing");
            Ok(())
        })
        .await
    };
    others(100..120).await?;
    // An odd number: the server takes turns, so most newer versions go to the other worker.
    let users = 1..=41_u64;
    bus.publish_all(users.clone().map(|user| ("user.created", change(user, 1))))
        .await?;
    eventually(SOON, async || {
        ensure!(plain.arrived() == 61, "{} calls", plain.arrived());
        Ok(())
    })
    .await?;
    bus.publish_all(users.clone().map(|user| ("user.updated", change(user, 2))))
        .await?;
    // Those whose newer version went to the other worker have it now; the others wait in their lanes.
    let overtaken = eventually(SOON, async || {
        let handed_out = bus.handed_out(USER_STATE, "plain").await?;
        ensure!(handed_out == 102, "{handed_out} of 102 messages handed out");
        let overtaken: Vec<u64> = users
            .clone()
            .filter(|user| plain.holds(*user)["data"]["n"] == 2)
            .collect();
        ensure!(
            overtaken.len() >= 5,
            "only {overtaken:?} went to the other worker"
        );
        Ok(overtaken)
    })
    .await?;
    // Both workers go on, and prove what they deliver.
    others(200..240).await?;
    gate.open();

    bus.until_settled("plain").await?;
    plain.until_all_answered().await?;
    eventually(SOON, async || {
        let stale: Vec<_> = users
            .clone()
            .filter(|user| plain.holds(*user)["data"]["n"] != 2)
            .collect();
        ensure!(
            stale.is_empty(),
            "of {overtaken:?} and more were undone: {stale:?}"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_killed_worker_loses_nothing() -> Result<()> {
    let slow = async |_| {
        tokio::time::sleep(Duration::from_millis(50)).await;
        answer(200)
    };
    let recorder = Recorder::start(slow).await?;
    let settings = format!("concurrency = 8\n{PATIENT}");
    let mut stack = only(recorder.target("audit", &settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    let newest = random_updates(&bus, 200, 2_000).await?;
    eventually(SOON, async || {
        ensure!(recorder.arrived() >= 50, "{} calls", recorder.arrived());
        Ok(())
    })
    .await?;
    let worker = &mut stack.workers.get_mut("audit").unwrap()[0];
    worker.kill9().await;
    assert!(
        recorder.answered() < recorder.arrived(),
        "it was killed with calls under way"
    );
    worker.restart().await?;

    bus.until_settled("audit").await?;
    for (&user, &n) in &newest {
        assert_eq!(recorder.holds(user)["data"]["n"], n, "user {user}");
    }
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    Ok(())
}

/// What a busy machine needs beyond the ten seconds that are promised.
const BUSY: Duration = Duration::from_secs(2);

#[tokio::test]
async fn users_of_a_killed_worker_are_delivered_within_ten_seconds() -> Result<()> {
    const USERS: usize = 50;
    let hangs = async |_| {
        tokio::time::sleep(Duration::from_secs(60)).await;
        answer(200)
    };
    let recorder = Recorder::start(hangs).await?;
    let settings = format!("concurrency = {USERS}\ntimeout = \"60s\"");
    let mut stack = only(recorder.target("audit", &settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=USERS as u64).map(|user| ("user.created", change(user, 1))))
        .await?;
    let calls = async |count: usize, within: Duration| {
        eventually(within, async || {
            ensure!(recorder.arrived() == count, "{} calls", recorder.arrived());
            Ok(())
        })
        .await
    };
    calls(USERS, SOON).await?;
    let worker = &mut stack.workers.get_mut("audit").unwrap()[0];
    worker.kill9().await;
    let killed = Instant::now();
    worker.restart().await?;
    calls(2 * USERS, Duration::from_secs(10) + BUSY - killed.elapsed()).await
}

#[tokio::test]
async fn sigterm_finishes_calls_and_hands_back_the_rest_at_once() -> Result<()> {
    let gate = Gate::closed();
    let recorder = Recorder::start({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                answer(200)
            }
        }
    })
    .await?;
    let settings = format!("concurrency = 4\n{PATIENT}");
    let mut stack = only(recorder.target("audit", &settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=1_500).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;
    // Four calls are under way; the worker has as much more in hand as it takes.
    eventually(SOON, async || {
        let handed_out = bus.handed_out(USER_STATE, "audit").await?;
        ensure!(
            recorder.arrived() == 4 && handed_out > 8,
            "{} calls, {handed_out} handed out",
            recorder.arrived()
        );
        Ok(())
    })
    .await?;

    let worker = &stack.workers["audit"][0];
    worker.signal(Signal::SIGTERM)?;
    eventually(SOON, async || {
        let log = worker.process().log_tail();
        ensure!(log.contains("stopping"), "{log}");
        Ok(())
    })
    .await?;
    assert!(
        worker.process().is_running(),
        "it waits for the calls under way"
    );
    gate.open();
    let status = worker.process().wait_exit(Duration::from_secs(10)).await?;
    assert_eq!(status.code(), Some(0));
    assert_eq!(
        (recorder.answered(), recorder.arrived()),
        (4, 4),
        "no call is cut"
    );

    // ack_wait is 30 s: what was handed back comes well before, even where a busy machine calls slowly.
    stack.add_worker("audit").await?;
    eventually(Duration::from_secs(20), async || {
        let missing: Vec<_> = (1..=1_500)
            .filter(|user| recorder.holds(*user).is_null())
            .collect();
        let (count, some) = (missing.len(), missing.iter().take(5));
        ensure!(
            count == 0,
            "{count} not handed back: {:?}…",
            some.collect::<Vec<_>>()
        );
        Ok(())
    })
    .await?;
    bus.until_settled("audit").await?;
    assert_eq!(recorder.arrived(), 1_500, "each was delivered once");
    Ok(())
}

/// A target that takes longer for user 1 than the 30 s after which the server hands a message out again.
async fn very_slow_for_user_1() -> Result<Recorder> {
    let slow = |call: Call| async move {
        if call.user() == "1" {
            tokio::time::sleep(Duration::from_secs(35)).await;
        }
        answer(200)
    };
    Recorder::start(slow).await
}

/// Takes long: see [`very_slow_for_user_1`].
#[tokio::test]
async fn a_call_longer_than_ack_wait_is_not_made_twice() -> Result<()> {
    let recorder = very_slow_for_user_1().await?;
    let settings = format!("timeout = \"40s\"\n{PATIENT}");
    let stack = only(recorder.target("audit", &settings))
        .workers("audit", 2)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(1, 1)).await?;
    bus.until_settled("audit").await?;
    assert_eq!(recorder.arrived(), 1);
    assert_eq!(bus.handed_out(USER_STATE, "audit").await?, 1);
    Ok(())
}

/// Takes long: see [`very_slow_for_user_1`].
#[tokio::test]
async fn what_waits_behind_a_long_call_is_not_delivered_twice() -> Result<()> {
    let recorder = very_slow_for_user_1().await?;
    let settings = format!("timeout = \"40s\"\nconcurrency = 1\n{PATIENT}");
    let mut stack = only(recorder.target("audit", &settings)).start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(1, 1)).await?;
    eventually(SOON, async || {
        ensure!(recorder.arrived() == 1, "not called yet");
        Ok(())
    })
    .await?;
    bus.publish_all((2..=2_000).map(|user| ("user.created", change(user, 1))))
        .await?;
    eventually(SOON, async || {
        let handed_out = bus.handed_out(USER_STATE, "audit").await?;
        ensure!(handed_out > 2, "{handed_out} handed out");
        Ok(())
    })
    .await?;
    // It gets the rest, and what the first one doesn't hold on to.
    stack.add_worker("audit").await?;

    bus.until_settled("audit").await?;
    let mut calls = BTreeMap::new();
    for call in recorder.calls() {
        *calls.entry(call.user()).or_insert(0) += 1;
    }
    let again: Vec<_> = (1..=2_000_u64)
        .filter(|user| calls.get(&user.to_string()) != Some(&1))
        .collect();
    assert!(
        again.is_empty(),
        "{} delivered again although a worker had them",
        again.len()
    );
    let handed_out = bus.handed_out(USER_STATE, "audit").await?;
    assert_eq!(
        handed_out, 2_000,
        "a message in a worker's hands must not use up attempts"
    );
    Ok(())
}

/// A worker with flags of our own.
fn worker(dir: &Path, nats: &NatsServer, args: &[&str]) -> Result<Service> {
    let port = free_port()?;
    let launch = launch(dir, Some(nats), args)?.args(["--listen", &format!("127.0.0.1:{port}")]);
    Service::spawn(launch, format!("http://127.0.0.1:{port}"))
}

fn launch(dir: &Path, nats: Option<&NatsServer>, args: &[&str]) -> Result<Launch> {
    let program = tools::binary("usersync-worker", Profile::own())?;
    let launch = Launch::new("worker", program, log(dir));
    let launch = launch.args(["--log-format", "human"]).args(args);
    Ok(match nats {
        Some(nats) => launch.nats(nats, "worker"),
        None => launch,
    })
}

fn log(dir: &Path) -> PathBuf {
    dir.join("logs").join("own-worker.log")
}

/// What a service manager that is stingy, or a shell, leaves of them.
#[tokio::test]
async fn a_worker_makes_do_with_64_open_files() -> Result<()> {
    const USERS: u64 = 600;
    let slow = async |_| {
        tokio::time::sleep(Duration::from_millis(200)).await;
        answer(200)
    };
    let (one, other) = (Recorder::start(slow).await?, Recorder::start(slow).await?);
    let catalogue = one.target("one", "") + &other.target("other", "");
    let stack = only(catalogue).workers("one", 0).workers("other", 0);
    let stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=USERS).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_taken_in().await?;

    let program = tools::binary("usersync-worker", Profile::own())?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let launch = Launch::new("worker", program, log(stack.dir()))
        .open_files(Some(64))
        .args(["--listen", &address, "--log-format", "human"])
        .nats(&stack.nats, "worker");
    let worker = Service::spawn(launch, format!("http://{address}"))?;
    let well = async || {
        let asked = http::client().get(format!("{}/readyz", worker.url()));
        let answered = asked.timeout(Duration::from_secs(2)).send().await?;
        let status = answered.status();
        let said: Value = answered.json().await?;
        ensure!(status == 200, "{said}");
        anyhow::Ok(said)
    };
    eventually(SOON, async || {
        let said = well().await?;
        let served = ["one", "other"]
            .iter()
            .all(|target| said["parts"][*target] == "up");
        ensure!(served, "{said}");
        Ok(())
    })
    .await?;
    let (began, all) = (Instant::now(), USERS as usize);
    while [&one, &other].iter().any(|target| target.answered() < all) {
        well().await?;
        ensure!(began.elapsed() < LATER, "{} of {all}", one.answered());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for target in ["one", "other"] {
        bus.until_settled(target).await?;
    }
    // Nothing failed on the way.
    assert_eq!(bus.count(USER_DEAD).await?, 0);
    for target in [&one, &other] {
        assert_eq!(target.arrived() as u64, USERS);
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_waits_for_the_gateway_and_says_so() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("audit", ""))
        .gateways(0)
        .workers("audit", 0)
        .start()
        .await?;
    let catalogue = stack.catalogue().display().to_string();
    let worker = worker(
        stack.dir(),
        &stack.nats,
        &["--target", "audit", "--targets", &catalogue],
    )?;
    eventually(SOON, async || {
        let log = worker.process().log_tail();
        ensure!(
            log.contains("waiting for the stream; usersync-gateway creates it"),
            "{log}"
        );
        Ok(())
    })
    .await?;
    let ready = http::client()
        .get(format!("{}/readyz", worker.url()))
        .send()
        .await?;
    assert_eq!(ready.status(), 503);

    stack.add_gateway().await?;
    worker.until_ready().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(7, 1)).await?;
    bus.until_settled("audit").await?;
    assert_eq!(recorder.holds(7)["data"]["n"], 1);
    Ok(())
}

#[tokio::test]
async fn a_worker_for_an_unknown_target_names_the_known_ones_and_waits() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only(recorder.target("audit", "")).workers("audit", 0);
    let stack = stack.start().await?;
    let worker = worker(stack.dir(), &stack.nats, &["--target", "shop"])?;
    let readyz = format!("{}/readyz", worker.url());
    eventually(SOON, async || {
        let ready: Value = http::client().get(&readyz).send().await?.json().await?;
        let told = ready["parts"]["shop"].as_str().unwrap_or_default();
        ensure!(
            told.contains("no such target") && told.contains("audit"),
            "{ready}"
        );
        Ok(())
    })
    .await?;
    let bus = Bus::connect(&stack).await?;
    let bucket = bus.jetstream.get_key_value(TARGETS_BUCKET).await?;
    let entry = json!({ "url": recorder.url(), "allow_networks": ["loopback"] });
    bucket.put("shop", entry.to_string().into()).await?;
    worker.until_ready().await?;
    bus.publish("user.created", change(7, 1)).await?;
    bus.until_settled("shop").await?;
    assert_eq!(recorder.holds(7)["data"]["n"], 1);
    Ok(())
}

#[tokio::test]
async fn a_worker_of_all_targets_follows_the_bucket_at_once() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let stack = only("").start().await?;
    let worker = worker(stack.dir(), &stack.nats, &[])?;
    let log = || worker.process().log_tail();
    eventually(SOON, async || {
        ensure!(log().contains("connected to NATS"), "{}", log());
        Ok(())
    })
    .await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", change(1, 1)).await?;
    bus.until_taken_in().await?;
    let bucket = bus.jetstream.get_key_value(TARGETS_BUCKET).await?;
    let put = async |name: &str, path: &str| {
        let entry =
            json!({ "url": format!("{}{path}", recorder.url()), "allow_networks": ["loopback"] });
        anyhow::Ok(bucket.put(name, entry.to_string().into()).await?)
    };
    let until_called = async |path: &str| {
        eventually(SOON, async || {
            let calls = recorder.calls();
            ensure!(
                calls.iter().any(|call| call.path.ends_with(path)),
                "not called"
            );
            Ok(())
        })
        .await
    };
    // From a value put to the first call, the consumers made by a gateway in between. Others may use this
    // machine: of five, three have to make it.
    let mut followed = Vec::new();
    for n in 1..=5 {
        let (name, path) = (format!("audit-{n}"), format!("/first-{n}"));
        put(&name, &path).await?;
        let added = Instant::now();
        until_called(&path).await?;
        followed.push(added.elapsed());
    }
    followed.sort();
    assert!(followed[2] < Duration::from_secs(1), "{followed:?}");
    put("audit-1", "/two").await?;
    let mut n = 1;
    eventually(SOON, async || {
        // What comes before the change is followed still goes where it went.
        n += 1;
        bus.publish("user.updated", change(1, n)).await?;
        let calls = recorder.calls();
        ensure!(
            calls.iter().any(|call| call.path.ends_with("/two")),
            "not called"
        );
        Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_worker_without_a_target_serves_all_that_are_enabled() -> Result<()> {
    let (one, two, off) = (
        Recorder::start(async |_| answer(200)).await?,
        Recorder::start(async |_| answer(200)).await?,
        Recorder::start(async |_| answer(200)).await?,
    );
    let catalogue =
        one.target("one", "") + &two.target("two", "") + &off.target("off", "enabled = false");
    let stack = only(catalogue)
        .workers("one", 0)
        .workers("two", 0)
        .start()
        .await?;
    let catalogue = stack.catalogue().display().to_string();
    let worker = worker(stack.dir(), &stack.nats, &["--targets", &catalogue])?;
    worker.until_ready().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish_all((1..=20).map(|user| ("user.created", change(user, 1))))
        .await?;
    bus.until_settled("one").await?;
    bus.until_settled("two").await?;
    assert_eq!((one.arrived(), two.arrived(), off.arrived()), (20, 20, 0));
    Ok(())
}

/// Runs `usersync-worker --check` to its end: exit status and output.
async fn check(
    dir: &Path,
    nats: Option<&NatsServer>,
    args: &[&str],
) -> Result<(Option<i32>, String)> {
    let process: Process = launch(dir, nats, args)?.arg("--check").spawn()?;
    let status = process.wait_exit(SOON).await?;
    Ok((status.code(), process.log_tail()))
}

#[tokio::test]
async fn check_tries_every_connection_and_names_what_fails() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(405)).await?;
    let stack = only(recorder.target("audit", ""))
        .workers("audit", 0)
        .start()
        .await?;
    let catalogue = stack.catalogue().display().to_string();
    let args = ["--targets", catalogue.as_str()];
    let (status, told) = check(stack.dir(), Some(&stack.nats), &args).await?;
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("NATS with JetStream answers"), "{told}");
    assert!(told.contains("audit"), "{told}");

    let dir = Directory::temporary()?;
    let closed = free_port()?;
    let file = dir.path().join("t.toml");
    std::fs::write(
        &file,
        format!("[gone]\nurl = \"http://127.0.0.1:{closed}/x\"\n[odd]\nurl = \"gopher://h/\"\n"),
    )?;
    let file = file.display().to_string();
    let nowhere = format!("nats://127.0.0.1:{}", free_port()?);
    let (status, told) = check(
        dir.path(),
        None,
        &["--nats-url", &nowhere, "--targets", &file],
    )
    .await?;
    assert_eq!(status, Some(1), "{told}");
    for part in [&*nowhere, "target gone", "target odd: url: `gopher`"] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    let args = [
        "--nats-url",
        &nowhere,
        "--targets",
        &file,
        "--target",
        "nobody",
    ];
    let (_, told) = check(dir.path(), None, &args).await?;
    assert!(
        told.contains("target nobody: there is no such target"),
        "{told}"
    );
    Ok(())
}

#[tokio::test]
async fn a_bad_configuration_is_told_whole_and_exits_64() -> Result<()> {
    let dir = Directory::temporary()?;
    let file = dir.path().join("t.toml");
    std::fs::write(&file, "[odd]\nurl = \"http://h/\"\ntimeout = \"soon\"\n")?;
    let file = file.display().to_string();
    let args = [
        "--targets",
        &file,
        "--target",
        "No Name",
        "--listen",
        "here",
    ];
    let (status, told) = check(dir.path(), None, &args).await?;
    assert_eq!(status, Some(64), "{told}");
    for part in [
        "target: expected",
        "odd.timeout: expected",
        "listen: expected",
    ] {
        assert!(told.contains(part), "{part:?} in {told}");
    }
    Ok(())
}
