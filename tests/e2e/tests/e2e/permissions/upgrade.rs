//! From one account to several: nothing begins empty by mistake, and what was refused before is brought over.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use async_nats::{
    HeaderMap,
    jetstream::{self, stream},
};
use serde_json::json;
use usersync_core::subjects::{REFUSED_EVENTS, USER_DEAD, USER_REFUSED, USER_STATE};
use usersync_stack::{
    Directory, Launch, NatsServer, Profile, ROLES, Stack, eventually, free_port, tools,
};

use crate::support::{Api, Bus, LATER, only};

const GRACE: Duration = Duration::from_secs(20);
/// The target that a stack has by itself.
const CACHE: &str = "redis-cache";

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

/// How many more states are moved: `USERSYNC_LONG=1` makes it a million.
fn many() -> u64 {
    match env::var_os("USERSYNC_LONG") {
        Some(_) => 1_000_000,
        None => 1_000,
    }
}

/// Runs the script of docs/UPGRADING.md as whoever may do everything; what it said.
async fn move_streams(script: &Path, stack: &Stack, action: &str) -> Result<String> {
    let mut shell = tokio::process::Command::new("sh");
    shell
        .arg(script)
        .args([action, "backup"])
        .current_dir(stack.dir())
        .env("PATH", tools::path_with(&tools::nats_cli()?))
        .env("NATS_URL", stack.nats.test_url())
        .kill_on_drop(true);
    let output = tokio::time::timeout(10 * LATER, shell.output()).await??;
    let [told, problem] =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    ensure!(output.status.success(), "{action}: {told}{problem}");
    Ok(told)
}

#[tokio::test]
async fn streams_move_to_another_account_with_their_consumers_and_go_on() -> Result<()> {
    if tools::is_left_out("nats", &tools::nats_cli())? {
        return Ok(());
    }
    let dir = Directory::temporary()?;
    let conf = dir.path().join("before.conf");
    let user = |name: &str| {
        format!(
            "{{ user: {name}, password: $USERSYNC_{}_PASSWORD }}",
            name.to_uppercase()
        )
    };
    let users = ROLES.map(user).join("\n");
    fs::write(
        &conf,
        BEFORE.replace("users: [", &format!("users: [ {users}\n")),
    )?;
    let mut stack = Stack::builder()
        .examples(false)
        .nats_conf(&conf)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    for user in 1..=100 {
        bus.publish(
            "user.created",
            json!({"user_id": user, "username": format!("u{user}")}),
        )
        .await?;
    }
    bus.until_settled(CACHE).await?;
    let before = bus.state(7).await?;
    stack.gateways[0].stop(GRACE).await?;
    stack.workers.get_mut(CACHE).context("no worker")?[0]
        .stop(GRACE)
        .await?;
    // Whoever publishes stops last: these wait for intake.
    for user in 101..=110 {
        bus.publish("user.created", json!({"user_id": user, "username": "late"}))
            .await?;
    }
    let planted = (1_000..1_000 + many()).map(|user| {
        let mut state = before.clone();
        (state["user_id"], state["username"]) = (json!(user), json!(format!("u{user}")));
        (format!("user.state.{user}"), state)
    });
    bus.publish_all(planted).await?;
    let script = tools::repository().join("deploy/upgrade/accounts.sh");
    move_streams(&script, &stack, "backup").await?;

    stack.nats.stop(GRACE).await?;
    let store = stack.dir().join("nats/jetstream/$G");
    fs::rename(store, stack.dir().join("before-accounts"))?;
    let now = NatsServer::builder(stack.dir()).port(stack.nats.port());
    stack.nats = now.start().await?;
    let told = move_streams(&script, &stack, "restore").await?;
    ensure!(
        told.contains("all streams and consumers are as they were"),
        "{told}"
    );

    let bus = Bus::connect(&stack).await?;
    assert_eq!(bus.count(USER_STATE).await?, 100 + many());
    stack.gateways[0].restart().await?;
    stack.workers.get_mut(CACHE).context("no worker")?[0]
        .restart()
        .await?;
    eventually(10 * LATER, async || {
        bus.until_taken_in().await?;
        bus.until_settled(CACHE).await
    })
    .await?;
    assert_eq!(bus.state(7).await?, before);
    assert_eq!(bus.state(107).await?["username"], "late");
    assert_eq!(bus.state(107).await?["epoch"], before["epoch"]);
    let metrics = stack.worker_metrics(CACHE).await?;
    let delivered = metrics.sum("usersync_deliveries_total", &[]);
    assert_eq!(
        delivered,
        many() as f64 + 10.0,
        "what was acknowledged isn't delivered again"
    );
    Ok(())
}

#[tokio::test]
async fn a_stream_that_does_not_come_back_as_it_was_is_told() -> Result<()> {
    if tools::is_left_out("nats", &tools::nats_cli())? {
        return Ok(());
    }
    let stack = only("").start().await?;
    let bus = Bus::connect(&stack).await?;
    bus.publish("user.created", json!({"user_id": 1})).await?;
    bus.until_taken_in().await?;
    let script = tools::repository().join("deploy/upgrade/accounts.sh");
    move_streams(&script, &stack, "backup").await?;
    let standing = stack.dir().join("backup/USER_STATE.standing");
    let said = fs::read_to_string(&standing)?;
    fs::write(&standing, said.replace("\"messages\":1", "\"messages\":2"))?;
    let streams = stack.dir().join("backup/streams");
    fs::write(&streams, format!("{USER_STATE}\n"))?;
    bus.jetstream().delete_stream(USER_STATE).await?;
    let restored = move_streams(&script, &stack, "restore").await;
    let told = format!("{:#}", restored.err().context("it said all is well")?);
    ensure!(told.contains("USER_STATE isn't as it was"), "{told}");
    fs::remove_file(stack.dir().join("backup/ended"))?;
    let restored = move_streams(&script, &stack, "restore").await;
    let told = format!(
        "{:#}",
        restored.err().context("a backup that broke off is none")?
    );
    ensure!(told.contains("no backup that ended well"), "{told}");
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
