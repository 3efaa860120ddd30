//! Who relays when a gateway is stopped or cut off, when nobody says that he does, and when triggers are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use usersync_stack::{Service, eventually, http};

use super::{Main, Server};
use crate::support::{Api, SOON};

/// Within so long another gateway takes over from one that is silent.
const TAKEN_OVER: Duration = Duration::from_secs(15);

/// Passes connections on, and may go silent: then nothing is passed on, and nothing is closed.
struct Line {
    port: u16,
    silent: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Line {
    async fn to(server: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let silent = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&silent);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(behind) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = behind.into_split();
                tokio::spawn(pass(from_client, to_server, Arc::clone(&flag)));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&flag)));
            }
        });
        Ok(Self { port, silent, task })
    }

    fn cut(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: Arc<AtomicBool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if silent.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // An end isn't heard either.
    if silent.load(Ordering::SeqCst) {
        std::future::pending().await
    }
}

impl Main {
    fn port(&self) -> Result<u16> {
        let url = match &self.server {
            Server::MariaDb(server, _) => server.url(),
            Server::Postgres(server, _) => server.url(),
        };
        let port = url
            .rsplit_once(':')
            .and_then(|(_, rest)| rest.split_once('/'));
        Ok(port.context("no port")?.0.parse()?)
    }

    /// Has gateways that start from now on go to another port of this machine.
    fn move_to(&self, from: u16, to: u16) -> Result<()> {
        let settings = std::fs::read_to_string(self.settings())?;
        let moved = settings.replace(&format!(":{from}/"), &format!(":{to}/"));
        Ok(std::fs::write(self.settings(), moved)?)
    }
}

async fn relays(gateway: &Service) -> Result<()> {
    let active = gateway.metrics().await?.sum("usersync_outbox_active", &[]);
    ensure!(active == 1.0, "it doesn't relay");
    Ok(())
}

/// What `/readyz` says of the source.
async fn readiness(gateway: &Service) -> Result<(u16, String)> {
    let ready = format!("{}/readyz", gateway.url());
    let answer = http::client().get(&ready).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

async fn is_unready(gateway: &Service, why: &str) -> Result<()> {
    eventually(SOON, async || {
        let (status, said) = readiness(gateway).await?;
        ensure!(status == 503 && said.contains(why), "{status} {said}");
        Ok(())
    })
    .await
}

async fn a_stopped_gateway_loses_the_lock(main: Main) -> Result<()> {
    main.install().await?;
    let mut stack = main.stack(1).await?;
    eventually(SOON, async || relays(&stack.gateways[0]).await).await?;
    stack.add_gateway().await?;
    let began = Instant::now();
    stack.gateways[0].process().freeze().await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'ann')")
        .await?;
    eventually(TAKEN_OVER, async || relays(&stack.gateways[1]).await).await?;
    ensure!(began.elapsed() < TAKEN_OVER, "{:?}", began.elapsed());
    main.equals_the_states(&stack).await?;
    // The other one wakes up to a connection that is gone, and stands by.
    stack.gateways[0].signal(usersync_stack::Signal::SIGCONT)?;
    eventually(SOON, async || {
        ensure!(relays(&stack.gateways[0]).await.is_err(), "both relay");
        Ok(())
    })
    .await?;
    stack.gateways[0].until_ready().await?;
    main.run("UPDATE people SET username = 'bob'").await?;
    main.equals_the_states(&stack).await?;
    main.every_user_is_told_of_in_order(&stack).await
}

#[tokio::test]
async fn a_gateway_that_is_stopped_loses_the_lock_of_mariadb() -> Result<()> {
    a_stopped_gateway_loses_the_lock(Main::mariadb().await?).await
}

#[tokio::test]
async fn a_gateway_that_is_stopped_loses_the_lock_of_postgres() -> Result<()> {
    a_stopped_gateway_loses_the_lock(Main::postgres().await?).await
}

async fn a_gateway_that_is_cut_off_loses_the_lock(main: Main) -> Result<()> {
    main.install().await?;
    let server = main.port()?;
    let line = Line::to(server).await?;
    main.move_to(server, line.port)?;
    let mut stack = main.stack(1).await?;
    eventually(SOON, async || relays(&stack.gateways[0]).await).await?;
    main.move_to(line.port, server)?;
    stack.add_gateway().await?;
    line.cut();
    main.run("INSERT INTO people (uid, username) VALUES (1, 'ann')")
        .await?;
    eventually(TAKEN_OVER, async || relays(&stack.gateways[1]).await).await?;
    main.equals_the_states(&stack).await?;
    is_unready(&stack.gateways[0], "\"source main\"").await
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_loses_the_lock_of_mariadb() -> Result<()> {
    a_gateway_that_is_cut_off_loses_the_lock(Main::mariadb().await?).await
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_loses_the_lock_of_postgres() -> Result<()> {
    a_gateway_that_is_cut_off_loses_the_lock(Main::postgres().await?).await
}

#[tokio::test]
async fn whoever_stands_by_for_nobody_is_not_ready() -> Result<()> {
    let main = Main::postgres().await?;
    main.install().await?;
    main.run("SELECT pg_advisory_lock(hashtextextended('usersync ' || to_regclass('user_outbox')::oid::text, 0))")
        .await?;
    let mut stack = main.stack(0).await?;
    let early = tokio::time::timeout(Duration::from_secs(8), stack.add_gateway()).await;
    ensure!(early.is_err(), "it is ready although nobody relays");
    Ok(())
}

async fn triggers_that_are_gone_are_told_of(main: Main) -> Result<()> {
    main.install().await?;
    let stack = main.stack(1).await?;
    eventually(SOON, async || relays(stack.gateway()).await).await?;
    main.run(match main.server {
        Server::MariaDb(..) => "DROP TRIGGER user_outbox_insert",
        Server::Postgres(..) => "ALTER TABLE people DISABLE TRIGGER user_outbox",
    })
    .await?;
    is_unready(stack.gateway(), "changes of `people` aren't noted").await?;
    let api = Api::of(&stack).await?;
    eventually(SOON, async || {
        let status = api.get("/v1/status").await?;
        let source = &status["sources"][0];
        let why = source["problem"].as_str().unwrap_or_default();
        ensure!(
            source["state"] == "unnoted" && why.contains("aren't noted"),
            "{source}"
        );
        Ok(())
    })
    .await?;
    let said = main
        .scheduler("again", None, &["outbox", "install"])
        .await?;
    ensure!(said.contains("renewed the outbox"), "{said}");
    stack.gateway().until_ready().await?;
    main.run("INSERT INTO people (uid, username) VALUES (1, 'ann')")
        .await?;
    main.equals_the_states(&stack).await
}

#[tokio::test]
async fn triggers_that_are_gone_in_mariadb_are_told_of() -> Result<()> {
    triggers_that_are_gone_are_told_of(Main::mariadb().await?).await
}

#[tokio::test]
async fn triggers_that_are_off_in_postgres_are_told_of() -> Result<()> {
    triggers_that_are_gone_are_told_of(Main::postgres().await?).await
}
