//! Each kind of alert: what raises it, and what resolves it.

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream;
use serde_json::{Value, json};
use usersync_core::subjects::{USER_EVENTS, USER_STATE};
use usersync_stack::{Directory, Stack, eventually};

use super::{USERNAME, hasty, history, until, user};
use crate::{
    monitoring::source,
    support::{Api, Bus, LATER, Recorder, SOON, answer, only},
};

const RAISED: &[&str] = &["raised"];
const BOTH: &[&str] = &["raised", "resolved"];

fn names(alerts: &Value) -> Vec<String> {
    let alerts = alerts["alerts"].as_array().cloned().unwrap_or_default();
    let name = |alert: &Value| {
        let text = |member: &str| alert[member].as_str().unwrap_or_default().to_owned();
        format!("{} {}", text("kind"), text("target"))
    };
    alerts.iter().map(name).collect()
}

#[tokio::test]
async fn a_target_that_is_away_raises_once_for_two_gateways_and_a_restart() -> Result<()> {
    let mut audit = Recorder::start(async |_| answer(200)).await?;
    let stack = hasty(only(audit.target("audit", ""))).gateways(2);
    let stack = stack.env(
        "USERSYNC_ALERTS__RUNBOOK",
        "https://wiki.example.com/RUNBOOK.md",
    );
    let mut stack = stack.start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    audit.stop().await;
    bus.publish("user.created", user(1)).await?;
    let breaker = until(&bus, "breaker", "audit", RAISED).await?;
    until(&bus, "backlog", "audit", RAISED).await?;
    assert_eq!(breaker["severity"], "critical");
    assert_eq!(
        breaker["runbook"],
        "https://wiki.example.com/RUNBOOK.md#breaker-open"
    );
    let listed = api.get("/v1/alerts").await?;
    assert_eq!(names(&listed), ["breaker audit", "backlog audit"]);
    assert_eq!(listed["alerts"][0], breaker);
    let asked = api.request("usersync.alerts.list", json!({})).await;
    assert_eq!(asked.map_err(|(_, text)| anyhow::anyhow!(text))?, listed);

    for gateway in &mut stack.gateways {
        gateway.restart().await?;
    }
    // That they have looked again is to be seen by what else they find.
    bus.publish("user.created", json!({"user_id": "not one"}))
        .await?;
    until(&bus, "dead", "gateway", RAISED).await?;
    assert_eq!(history(&bus, "breaker", "audit").await?.len(), 1);

    audit.listen().await?;
    let resolved = until(&bus, "breaker", "audit", BOTH).await?;
    until(&bus, "backlog", "audit", BOTH).await?;
    assert_eq!(
        (&resolved["id"], &resolved["since"]),
        (&breaker["id"], &breaker["since"])
    );
    ensure!(resolved["until"].is_string(), "{resolved}");
    let listed = api.get("/v1/alerts").await?;
    assert_eq!(names(&listed), ["dead gateway"]);
    ensure!(
        !format!("{resolved}{breaker}{listed}").contains(USERNAME),
        "{listed}"
    );
    Ok(())
}

