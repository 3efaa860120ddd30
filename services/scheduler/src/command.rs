//! `usersync-scheduler check`: one check now, and what it found as a table or as JSON.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use async_nats::jetstream;
use clap::Args;
use futures_util::StreamExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use usersync_core::{
    admin::Health,
    check::{Checked, LeftOut, Report, Request, Stage},
    common::Common,
    nats,
    registry::Registry,
    subjects,
    user_id::UserId,
};

use crate::{
    check::{self, End, Journal, Progress},
    claim::Claim,
    reports::{self, For},
    scheduler::{self, Scheduler, Sources},
};

/// After how long without a word from any scheduler one is looked for.
const SILENCE: Duration = Duration::from_secs(10);
/// How often the claim is renewed and progress shown.
const RENEW: Duration = Duration::from_secs(1);

/// Compares a target with the newest states, or these with the main database; looks again at everybody who differs,
/// and has what still differs delivered again, or written. Exit status: 0 done, 1 failed or too many to change without --approve.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  usersync-scheduler check --target redis-cache --dry-run
  usersync-scheduler check --target postgres --once --json
  usersync-scheduler check --target unified-auth --user 42
  usersync-scheduler check --target redis-cache --dry-run --exit-code || echo 'copies differ'
  usersync-scheduler --config usersync.toml check --target gateway --once")]
pub struct Check {
    /// The target to check, or gateway: the states, against the main database
    #[arg(long, value_name = "NAME")]
    target: Checked,
    /// Do it in this process, instead of asking the schedulers that run
    #[arg(long)]
    once: bool,
    /// Only this user
    #[arg(long, value_name = "ID", value_parser = user, conflicts_with_all = ["from", "to"])]
    user: Option<UserId>,
    /// Only users with integer ids from this on
    #[arg(long, value_name = "ID")]
    from: Option<u64>,
    /// Only users with integer ids up to this
    #[arg(long, value_name = "ID")]
    to: Option<u64>,
    /// Say what is found, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Change however many users differ
    #[arg(long)]
    approve: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Fail also when somebody is left who differs or can't be compared
    #[arg(long)]
    exit_code: bool,
}

fn user(text: &str) -> Result<UserId, usersync_core::user_id::InvalidUserId> {
    text.parse()
}

impl Check {
    /// Does the check, or has it done, and prints the report.
    ///
    /// # Errors
    /// When it fails, or stops because too many users would be changed.
    pub(crate) async fn run(
        &self,
        common: &Common,
        sources: Sources,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let jetstream = nats::check(&common.nats, "usersync-scheduler").await?;
        let request = Request {
            user_id: self.user.clone(),
            from: self.from,
            to: self.to,
            dry_run: self.dry_run,
            approved: self.approve,
        };
        let checking = async {
            self.known(&jetstream).await?;
            match self.once {
                true => {
                    self.here(jetstream, sources, common, &request, stop.clone())
                        .await
                }
                false => self.elsewhere(&jetstream, &request).await,
            }
        };
        let report = tokio::select! {
            report = checking => report?,
            () = async { stop.cancelled().await; tokio::time::sleep(RENEW).await }, if !self.once => {
                bail!("stopped waiting; the check goes on: nats req usersync.check.show '{{\"target\":\"{}\"}}'", self.target)
            }
        };
        let text = match self.json {
            true => serde_json::to_string_pretty(&report)? + "\n",
            false => table(&report),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        match report.stage {
            Stage::Done | Stage::Running if self.exit_code && !report.is_clean() => {
                bail!(
                    "not all copies at {} are what they are meant to be",
                    self.target
                )
            }
            Stage::Done | Stage::Running => Ok(()),
            Stage::Braked => {
                bail!("too many users differ: nothing more was changed; see --approve")
            }
            Stage::Failed => bail!("the check failed: {}", report.error.unwrap_or_default()),
        }
    }

    /// Refuses a target that nobody has put.
    async fn known(&self, jetstream: &jetstream::Context) -> anyhow::Result<()> {
        let Checked::Target(name) = &self.target else {
            return Ok(());
        };
        let registry = Registry::open(jetstream, usersync_targets::check).await;
        let registry = registry.context("looking for the target; start usersync-gateway first")?;
        let known = registry.entry(name).await?.is_some();
        ensure!(
            known,
            "there is no target {name}; `nats req usersync.targets.list ''` names them"
        );
        Ok(())
    }

    /// Checks in this process, beside the schedulers that run.
    async fn here(
        &self,
        jetstream: jetstream::Context,
        sources: Sources,
        common: &Common,
        request: &Request,
        stop: CancellationToken,
    ) -> anyhow::Result<Report> {
        let scheduler = scheduler::open(jetstream, sources, common, Health::default());
        let scheduler = timeout(SILENCE, scheduler).await;
        let scheduler: Scheduler =
            scheduler.context("there are no streams of usersync; start usersync-gateway first")?;
        let target = self.target.as_ref();
        let claim = Claim::take(&scheduler.jetstream, target, &scheduler.id, request).await?;
        let mut claim = claim.with_context(|| {
            format!("{target} is being checked right now; wait for it, or leave --once out")
        })?;
        let (journal, entries) = Journal::new(claim.progress().clone());
        let work = check::run(&scheduler, target, request, journal, stop);
        let kept = async |now: &Progress| now.report.iter().for_each(tell);
        let end = claim.during(work, entries, RENEW, kept).await?;
        match end {
            End::Done(report) => {
                reports::publish(&scheduler, request, &report, For::Caller).await?;
                claim.end().await?;
                Ok(*report)
            }
            End::Interrupted(progress) => {
                claim.leave(*progress).await?;
                bail!("stopped; the same command goes on from there")
            }
        }
    }

    /// Asks the schedulers, and waits for the report.
    async fn elsewhere(
        &self,
        jetstream: &jetstream::Context,
        request: &Request,
    ) -> anyhow::Result<Report> {
        let target = self.target.as_ref();
        let client = jetstream.client();
        let mut reports = client.subscribe(reports::subject(target, request)).await?;
        client.flush().await?;
        let body = serde_json::to_vec(request)?.into();
        let asked = jetstream
            .publish(subjects::check(target), body)
            .await?
            .await;
        asked.context("asking for the check; has usersync-gateway made USER_CHECK?")?;
        loop {
            let Ok(message) = timeout(SILENCE, reports.next()).await else {
                let hint = "waiting: no scheduler says that it works on it; is usersync-scheduler running? --once does it here";
                tracing::warn!(target, "{hint}");
                continue;
            };
            let message = message.context("the connection is closed")?;
            let report: Report =
                serde_json::from_slice(&message.payload).context("a report can't be read")?;
            if report.stage != Stage::Running {
                return Ok(report);
            }
            tell(&report);
        }
    }
}

/// Progress, for people: on a terminal one line that changes, else nothing but what the log says.
#[allow(
    clippy::print_stderr,
    reason = "a command that a person waits for shows how far it is"
)]
fn tell(report: &Report) {
    if std::io::stderr().is_terminal() {
        eprint!(
            "\r\x1b[K{}: {} users compared, {} differ, {:.0} s",
            report.target,
            report.users,
            report.drifted(),
            report.seconds
        );
    }
}

