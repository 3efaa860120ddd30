//! From one account to several: nothing begins empty by mistake, and what was refused before is brought over.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{self, stream},
};
use serde_json::json;
use usersync_core::subjects::{REFUSED_EVENTS, USER_DEAD, USER_REFUSED, USER_STATE};
use usersync_stack::{Directory, Launch, NatsServer, Profile, eventually, free_port, tools};

use crate::support::{Api, Bus, LATER, only};

const GRACE: Duration = Duration::from_secs(20);

/// A server as it was: one account for all.
const BEFORE: &str = r#"
jetstream { max_file_store: 1GB }
authorization { users: [ { user: test, password: $USERSYNC_TEST_PASSWORD } ] }
"#;

/// A gateway for `nats`.
fn gateway(nats: &NatsServer, dir: &Directory, log: &str) -> Result<Launch> {
    let program = tools::binary("usersync-gateway", Profile::own())?;
    let listen = format!("127.0.0.1:{}", free_port()?);
    let launch = Launch::new("gateway", program, dir.path().join(log));
    Ok(launch.args(["--listen", &listen]).nats(nats, "gateway"))
}

#[tokio::test]
async fn a_gateway_does_not_begin_empty_where_the_old_account_has_our_streams() -> Result<()> {
    let dir = Directory::temporary()?;
    let conf = dir.path().join("before.conf");
    fs::write(&conf, BEFORE)?;
    let before = NatsServer::start_with_conf(dir.path(), &conf).await?;
    let context = jetstream::new(before.connect().await?);
    let config = stream::Config {
        name: USER_STATE.to_owned(),
        subjects: vec!["user.state.*".to_owned()],
        ..stream::Config::default()
    };
    context.create_stream(config).await?;
    before.stop(GRACE).await?;

    let now = NatsServer::start(dir.path()).await?;
    let told = ["USER_STATE of the account $G", "docs/UPGRADING.md"];
    for arguments in [&["--check"][..], &[]] {
        let gateway = gateway(&now, &dir, "refused.log")?.args(arguments);
        let process = gateway.spawn()?;
        let status = process.wait_exit(GRACE).await?;
        let said = process.log_tail();
        ensure!(!status.success(), "{arguments:?}: {said}");
        ensure!(told.iter().all(|told| said.contains(told)), "{said}");
        fs::remove_file(gateway.log())?;
    }
    let context = jetstream::new(now.connect().await?);
    ensure!(context.get_stream(USER_STATE).await.is_err(), "it was made");

    // To begin empty is a decision: the folder is moved away.
    now.stop(GRACE).await?;
    let store = dir.path().join("nats/jetstream/$G");
    fs::rename(store, dir.path().join("before-accounts"))?;
    let now = NatsServer::start(dir.path()).await?;
    let process = gateway(&now, &dir, "empty.log")?.arg("--check").spawn()?;
    let status = process.wait_exit(GRACE).await?;
    ensure!(status.success(), "{}", process.log_tail());
    Ok(())
}

#[tokio::test]
async fn events_that_were_refused_before_are_brought_over_and_stay_to_be_shown() -> Result<()> {
    let mut stack = only("").start().await?;
    let bus = Bus::connect(&stack).await?;
    for (seq, body) in [(5, "{\"user_id\": 42, "), (6, "nothing")] {
        let mut headers = HeaderMap::new();
        headers.insert("Usersync-Class", "invalid");
        headers.insert("Usersync-Reason", "no JSON");
        headers.insert("Usersync-Subject", "user.created");
        let subject = format!("user.dead.gateway.{seq}");
        let stored = bus
            .jetstream()
            .publish_with_headers(subject, headers, body.into());
        stored.await?.await?;
    }
    let gateway = &mut stack.gateways[0];
    gateway.stop(GRACE).await?;
    gateway.restart().await?;
    eventually(LATER, async || {
        let (dead, refused) = (bus.count(USER_DEAD).await?, bus.count(USER_REFUSED).await?);
        ensure!(
            (dead, refused) == (0, 2),
            "{dead} and {refused} {REFUSED_EVENTS}"
        );
        Ok(())
    })
    .await?;
    let api = Api::of(&stack).await?;
    let shown = api
        .request("usersync.refused.show", json!({"seq": 5}))
        .await;
    let shown = shown.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    assert_eq!(shown["body"], "{\"user_id\": 42, ");
    assert_eq!(shown["subject"], "user.created");
    Ok(())
}
