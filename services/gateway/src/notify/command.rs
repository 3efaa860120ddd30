//! `usersync-gateway notify --test`: whether every channel takes a message.

use std::io::Write as _;

use anyhow::ensure;
use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;

use super::{Settings, channel::Answer, notice::Notice};

/// Sends a test by every channel of [notify], and says of each whether it was taken. Exit status: 0 all were, 1 one was not
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  usersync-gateway --config /etc/usersync/gateway.toml notify --test
  usersync-gateway notify --test --json | jq '.channels[] | select(.ok | not)'")]
pub struct NotifyCommand {
    /// Send a test
    #[arg(long, required = true)]
    test: bool,
    /// Print the answers as JSON, in one line
    #[arg(long)]
    json: bool,
}

/// What became of all tests.
#[derive(Serialize)]
struct Tests {
    channels: Vec<Tested>,
}

/// What became of one.
#[derive(Serialize)]
struct Tested {
    channel: &'static str,
    ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl NotifyCommand {
    /// Sends, and prints what became of it.
    ///
    /// # Errors
    /// When there is no channel, or one has not taken it.
    pub(crate) async fn run(&self, settings: &Settings) -> anyhow::Result<()> {
        ensure!(
            !settings.channels().is_empty(),
            "nobody would be told: set notify.webhook.url or notify.email.host"
        );
        let notice = Notice::test();
        let tests = settings.channels().iter().map(async |channel| {
            let error = match channel.send(&notice).await {
                Answer::Taken => None,
                Answer::NotNow(failure) | Answer::Never(failure) => Some(failure.to_string()),
            };
            Tested {
                channel: channel.name(),
                ok: error.is_none(),
                error,
            }
        });
        let channels = join_all(tests).await;
        let failed = channels.iter().filter(|tested| !tested.ok).count();
        let all = channels.len();
        let text = match self.json {
            true => serde_json::to_string(&Tests { channels })? + "\n",
            false => channels.iter().map(Tested::line).collect(),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        ensure!(
            failed == 0,
            "{failed} of {all} channels did not take the test"
        );
        Ok(())
    }
}

impl Tested {
    fn line(&self) -> String {
        let said = self.error.as_deref().unwrap_or("ok");
        format!("{:<8} {said}\n", self.channel)
    }
}
