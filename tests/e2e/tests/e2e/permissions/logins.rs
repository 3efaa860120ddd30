//! The ways to be somebody that docs/SECURITY.md shows beside a password: an nkey, and a hash at the server.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use nkeys::KeyPair;
use serde_json::Value;
use usersync_stack::{Directory, NatsServer, Service, eventually, http};

use super::{edit, peer::Peer};
use crate::support::{Load, SOON};

const GRACE: Duration = Duration::from_secs(15);
const WORKER: &str =
    "{ user: worker, password: $USERSYNC_WORKER_PASSWORD, permissions: $WORKER_MAY }";
const PASSWORD: &str = "us-of-a-test";
/// Its bcrypt hash, made by libxcrypt.
const HASH: &str = "$2a$04$abcdefghijklmnopqrstuuVukwUbNqe8iOU4nweA741b5y7GzcJCu";

/// A worker with the seed of `key`.
fn worker_of(load: &Load, key: &KeyPair, name: &str) -> Result<Service> {
    let file = load.stack.dir().join(name);
    fs::write(&file, format!("{}\n", key.seed()?))?;
    let seed = format!("file:{}", file.display());
    load.another_worker(&[("USERSYNC_NATS__NKEY", &seed)])
}

#[tokio::test]
async fn a_worker_with_an_nkey_delivers_and_one_with_another_is_refused() -> Result<()> {
    let load = Load::start(|stack| stack).await?;
    let (known, unknown) = (KeyPair::new_user(), KeyPair::new_user());
    let user = format!(
        "{{ nkey: {}, permissions: $WORKER_MAY }}",
        known.public_key()
    );
    // Before its login is gone, with which it says what it leaves undone.
    load.worker().stop(GRACE).await?;
    edit(&load.stack.nats, WORKER, &user)?;
    load.stack.nats.reload()?;

    let stranger = worker_of(&load, &unknown, "unknown.nk")?;
    eventually(SOON, async || {
        let readyz = http::client().get(format!("{}/readyz", stranger.url()));
        let said: Value = readyz.send().await?.json().await?;
        let nats = said["parts"]["nats"].as_str().unwrap_or_default();
        ensure!(nats.contains("authorization violation"), "{said}");
        Ok(())
    })
    .await?;
    stranger.stop(GRACE).await?;

    let worker = worker_of(&load, &known, "known.nk")?;
    worker.until_ready().await?;
    load.change(2).await?;
    load.has_all_of(2).await
}

#[tokio::test]
async fn the_server_may_have_hashes_of_passwords() -> Result<()> {
    let dir = Directory::temporary()?;
    // In the environment, and in the file as for a change of passwords.
    let nats = NatsServer::builder(dir.path()).env("USERSYNC_WORKER_PASSWORD", HASH);
    let nats = nats.start().await?;
    let second =
        format!("{{ user: worker-2, password: \"{HASH}\", permissions: $WORKER_MAY }}\n    ");
    edit(&nats, WORKER, &format!("{second}{WORKER}"))?;
    nats.reload()?;
    for user in ["worker", "worker-2"] {
        eventually(SOON, async || {
            Peer::connect(&nats, user, PASSWORD, "_INBOX_worker").await
        })
        .await?;
        for wrong in [HASH, "us-of-a-test-2"] {
            let refused = Peer::connect(&nats, user, wrong, "_INBOX_worker").await;
            ensure!(refused.is_err(), "{user} is let in by {wrong}");
        }
    }
    Ok(())
}
