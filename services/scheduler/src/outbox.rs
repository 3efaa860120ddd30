//! `outbox install | uninstall | approve | status`: the outbox beside a table of users.

use std::io::Write;

use anyhow::Context as _;
use usersync_source::{Database, SourceConfig, Standing};

use crate::settings::OutboxWork;

/// Does one of the three.
pub(crate) async fn run(work: OutboxWork) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match work {
        OutboxWork::Install {
            source,
            all,
            new_epoch,
            print,
        } => {
            let mut database = connect(&source).await?;
            if print {
                let (_, plan) = database.plan(all).await?;
                for remark in &plan.remarks {
                    writeln!(out, "-- Note: {remark}")?;
                }
                let watching = plan.watching.unwrap_or_default();
                write!(out, "{}\n{watching}", plan.script)?;
                return Ok(());
            }
            let plan = database.install_with(all, new_epoch).await?;
            let done = if plan.again { "renewed" } else { "made" };
            writeln!(
                out,
                "{done} the outbox of `{}`: {}",
                source.table,
                plan.mapped.join(", ")
            )?;
            for remark in &plan.remarks {
                writeln!(out, "Note: {remark}")?;
            }
            writeln!(
                out,
                "Changes are published from now on; `usersync-scheduler load` brings in the users that are there."
            )?;
        }
        OutboxWork::Uninstall {
            source,
            force,
            print,
        } => {
            let mut database = connect(&source).await?;
            if print {
                write!(out, "{}", database.removal())?;
                return Ok(());
            }
            match database.uninstall(force).await? {
                true => writeln!(
                    out,
                    "removed the outbox of `{}` and its triggers",
                    source.table
                )?,
                false => writeln!(out, "nothing to remove: `{}` has no outbox", source.table)?,
            }
        }
        OutboxWork::Approve { source } => {
            connect(&source).await?.approve().await?;
            writeln!(
                out,
                "approved the deletions that are in the outbox of `{}` now",
                source.table
            )?;
        }
        OutboxWork::Status { source, json } => {
            let standing = connect(&source).await?.standing().await?;
            match json {
                true => writeln!(out, "{}", serde_json::to_string_pretty(&standing)?)?,
                false => write!(out, "{}", shown(&source, &standing))?,
            }
            anyhow::ensure!(
                standing.installed,
                "the outbox of `{}` isn't complete",
                source.table
            );
        }
    }
    Ok(())
}

async fn connect(source: &SourceConfig) -> anyhow::Result<Database> {
    Database::connect(source).await.context("the main database")
}

fn shown(source: &SourceConfig, standing: &Standing) -> String {
    let mut text = format!("outbox of      {}\n", source.table);
    let installed = match (standing.installed, standing.missing.is_empty()) {
        (true, _) => "yes".to_owned(),
        (false, true) => "no".to_owned(),
        (false, false) => format!("no: {}", standing.missing.join(", ")),
    };
    text += &format!("installed      {installed}\n");
    for remark in &standing.remarks {
        text += &format!("note           {remark}\n");
    }
    text += &format!(
        "unpublished    {}, the oldest for {:.1} s\n",
        standing.unpublished, standing.oldest_seconds
    );
    text += &format!("not publishable {}\n", standing.failed);
    for reason in &standing.reasons {
        text += &format!("  row {}: {}\n", reason.id, reason.reason);
    }
    text
}