/// A report for people.
fn table(report: &Report) -> String {
    let Report {
        target,
        against,
        users,
        seconds,
        bytes,
        ..
    } = report;
    let mut text = String::new();
    if std::io::stderr().is_terminal() {
        text.push('\n');
    }
    let dry = if report.dry_run {
        ", nothing changed (dry run)"
    } else {
        ""
    };
    text += &format!(
        "{target} against {against}: {users} users, {seconds:.1} s, {:.2} MB read{dry}\n",
        *bytes as f64 / 1e6
    );
    if report.found.is_empty() {
        // Of those who weren't looked at nothing is said.
        if report.is_alike() {
            text += "all alike\n";
        }
    } else {
        text += &format!(
            "{:<10} {:>9} {:>9} {:>9}  {}\n",
            "class", "users", "repaired", "can't be", "some of them"
        );
        for (class, found) in &report.found {
            text += &format!(
                "{:<10} {:>9} {:>9} {:>9}  {}\n",
                class.as_str(),
                found.users,
                found.repaired,
                found.unrepairable,
                some_of(&found.sample)
            );
        }
    }
    if report.pending > 0 {
        text += &format!(
            "{} differ and are still on their way: look at the backlog\n",
            report.pending
        );
    }
    text += &left_out(report);
    if let Some(reason) = &report.unusable_because {
        text += &format!(
            "{} rows can't be users and were left out (the first: {reason})\n",
            report.unusable
        );
    }
    if let Some(error) = &report.error {
        text += &format!("{error}\n");
    }
    text
}

/// Of whom nothing is said, or nothing follows.
fn left_out(report: &Report) -> String {
    let mut text = String::new();
    let LeftOut {
        users,
        sample,
        because,
    } = &report.refused;
    if *users > 0 {
        let reason = because.as_deref().unwrap_or("dead letters say why");
        text += &format!(
            "{users} can't be held, so nothing is said of their copies: {} (the first: {reason})\n",
            some_of(sample)
        );
    }
    let LeftOut { users, sample, .. } = &report.expired;
    if *users > 0 {
        text += &format!(
            "{users} aren't there, which is no drift where users are forgotten after a time: {}\n",
            some_of(sample)
        );
    }
    let LeftOut {
        users,
        sample,
        because,
    } = &report.accepted;
    if *users > 0 {
        text += &format!(
            "{users} differ, which is accepted: {} ({})\n",
            some_of(sample),
            because.as_deref().unwrap_or_default()
        );
    }
    text
}

/// A few of a sample.
fn some_of(sample: &[UserId]) -> String {
    let some: Vec<String> = sample.iter().take(5).map(UserId::to_string).collect();
    some.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_check_that_saw_everybody_says_that_all_are_alike() {
        let mut report = Report::new("crm", "states", false);
        report.stage = Stage::Done;
        assert!(table(&report).contains("all alike"));
        report.pending = 3;
        let waits = table(&report);
        assert!(waits.contains("3 differ") && !waits.contains("all alike"));
        report.pending = 0;
        report
            .refused
            .note(&7.into(), Some("`filter` has no answer"));
        let refused = table(&report);
        assert!(refused.contains("1 can't be held") && refused.contains("7 (the first: `filter`"));
        assert!(!refused.contains("all alike"));
        report.refused = LeftOut::default();
        report.expired.note(&7.into(), None);
        assert!(!table(&report).contains("all alike"));
        report.expired = LeftOut::default();
        report
            .accepted
            .note(&7.into(), Some("`check.orphan` is `ignore`"));
        assert!(table(&report).contains("1 differ, which is accepted: 7"));
        assert!(!table(&report).contains("all alike") && report.is_clean());
        report.accepted = LeftOut::default();
        report.stage = Stage::Failed;
        report.error = Some("there is no target crm".to_owned());
        let failed = table(&report);
        assert!(failed.contains("there is no target crm") && !failed.contains("all alike"));
    }
}
