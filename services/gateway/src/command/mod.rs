//! `usersync-gateway status`: asks the gateways that run, and shows their answer on one screen.

mod table;
mod terminal;

use std::{
    future::Future,
    io::{self, Write},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, bail};
use async_nats::{Client, RequestErrorKind, StatusCode, connection::State};
use clap::Args;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use usersync_core::{common::Common, nats, subjects};

use crate::control::status::Status;
use table::{Room, span, table};
use terminal::Terminal;

const NOBODY: &str = "no gateway answers; is usersync-gateway running?";
const SILENCE: &str = "no gateway answers; is usersync-gateway running? It answers the NATS users `operator` and \
    `viewer`: set nats.user and nats.password";
/// How long a gateway may take to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// How often `--watch` looks again.
const EVERY: Duration = Duration::from_secs(2);
/// How soon it is noticed that the connection is lost.
const NOTICE: Duration = Duration::from_millis(250);
/// What the operator of nats.conf, and tools without a setting, get their answers under.
const INBOX: &str = "_INBOX";

/// Shows how everything stands: a line per target, with its queue, rates, breaker, dead letters and last check.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  usersync-gateway status
  usersync-gateway --nats-url nats://nats:4222 status --watch
  usersync-gateway status --json | jq '.targets[] | select(.state != \"ok\")'
  usersync-gateway status --exit-code || echo 'somebody should look'

Colours are for terminals only, and not where NO_COLOR is set.")]
pub struct StatusCommand {
    /// Go on, and look again every two seconds until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print what GET /v1/status answers, in one line
    #[arg(long)]
    json: bool,
    /// Fail unless every target and every source is `ok`, and no event was refused; a target that somebody has paused is no
    /// matter
    #[arg(long, conflicts_with = "watch")]
    exit_code: bool,
}

impl StatusCommand {
    /// Asks, and prints the answer; with `--watch` until `stop`.
    ///
    /// # Errors
    /// When no gateway answers, and nobody watches for one; with `--exit-code` when something is to be looked after.
    pub(crate) async fn run(&self, common: &Common, stop: CancellationToken) -> anyhow::Result<()> {
        // As the operator, unless the settings say otherwise: a gateway may not ask gateways.
        let mut settings = common.nats.clone();
        settings
            .inbox_prefix
            .get_or_insert_with(|| INBOX.to_owned());
        let connecting = nats::check(&settings, "usersync-status");
        let Some(connected) = stop.run_until_cancelled(connecting).await else {
            return Ok(());
        };
        let client = connected?.client();
        let mut wrong = Vec::new();
        let shown = match (self.watch, self.json || !terminal::is_there()) {
            (false, _) => match stop.run_until_cancelled(ask(&client)).await {
                Some(status) => {
                    let status = status?;
                    wrong = status.wrong();
                    self.print(&status)
                }
                None => Ok(()),
            },
            (true, true) => self.go_on(&client, &stop).await,
            (true, false) => Watch::new(client, stop)?.run().await,
        };
        match shown {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            shown => shown.context("writing to standard output")?,
        }
        match self.exit_code && !wrong.is_empty() {
            true => bail!("not everything is ok: {}", wrong.join(", ")),
            false => Ok(()),
        }
    }

    fn print(&self, status: &Status) -> io::Result<()> {
        let text = match self.json {
            true => serde_json::to_string(status)? + "\n",
            false => {
                let room = Room {
                    height: None,
                    ..terminal::room()
                };
                table(Some(status), None, room)
            }
        };
        io::stdout().write_all(text.as_bytes())
    }

    /// Prints one answer after the other; what is wrong goes to standard error.
    async fn go_on(&self, client: &Client, stop: &CancellationToken) -> io::Result<()> {
        loop {
            let next = Instant::now() + EVERY;
            match stop.run_until_cancelled(ask(client)).await {
                None => return Ok(()),
                Some(Ok(status)) => self.print(&status)?,
                Some(Err(error)) => writeln!(io::stderr(), "{error:#}; trying again")?,
            }
            if stop.run_until_cancelled(sleep_until(next)).await.is_none() {
                return Ok(());
            }
        }
    }
}

