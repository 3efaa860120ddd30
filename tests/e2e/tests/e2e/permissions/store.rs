//! The store of JetStream encrypted: nothing of a user can be read from the files, and with the key everything is there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use serde_json::json;
use usersync_stack::NatsServer;

use crate::support::{Bus, only};

const MARK: &str = "marked-7f3a91";
const OFF: &str = "  # cipher: \"aes\", key: $USERSYNC_STORE_KEY\n";

/// The files under `dir` that hold the mark.
fn marked(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(marked(&path)?);
        } else if fs::read(&path)?
            .windows(MARK.len())
            .any(|part| part == MARK.as_bytes())
        {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether the state of user 7 is there.
async fn is_known(nats: &NatsServer) -> Result<bool> {
    let jetstream = jetstream::new(nats.connect().await?);
    let Ok(states) = jetstream.get_stream("USER_STATE").await else {
        return Ok(false);
    };
    let state = states
        .get_last_raw_message_by_subject("user.state.7")
        .await?;
    Ok(String::from_utf8_lossy(&state.payload).contains(MARK))
}

#[tokio::test]
async fn an_encrypted_store_holds_nothing_that_can_be_read_without_its_key() -> Result<()> {
    let stack = only("[audit]\nurl = \"http://127.0.0.1:9/\"\n");
    let stack = stack.workers("audit", 0).start().await?;
    let bus = Bus::connect(&stack).await?;
    let user = json!({"user_id": 7, "username": MARK});
    bus.publish("user.created", user).await?;
    bus.until_taken_in().await?;
    stack.nats.kill9().await;
    let store = stack.dir().join("nats");
    let plain = marked(&store)?;
    ensure!(plain.len() >= 2, "the mark is in {plain:?} only");

    // The next start with a key encrypts what is there.
    let shipped = fs::read_to_string(stack.nats.conf())?;
    ensure!(shipped.contains(OFF), "nats.conf has no {OFF:?}");
    let conf = stack.dir().join("encrypted.conf");
    fs::write(&conf, shipped.replace(OFF, &OFF.replace("# ", "")))?;
    let start = async |key: &str| {
        let nats = NatsServer::builder(stack.dir()).conf(&conf);
        let nats = nats.env("USERSYNC_STORE_KEY", key).start().await;
        nats.with_context(|| format!("with the key {key}"))
    };
    let nats = start("us-the-key").await?;
    ensure!(is_known(&nats).await?, "the key hides what it should open");
    let jetstream = jetstream::new(nats.connect().await?);
    let event = json!({"user_id": 8, "username": MARK}).to_string();
    jetstream
        .publish("user.created", event.into())
        .await?
        .await?;
    nats.kill9().await;
    assert_eq!(marked(&store)?, Vec::<PathBuf>::new());

    // Another key opens nothing, and does no harm.
    let nats = start("us-another-key").await?;
    ensure!(!is_known(&nats).await?, "any key opens it");
    nats.kill9().await;
    let nats = start("us-the-key").await?;
    ensure!(is_known(&nats).await?, "what was there is lost");
    Ok(())
}
