//! `--init-target NAME`: makes the table or the constraint that a database target needs, or shows how.

use std::io::Write as _;

use anyhow::Context as _;
use usersync_core::{catalogue::Catalogue, nats, target::TargetName};

use crate::{Settings, registered};

/// Makes what `name` needs to hold users; with `dry_run` it only prints the statements, one per paragraph.
///
/// # Errors
/// When there is no such target, its kind has nothing to be made, or its server refuses.
pub async fn init_target(
    settings: &Settings,
    name: &TargetName,
    dry_run: bool,
) -> anyhow::Result<()> {
    let targets = catalogue(settings).await?;
    let target = targets.get(name).with_context(|| {
        let known: Vec<_> = targets.keys().map(TargetName::as_ref).collect();
        format!(
            "there is no target {name}; expected one of {}",
            known.join(", ")
        )
    })?;
    let driver = usersync_targets::connect(target, &settings.common.egress)
        .with_context(|| format!("target {name}"))?;
    let statements = driver
        .ddl()
        .await
        .with_context(|| format!("target {name}"))?;
    if statements.is_empty() {
        tracing::info!(target = %name, "nothing is missing");
    }
    if dry_run {
        let mut out = std::io::stdout().lock();
        for statement in statements {
            writeln!(out, "{statement};\n").context("printing")?;
        }
        return Ok(());
    }
    if !statements.is_empty() {
        driver
            .init()
            .await
            .with_context(|| format!("target {name}"))?;
        tracing::info!(target = %name, statements = statements.len(), "made what was missing");
    }
    // What was there before may not suit.
    driver
        .probe()
        .await
        .with_context(|| format!("target {name}"))
}

/// The files that `targets` names, or else the bucket.
async fn catalogue(settings: &Settings) -> anyhow::Result<Catalogue> {
    if let Some(catalogue) = &settings.catalogue {
        return Ok(catalogue.clone());
    }
    let jetstream = nats::check(&settings.common.nats, "usersync-worker").await?;
    let mut failed = Vec::new();
    let targets = registered(&jetstream, &mut failed).await?;
    anyhow::ensure!(
        !targets.is_empty() || failed.is_empty(),
        "{}",
        failed.join("\n  ")
    );
    Ok(targets)
}