#[tokio::test]
async fn a_target_without_a_worker_or_paused_says_so() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let stack = hasty(only(
        audit.target("audit", "") + &audit.target("lonely", ""),
    ));
    let mut stack = stack
        .workers("lonely", 0)
        .workers("audit", 0)
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", user(1)).await?;
    for target in ["audit", "lonely"] {
        until(&bus, "worker", target, RAISED).await?;
        until(&bus, "backlog", target, RAISED).await?;
    }
    // Somebody serves the one, the other is not to be served.
    stack.add_worker("audit").await?;
    api.post("/v1/targets/lonely/pause", json!({})).await?;
    for target in ["audit", "lonely"] {
        until(&bus, "worker", target, BOTH).await?;
        until(&bus, "backlog", target, BOTH).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_given_up_or_refused_is_told_until_it_is_settled() -> Result<()> {
    let audit = Recorder::start(async |_| answer(422)).await?;
    let stack = hasty(only(audit.target("audit", ""))).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", user(1)).await?;
    bus.publish("user.created", json!({"user_id": "not one"}))
        .await?;
    let dead = until(&bus, "dead", "audit", RAISED).await?;
    assert_eq!(dead["runbook"], "docs/RUNBOOK.md#dead-letters");
    until(&bus, "dead", "gateway", RAISED).await?;
    until(&bus, "failing", "audit", RAISED).await?;
    for operation in ["usersync.dead.discard", "usersync.refused.discard"] {
        let discarded = api.request(operation, json!({"all": true})).await;
        discarded.map_err(|(_, text)| anyhow::anyhow!("{operation}: {text}"))?;
    }
    until(&bus, "dead", "audit", BOTH).await?;
    until(&bus, "dead", "gateway", BOTH).await?;
    // Attempts are remembered for a minute.
    until(&bus, "failing", "audit", BOTH).await?;
    Ok(())
}

#[tokio::test]
async fn drift_lasts_until_a_check_finds_none_and_a_failed_check_until_one_is_done() -> Result<()> {
    let audit = Recorder::start(async |_| answer(200)).await?;
    let catalogue = audit.target("audit", "");
    let stack = hasty(
        Stack::builder()
            .examples(false)
            .targets_toml(move |_| catalogue),
    );
    let stack = stack.schedulers(1).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    bus.publish("user.created", user(1)).await?;
    bus.until_settled("redis-cache").await?;
    let client = redis::Client::open(stack.redis.url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let text: String = redis::cmd("GET")
        .arg("user:1")
        .query_async(&mut connection)
        .await?;
    let text = text.replace(USERNAME, "somebody");
    let _: () = redis::cmd("SET")
        .arg("user:1")
        .arg(text)
        .query_async(&mut connection)
        .await?;
    let check = async |target: &str, body: Value| {
        let began = jiff::Timestamp::now().to_string();
        // One of some users is beside that of all, as is a dry run.
        let some = body.get("from").is_some();
        bus.publish(&format!("user.check.{target}"), body).await?;
        eventually(SOON, async || {
            let report = api.get(&format!("/v1/checks/{target}?some={some}")).await?;
            let (stage, started) = (&report["stage"], report["started"].as_str());
            ensure!(stage != "running" && started > Some(&began), "{report}");
            Ok(report)
        })
        .await
    };
    // Whoever asked for a dry run has the answer; nobody else is told.
    let dry_run = check("redis-cache", json!({"dry_run": true})).await?;
    assert_eq!(dry_run["found"]["different"]["users"], 1, "{dry_run}");
    check("redis-cache", json!({"from": 1, "to": 3, "dry_run": true})).await?;
    let told = history(&bus, "drift", "redis-cache").await?;
    assert_eq!(told.len(), 0, "{told:?}");
    check("redis-cache", json!({})).await?;
    let drift = until(&bus, "drift", "redis-cache", RAISED).await?;
    assert_eq!(drift["found"], json!({"different": 1}));
    bus.until_settled("redis-cache").await?;
    // One of other users proves nothing.
    check("redis-cache", json!({"from": 2, "to": 3})).await?;
    until(&bus, "drift", "redis-cache", RAISED).await?;
    check("redis-cache", json!({})).await?;
    let resolved = until(&bus, "drift", "redis-cache", BOTH).await?;
    assert_eq!(resolved["id"], drift["id"]);

    let failed = check("audit", json!({})).await?;
    ensure!(failed["stage"] == "failed", "{failed}");
    until(&bus, "check", "audit", RAISED).await?;
    api.delete("/v1/targets/audit").await?;
    until(&bus, "check", "audit", BOTH).await?;
    Ok(())
}

#[tokio::test]
async fn a_check_that_nobody_does_any_more_is_overdue_until_one_is_done() -> Result<()> {
    let often = "[redis-cache]\ncheck = { every = \"10s\" }\n".to_owned();
    let stack = Stack::builder().examples(false).targets_toml(|_| often);
    let mut stack = hasty(stack).schedulers(1).start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    // One is done by itself, and everything is well.
    eventually(LATER, async || {
        let report = api.get("/v1/checks/redis-cache").await?;
        ensure!(report["stage"] == "done", "{report}");
        Ok(())
    })
    .await?;
    stack.schedulers[0].kill9().await;
    let overdue = until(&bus, "check", "redis-cache", RAISED).await?;
    let summary = overdue["summary"].as_str().unwrap_or_default();
    ensure!(summary.contains("redis-cache is overdue"), "{overdue}");
    assert_eq!(overdue["runbook"], "docs/RUNBOOK.md#check-failed");
    stack.schedulers[0].restart().await?;
    let resolved = until(&bus, "check", "redis-cache", BOTH).await?;
    assert_eq!(resolved["id"], overdue["id"]);

    // Nobody expects one that is paused.
    bus.kv_put("user_checks", "pause.redis-cache", "").await?;
    stack.schedulers[0].kill9().await;
    eventually(LATER, async || {
        let report = api.get("/v1/checks/redis-cache").await?;
        let started: jiff::Timestamp = report["started"].as_str().context("never")?.parse()?;
        let age = jiff::Timestamp::now().duration_since(started);
        ensure!(age.as_secs() > 22, "{report}");
        Ok(())
    })
    .await?;
    // That somebody has looked since is to be seen by what else is found.
    bus.publish("user.created", json!({"user_id": "not one"}))
        .await?;
    until(&bus, "dead", "gateway", RAISED).await?;
    until(&bus, "check", "redis-cache", BOTH).await?;
    Ok(())
}

#[tokio::test]
async fn the_check_of_the_states_is_overdue_for_a_gateway_that_knows_no_main_database() -> Result<()>
{
    let dir = Directory::temporary()?;
    let (settings, _main) = source(dir.path()).await?;
    let often = "[sources.main.check]\nevery = \"10s\"\n";
    std::fs::write(&settings, std::fs::read_to_string(&settings)? + often)?;
    let stack = hasty(only("")).schedulers(1);
    let stack = stack.scheduler_args(["--config".as_ref(), settings.as_os_str()]);
    let mut stack = stack.start().await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    eventually(LATER, async || {
        let report = api.get("/v1/checks/gateway").await?;
        ensure!(report["stage"] == "done", "{report}");
        Ok(())
    })
    .await?;
    stack.schedulers[0].kill9().await;
    let overdue = until(&bus, "check", "gateway", RAISED).await?;
    let summary = overdue["summary"].as_str().unwrap_or_default();
    ensure!(summary.contains("gateway is overdue"), "{overdue}");
    stack.schedulers[0].restart().await?;
    until(&bus, "check", "gateway", BOTH).await?;
    Ok(())
}

#[tokio::test]
async fn a_stream_of_events_that_fills_what_an_operator_grants_it_is_told() -> Result<()> {
    let stack = hasty(only("")).start().await?;
    let bus = Bus::connect(&stack).await?;
    let grant = async |bytes| {
        let events = bus.jetstream().get_stream(USER_EVENTS).await?;
        let config = events.cached_info().config.clone();
        let granted = jetstream::stream::Config {
            max_bytes: bytes,
            ..config
        };
        bus.jetstream().update_stream(&granted).await?;
        anyhow::Ok(())
    };
    grant(100_000).await?;
    let long = "x".repeat(1_000);
    bus.publish_all((1..=80).map(|id| {
        let event = json!({"user_id": id, "data": {"note": long}});
        ("user.created", event)
    }))
    .await?;
    let told = until(&bus, "storage", "gateway", RAISED).await?;
    let summary = told["summary"].as_str().unwrap_or_default();
    ensure!(summary.contains("of 100000 bytes"), "{told}");
    grant(1_000_000).await?;
    until(&bus, "storage", "gateway", BOTH).await?;
    Ok(())
}

#[tokio::test]
async fn events_that_nobody_merges_and_a_full_store_are_told() -> Result<()> {
    let stack = hasty(only(""))
        .env("USERSYNC_ALERTS__STORE_GIB", "1")
        .env("USERSYNC_ALERTS__STORAGE", "0.002");
    let mut stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    let long = "x".repeat(1_000);
    let event = |id: u64| {
        (
            "user.created",
            json!({"user_id": id, "data": {"note": long}}),
        )
    };
    bus.publish_all((1..=3_000).map(event)).await?;
    bus.until_taken_in().await?;
    until(&bus, "storage", "gateway", RAISED).await?;
    // The states are gone, and can't be made again from what is left of the events.
    stack.gateways[0].kill9().await;
    let events = bus.jetstream().get_stream(USER_EVENTS).await?;
    events.purge().await?;
    let states = bus.jetstream().get_stream(USER_STATE).await?;
    states.purge().await?;
    let (kind, body) = event(7);
    bus.publish(kind, body).await?;
    let restarted = stack.gateways[0].restart().await;
    let why = restarted.err().context("it says that it is ready")?;
    ensure!(
        format!("{why:#}").contains("USER_STATE is empty"),
        "{why:#}"
    );
    until(&bus, "intake", "gateway", RAISED).await?;
    until(&bus, "storage", "gateway", BOTH).await?;
    // A bulk load brings most of them back.
    for user in 1..=1_600 {
        let state = json!({"user_id": user, "version": 1, "event_seq": 1});
        bus.put_state(&state).await?;
    }
    until(&bus, "intake", "gateway", BOTH).await?;
    Ok(())
}

#[tokio::test]
async fn an_outbox_that_nobody_can_read_is_told_by_none_of_two_gateways_twice() -> Result<()> {
    let dir = Directory::temporary()?;
    let (settings, main) = source(dir.path()).await?;
    // On a busy machine the first of two gateways may need more than a second to begin.
    let stack = hasty(only("")).env("USERSYNC_ALERTS__OUTBOX", "8s");
    let stack = stack.gateways(2);
    let stack = stack.gateway_args(["--config".as_ref(), settings.as_os_str()]);
    let stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    // A row that makes no event: its id can't be one.
    sqlx::query("INSERT INTO people VALUES (-1, 'ann', NULL)")
        .execute(&main)
        .await?;
    until(&bus, "rows", "main", RAISED).await?;
    assert!(history(&bus, "outbox", "main").await?.is_empty());
    // Renamed, the outbox is gone for both of them.
    let rename = async |from: &str, to: &str| {
        let statement = format!("ALTER TABLE {from} RENAME TO {to}");
        eventually(SOON, async || {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement.clone()))
                .execute(&main)
                .await?;
            Ok(())
        })
        .await
    };
    rename("user_outbox", "away").await?;
    let raised = until(&bus, "outbox", "main", RAISED).await?;
    assert_eq!(raised["runbook"], "docs/RUNBOOK.md#outbox-stuck");
    rename("away", "user_outbox").await?;
    until(&bus, "outbox", "main", BOTH).await?;
    sqlx::query("DELETE FROM user_outbox")
        .execute(&main)
        .await?;
    until(&bus, "rows", "main", BOTH).await?;
    Ok(())
}
