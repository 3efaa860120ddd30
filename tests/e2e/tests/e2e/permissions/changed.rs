//! Permissions and passwords that change while users are delivered: it shows, nothing is lost, and it goes on.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_stack::{Launch, Profile, Service, Stack, eventually, free_port, http, tools};

use super::edit;
use crate::support::{Bus, LATER, Recorder, SOON, answer, only};

/// How many users there are, each changed again and again.
const USERS: u64 = 300;
const GRACE: Duration = Duration::from_secs(15);

/// A target that is busy for a while with every delivery, its worker, and users on their way.
struct Load {
    recorder: Recorder,
    stack: Stack,
    bus: Bus,
}

impl Load {
    async fn start() -> Result<Self> {
        let recorder = Recorder::start(async |_| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            answer(200)
        })
        .await?;
        let stack = only(recorder.target("audit", "")).start().await?;
        let bus = Bus::connect(&stack).await?;
        let load = Self {
            recorder,
            stack,
            bus,
        };
        load.change(1).await?;
        eventually(SOON, async || {
            let arrived = load.recorder.arrived();
            ensure!(arrived > 20, "{arrived} arrived");
            Ok(())
        })
        .await?;
        Ok(load)
    }

    /// Changes every user for the `n`th time.
    async fn change(&self, n: u64) -> Result<()> {
        let changes = (1..=USERS).map(|user| {
            let change = json!({"user_id": user, "username": "ann", "data": {"n": n}});
            ("user.created", change)
        });
        self.bus.publish_all(changes).await
    }

    /// Waits until the target has the `n`th change of everybody, with nobody given up.
    async fn has_all_of(&self, n: u64) -> Result<()> {
        self.bus.until_settled("audit").await?;
        for user in 1..=USERS {
            let held = self.recorder.holds(user)["data"]["n"].clone();
            ensure!(held == n, "user {user}: {held} instead of {n}");
        }
        let given_up = self.bus.count("USER_DEAD").await?;
        ensure!(given_up == 0, "{given_up} dead letters");
        Ok(())
    }

    fn worker(&self) -> &Service {
        &self.stack.workers["audit"][0]
    }

    /// Part of `/readyz` of the worker, null when there is none.
    async fn part(&self, name: &str) -> Result<Value> {
        let readyz = format!("{}/readyz", self.worker().url());
        let told: Value = http::client().get(readyz).send().await?.json().await?;
        Ok(told["parts"][name].clone())
    }

    /// Takes `part` out of nats.conf while users are delivered; the worker must say `told`. Then gives it back.
    async fn without(&self, part: &str, told: &str) -> Result<()> {
        let nats = &self.stack.nats;
        let before = fs::read_to_string(nats.conf())?;
        edit(nats, part, "")?;
        nats.reload()?;
        self.change(2).await?;
        eventually(LATER, async || {
            let seen = self.part("permissions").await?;
            let clear = seen.as_str().unwrap_or_default();
            ensure!(
                clear.contains(told) && clear.contains("nats.conf"),
                "{seen}"
            );
            Ok(())
        })
        .await?;
        let log = self.worker().process().log_tail();
        ensure!(log.contains("NATS refused something"), "{log}");
        self.change(3).await?;
        fs::write(nats.conf(), before)?;
        nats.reload()?;
        self.has_all_of(3).await?;
        self.worker().until_ready().await?;
        assert_eq!(self.part("permissions").await?, Value::Null);
        Ok(())
    }
}

#[tokio::test]
async fn a_worker_that_may_not_pull_any_more_says_so_and_goes_on_when_it_may() -> Result<()> {
    let load = Load::start().await?;
    let pulls =
        r#""$JS.API.CONSUMER.MSG.NEXT.USER_STATE.*", "$JS.API.CONSUMER.MSG.NEXT.USER_REPAIR.*""#;
    let told =
        r#"Permissions Violation for Publish to "$JS.API.CONSUMER.MSG.NEXT.USER_STATE.audit""#;
    load.without(pulls, told).await
}

#[tokio::test]
async fn a_worker_that_may_not_acknowledge_any_more_says_so_and_goes_on_when_it_may() -> Result<()>
{
    let load = Load::start().await?;
    let acks = r#""$JS.ACK.USER_STATE.>", "$JS.ACK.*.*.USER_STATE.>","#;
    load.without(acks, r#"Permissions Violation for Publish to "$JS.ACK."#)
        .await
}

#[tokio::test]
async fn a_worker_that_may_not_hear_answers_any_more_says_so_and_goes_on_when_it_may() -> Result<()>
{
    let load = Load::start().await?;
    load.without(
        r#""_INBOX_worker.>", "#,
        "Permissions Violation for Subscription",
    )
    .await
}

#[tokio::test]
async fn a_password_is_rotated_by_two_users_and_no_event_is_lost() -> Result<()> {
    let mut load = Load::start().await?;
    let nats = &load.stack.nats;
    let old =
        "    { user: worker, password: $USERSYNC_WORKER_PASSWORD, permissions: $WORKER_MAY }\n";
    let new = "    { user: worker-2, password: \"the-new-one\", permissions: $WORKER_MAY }\n";
    edit(nats, old, &format!("{old}{new}"))?;
    nats.reload()?;
    load.change(2).await?;

    let file = load.stack.dir().join("new-password");
    fs::write(&file, "the-new-one\n")?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let log = load.stack.dir().join("logs/second-worker.log");
    let launch = Launch::new(
        "second-worker",
        tools::binary("usersync-worker", Profile::own())?,
        log,
    )
    .nats(nats, "worker")
    .env("USERSYNC_NATS__USER", "worker-2")
    .env(
        "USERSYNC_NATS__PASSWORD",
        format!("file:{}", file.display()),
    )
    .args([
        "--target",
        "audit",
        "--listen",
        &listen,
        "--log-format",
        "human",
    ]);
    let second = Service::spawn(launch, format!("http://{listen}"))?;
    second.until_ready().await?;
    load.worker().stop(GRACE).await?;
    load.change(3).await?;
    edit(&load.stack.nats, old, "")?;
    load.stack.nats.reload()?;
    load.change(4).await?;
    load.has_all_of(4).await?;

    // The old one is nobody any more, and says so.
    let old = load.stack.workers.get_mut("audit").and_then(Vec::pop);
    let mut old = old.ok_or_else(|| anyhow::anyhow!("no worker"))?;
    ensure!(old.restart().await.is_err(), "the old password still opens");
    let log = old.process().log_tail();
    ensure!(log.contains("authorization violation"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_password_in_a_file_may_change_under_a_running_worker() -> Result<()> {
    let load = Load::start().await?;
    let nats = &load.stack.nats;
    let pid = load.worker().pid();
    fs::write(nats.password_file("worker"), "the-new-one\n")?;
    edit(nats, "$USERSYNC_WORKER_PASSWORD", "\"the-new-one\"")?;
    nats.reload()?;
    load.change(2).await?;
    load.has_all_of(2).await?;
    load.worker().until_ready().await?;
    assert_eq!(load.worker().pid(), pid);
    // It is the new one that opens: the old one is cut off by the reload.
    eventually(SOON, async || {
        let log = load.worker().process().log_tail();
        ensure!(log.matches("connected to NATS").count() == 2, "{log}");
        Ok(())
    })
    .await
}
