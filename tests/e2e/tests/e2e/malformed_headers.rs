//! Headers that are none, from clients that write them by hand: what has them is refused, and nothing else is held up.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use usersync_core::subjects::{USER_EVENTS, USER_REFUSED};
use usersync_stack::{Stack, eventually};

use crate::support::{Bus, Recorder, SOON, answer, only};

const BLOCKS: &[&[u8]] = &[
    b"NATS/1.0\r\na: b\rc\r\n\r\n",
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\nwith space: 1\r\n\r\n",
    b"NATS/1.0\r\n: nothing\r\n\r\n",
    b"NATS/1.0\r\nn\xc3\xa4me: 1\r\n\r\n",
    b"NATS/1.0\r\na: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\na\0: 1\r\n\r\n",
    b"NATS/1.0 abc\r\na: 1\r\n\r\n",
    b"NATS/1.0\r\nNats-Pin-Id: mine\r\nbad\r\n\r\n",
    b"NATS/1.0\r\nNats-Pin-Id: a\rb\r\n\r\n",
    b"BAD/9.9\r\na: 1\r\n\r\n",
    b"NATS",
    b"\r\n",
    b"\0\0\0\0",
];

/// A connection on which a client writes what it likes.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(stack: &Stack, role: &str) -> Result<Self> {
        let password = std::fs::read_to_string(stack.nats.password_file(role))?;
        let stream = TcpStream::connect(("127.0.0.1", stack.nats.port())).await?;
        let mut raw = Self(BufReader::new(stream));
        let connect = json!({"verbose": false, "headers": true, "no_responders": true, "user": role, "pass": password.trim()});
        raw.write(format!("CONNECT {connect}\r\n").as_bytes())
            .await?;
        raw.taken().await?;
        Ok(raw)
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.write_all(bytes).await?)
    }

    /// Publishes, and waits until the server has read it.
    async fn publish(&mut self, subject: &str, headers: &[u8], body: &str) -> Result<()> {
        let (header, all) = (headers.len(), headers.len() + body.len());
        let line = format!("HPUB {subject} {header} {all}\r\n");
        self.write(&[line.as_bytes(), headers, body.as_bytes(), b"\r\n"].concat())
            .await?;
        self.taken().await
    }

    async fn taken(&mut self) -> Result<()> {
        self.write(b"PING\r\n").await?;
        let mut line = String::new();
        loop {
            line.clear();
            let read = timeout(SOON, self.0.read_line(&mut line)).await??;
            ensure!(
                read > 0 && !line.starts_with("-ERR"),
                "the server said {line:?}"
            );
            if line.starts_with("PONG") {
                return Ok(());
            }
        }
    }
}

#[tokio::test]
async fn malformed_headers_are_refused_and_hold_nothing_up() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(200)).await?;
    let mut stack = only(recorder.target("audit", "")).start().await?;
    let bus = Bus::connect(&stack).await?;
    let mut publisher = Raw::connect(&stack, "publisher").await?;
    for (user, block) in BLOCKS.iter().enumerate() {
        let event = json!({"user_id": user, "username": "nobody"}).to_string();
        publisher.publish("user.created", block, &event).await?;
    }
    // Some the server itself drops.
    let stored = bus.count(USER_EVENTS).await?;
    ensure!(stored > 8, "{stored} are stored");
    bus.publish("user.created", json!({"user_id": 1_000, "username": "ann"}))
        .await?;
    let state = bus.state_after_intake(1_000).await?;
    ensure!(state["username"] == "ann", "{state}");
    let refused = bus.count(USER_REFUSED).await?;
    let mut states = 0;
    for user in 0..BLOCKS.len() as u64 {
        states += u64::from(!bus.state(user).await?.is_null());
    }
    // Some blocks the server puts right on the way.
    ensure!(
        refused >= 11 && refused + states == stored,
        "{refused} of {stored} are refused, {states} have states"
    );

    // Nobody has to be asked twice, or to start again.
    let mut viewer = Raw::connect(&stack, "viewer").await?;
    for block in BLOCKS {
        for subject in [
            "$SRV.PING",
            "usersync.status",
            "usersync.worker.target.audit",
        ] {
            viewer.publish(subject, block, "").await?;
        }
    }
    bus.publish("user.updated", json!({"user_id": 1_000, "data": {"n": 1}}))
        .await?;
    bus.until_settled("audit").await?;
    ensure!(
        recorder.holds(1_000)["data"]["n"] == 1,
        "{}",
        recorder.holds(1_000)
    );
    let lost = ["intake session ended", "disconnected"];
    for service in stack.gateways.iter().chain(&stack.workers["audit"]) {
        let log = std::fs::read_to_string(service.process().log())?;
        let line = log
            .lines()
            .find(|line| lost.iter().any(|lost| line.contains(lost)));
        ensure!(line.is_none(), "{}: {line:?}", service.name());
    }

    // A session begins although the last event that is known has none that can be read.
    let event = json!({"user_id": 1, "username": "nobody"}).to_string();
    publisher.publish("user.created", BLOCKS[1], &event).await?;
    let last = bus.count(USER_EVENTS).await?;
    eventually(SOON, async || {
        let mark = bus.kv_get("user_epochs", "intake").await?;
        let mark = mark.context("no mark")?;
        ensure!(mark["events"]["last_seq"] == last, "{mark}");
        Ok(())
    })
    .await?;
    stack.gateways[0].restart().await?;
    let event = json!({"user_id": 1_000, "data": {"n": 2}});
    bus.publish("user.updated", event).await?;
    let state = bus.state_after_intake(1_000).await?;
    ensure!(state["data"]["n"] == 2, "{state}");
    stack.stop().await
}
