//! Users on their way to a target, for what may disturb them.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_stack::{
    Launch, Profile, Service, Stack, StackBuilder, eventually, free_port, http, tools,
};

use super::{Bus, Recorder, SOON, answer, only};

/// How many users there are, each changed again and again.
const USERS: u64 = 300;

/// A target that is busy for a while with every delivery, its worker, and users on their way.
pub(crate) struct Load {
    recorder: Recorder,
    pub(crate) stack: Stack,
    bus: Bus,
}

impl Load {
    /// Starts it with what `more` adds to the stack.
    pub(crate) async fn start(more: impl FnOnce(StackBuilder) -> StackBuilder) -> Result<Self> {
        let recorder = Recorder::start(async |_| {
            tokio::time::sleep(Duration::from_millis(5)).await;
            answer(200)
        })
        .await?;
        let stack = more(only(recorder.target("audit", ""))).start().await?;
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
    pub(crate) async fn change(&self, n: u64) -> Result<()> {
        let changes = (1..=USERS).map(|user| {
            let change = json!({"user_id": user, "username": "ann", "data": {"n": n}});
            ("user.created", change)
        });
        self.bus.publish_all(changes).await
    }

    /// Waits until the target has the `n`th change of everybody, with nobody given up.
    pub(crate) async fn has_all_of(&self, n: u64) -> Result<()> {
        self.bus.until_settled("audit").await?;
        for user in 1..=USERS {
            let held = self.recorder.holds(user)["data"]["n"].clone();
            ensure!(held == n, "user {user}: {held} instead of {n}");
        }
        let given_up = self.bus.count("USER_DEAD").await?;
        ensure!(given_up == 0, "{given_up} dead letters");
        Ok(())
    }

    pub(crate) fn worker(&self) -> &Service {
        &self.stack.workers["audit"][0]
    }

    /// One more worker, which connects to NATS by these settings; not ready yet.
    pub(crate) fn another_worker(&self, settings: &[(&str, &str)]) -> Result<Service> {
        let listen = format!("127.0.0.1:{}", free_port()?);
        let program = tools::binary("usersync-worker", Profile::own())?;
        let log = self.stack.dir().join("logs/another-worker.log");
        let mut launch = Launch::new("another-worker", program, log)
            .env("USERSYNC_NATS__URL", self.stack.nats.url())
            .args(["--target", "audit", "--listen", &listen])
            .args(["--log-format", "human"]);
        for (name, value) in settings {
            launch = launch.env(name, value);
        }
        Service::spawn(launch, format!("http://{listen}"))
    }

    /// Part of `/readyz` of the worker, null when there is none.
    pub(crate) async fn part(&self, name: &str) -> Result<Value> {
        let readyz = format!("{}/readyz", self.worker().url());
        let told: Value = http::client().get(readyz).send().await?.json().await?;
        Ok(told["parts"][name].clone())
    }
}
