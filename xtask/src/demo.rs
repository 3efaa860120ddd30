//! `cargo xtask demo`: starts everything, sends traffic, proves that every target holds the same users.

mod compare;
mod hints;
mod holdings;
mod progress;
mod table;
mod traffic;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use usersync_stack::{Stack, eventually};

use self::compare::Comparison;
use self::traffic::Traffic;
use crate::terminal;
use crate::up::{self, Build, Stop};

/// How long the targets may take to become equal after the last event.
const EQUAL_WITHIN: Duration = Duration::from_secs(60);

/// See it work: start everything, send traffic, compare what every target holds
///
/// Installs what is missing, builds, starts NATS, Redis, the gateway, one worker per target and the three
/// example services, on the usual ports where those are free. Then it registers users at basic-server, changes
/// and deletes some, publishes others straight to NATS, logs in at unified-auth as somebody who registered a
/// moment ago, and compares every user at every target, field by field. It stays up for you to play with until
/// Ctrl-C. Passwords are hashed with less memory than in production, or hashing would be most of what you see.
#[derive(Args)]
pub(crate) struct Demo {
    /// How many users to register
    #[arg(long, value_name = "N", default_value_t = 200)]
    users: usize,

    /// Exit after the comparison; the exit status tells whether all targets hold the same
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    build: Build,
}

impl Demo {
    #[tokio::main]
    pub(crate) async fn run(self) -> Result<()> {
        self.build.prepare()?;
        let mut stop = Stop::new()?;
        let Some(mut stack) = up::start(up::stack(&self.build), &mut stop).await? else {
            return Ok(());
        };

        // Three things may happen first: the demo ends, a process dies, somebody wants to stop.
        let shown = tokio::select! {
            shown = show(&stack, self.users) => shown,
            failure = stack.ended() => Err(anyhow::anyhow!(failure)),
            () = stop.wanted() => return up::stop_all(stack, stop, None).await,
        };
        if let Err(error) = shown {
            let dir = stack.keep_dir().display().to_string();
            return up::stop_all(
                stack,
                stop,
                Some(format!("{error:#}\ndata and logs stay in {dir}")),
            )
            .await;
        }
        if self.once {
            return up::stop_all(stack, stop, None).await;
        }
        hints::print(&stack);
        up::until_stopped(stack, stop).await
    }
}

/// The demo itself; an error when a target holds anything else than it should.
async fn show(stack: &Stack, users: usize) -> Result<()> {
    let style = terminal::stdout();
    println!("{}", style.bold("usersync is up; here is some traffic"));
    let traffic = Traffic::new(stack).await?;
    progress::during(stack, &traffic, traffic.run(users)).await?;

    let took = traffic.log_in_elsewhere().await?;
    println!(
        "registered at basic-server, logged in at unified-auth {} ms later",
        took.as_millis()
    );

    // The last events may still be on their way.
    let sent = traffic.sent();
    let mut last = None;
    let equal = eventually(EQUAL_WITHIN, async || {
        let comparison = Comparison::of(stack, &sent.users).await?;
        let differences = comparison.differences();
        last = Some(comparison);
        if differences > 0 {
            bail!("{differences} differences");
        }
        Ok(())
    });
    let equal = progress::during(stack, &traffic, equal).await;
    let Some(comparison) = last else {
        return equal.context("comparing what the targets hold");
    };
    progress::print_once(stack, &traffic).await;
    println!("\n{}", table::render(&comparison, style));
    equal.context("not every target holds the same users")?;
    let verdict = format!("every target holds the same {} users", comparison.users);
    println!("{}", style.green(&verdict));
    Ok(())
}