/// A terminal on which the newest answer is seen.
struct Watch {
    client: Client,
    stop: CancellationToken,
    terminal: Terminal,
    resized: Signal,
    status: Option<Status>,
    /// Since when nobody has answered, and why.
    problem: Option<(Instant, String)>,
}

impl Watch {
    fn new(client: Client, stop: CancellationToken) -> io::Result<Self> {
        Ok(Self {
            client,
            stop,
            resized: signal(SignalKind::window_change())?,
            terminal: Terminal::enter()?,
            status: None,
            problem: None,
        })
    }

    /// Until stopped; then the last answer stays on the terminal.
    async fn run(mut self) -> io::Result<()> {
        loop {
            let next = Instant::now() + EVERY;
            let client = self.client.clone();
            match self.meanwhile(ask(&client)).await? {
                None => break,
                Some(Ok(status)) => {
                    self.status = Some(status);
                    self.problem = None;
                }
                Some(Err(error)) => {
                    let since = self.problem.take();
                    let since = since.map_or_else(Instant::now, |(since, _)| since);
                    self.problem = Some((since, format!("{error:#}")));
                }
            }
            self.draw()?;
            if self.meanwhile(sleep_until(next)).await?.is_none() {
                break;
            }
        }
        let last = table(
            self.status.as_ref(),
            self.problem().as_deref(),
            terminal::room(),
        );
        drop(self.terminal);
        io::stdout().write_all(last.as_bytes())
    }

    /// What `future` comes to, `None` when stopped before; fits the screen to the terminal meanwhile.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> io::Result<Option<T>> {
        let mut future = pin!(future);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                _ = self.resized.recv() => self.draw()?,
                came = &mut future => return Ok(Some(came)),
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        let lines = table(
            self.status.as_ref(),
            self.problem().as_deref(),
            terminal::room(),
        );
        self.terminal.show(&lines)
    }

    fn problem(&self) -> Option<String> {
        let (since, problem) = self.problem.as_ref()?;
        let long = span(since.elapsed().as_secs_f64());
        Some(format!("no answer for {long}: {problem}; trying again"))
    }
}

/// Asks for the status; gives up as soon as the connection is lost, which comes back by itself.
async fn ask(client: &Client) -> anyhow::Result<Status> {
    tokio::select! {
        biased;
        () = lost(client) => bail!("NATS is away"),
        answer = answer(client) => answer,
    }
}

async fn lost(client: &Client) {
    while client.connection_state() == State::Connected {
        sleep(NOTICE).await;
    }
}

async fn answer(client: &Client) -> anyhow::Result<Status> {
    let subject = subjects::control("status", "");
    let asked = client.send_request(
        subject.clone(),
        async_nats::Request::new()
            .payload("{}".into())
            .timeout(Some(ANSWER)),
    );
    let answer = match timeout(ANSWER, asked).await {
        Ok(Ok(answer)) if answer.status != Some(StatusCode::NO_RESPONDERS) => answer,
        Ok(Ok(_)) => bail!(NOBODY),
        Err(_) => bail!(SILENCE),
        Ok(Err(error)) => match error.kind() {
            RequestErrorKind::NoResponders => bail!(NOBODY),
            // NATS says nothing to who may not ask.
            RequestErrorKind::TimedOut => bail!(SILENCE),
            _ => return Err(error).with_context(|| format!("asking {subject}")),
        },
    };
    let headers = answer.headers.unwrap_or_default();
    if let Some(problem) = headers.get("Nats-Service-Error") {
        bail!("the gateway says: {problem}");
    }
    serde_json::from_slice(&answer.payload).context("this gateway is of another version")
}
