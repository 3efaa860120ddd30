//! A whole stack: it comes up, grows, goes down cleanly and continues on the same data.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::{Service, Stack, eventually, http};

const SOON: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_stack_grows_and_stops_cleanly() -> Result<()> {
    let mut stack = Stack::builder().workers("unified-auth", 2).start().await?;
    assert_eq!(stack.workers["unified-auth"].len(), 2);
    assert_eq!(stack.workers["redis-cache"].len(), 1);
    stack.add_worker("redis-cache").await?;
    stack.add_gateway().await?;

    let told = stack.describe();
    let pids: Vec<i64> = pids(&told);
    // NATS, Redis, two gateways, two workers for each of two targets, one for the third, three examples.
    assert_eq!(pids.len(), 2 + 2 + 5 + 3, "{told}");
    let metrics = stack.worker_metrics("unified-auth").await?;
    let delivered = [("target", "unified-auth")];
    assert_eq!(metrics.sum("usersync_deliveries_total", &delivered), 0.0);
    let dir = stack.dir().to_owned();
    stack.stop().await?;
    assert!(!dir.exists());
    Ok(())
}

#[tokio::test]
async fn a_kept_directory_is_continued() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let stack = Stack::builder().dir(dir.path()).start().await?;
    register(stack.example("basic-server"), "ann").await?;
    until_held(&stack, "ann").await?;
    stack.stop().await?;

    let stack = Stack::builder().dir(dir.path()).start().await?;
    until_held(&stack, "ann").await?;
    let state = get(&format!("{}/v1/users/1", stack.gateway().url())).await?;
    assert_eq!(state["username"], "ann");
    // New events follow the old ones, on other ports than before.
    register(stack.example("basic-server"), "ben").await?;
    until_held(&stack, "ben").await
}

#[tokio::test]
async fn the_process_that_dies_is_named() -> Result<()> {
    let stack = Stack::builder().examples(false).start().await?;
    assert_eq!(stack.workers.keys().collect::<Vec<_>>(), ["redis-cache"]);
    let (told, ()) = tokio::join!(stack.ended(), stack.workers["redis-cache"][0].kill9());
    assert!(
        told.starts_with("worker-redis-cache-1 has ended (signal: 9"),
        "{told}"
    );
    Ok(())
}

#[tokio::test]
async fn targets_of_ones_own_get_a_worker() -> Result<()> {
    let stack = Stack::builder()
        .examples(false)
        .targets_toml(|endpoints| {
            format!(
                "[second-cache]\nurl = \"redis://127.0.0.1:{}/1\"\n",
                endpoints.redis
            )
        })
        .start()
        .await?;
    assert_eq!(
        stack.workers.keys().collect::<Vec<_>>(),
        ["redis-cache", "second-cache"]
    );
    stack.stop().await
}

async fn register(basic_server: &Service, name: &str) -> Result<()> {
    let url = format!("{}/api/v1/auth/register", basic_server.url());
    let email = format!("{name}@example.com");
    let body = json!({ "username": name, "email": email, "password": "correct horse" });
    let answer = http::client().post(url).json(&body).send().await?;
    ensure!(
        answer.status() == 201,
        "registering {name}: {}",
        answer.status()
    );
    Ok(())
}

/// Waits until user-service holds somebody of that name.
async fn until_held(stack: &Stack, name: &str) -> Result<()> {
    let url = format!("{}/api/v1/users", stack.example("user-service").url());
    eventually(SOON, async || {
        let users = get(&url).await?;
        let found = users["users"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|user| user["username"] == name);
        ensure!(found, "no {name} in {users}");
        Ok(())
    })
    .await
}

async fn get(url: &str) -> Result<Value> {
    let text = http::get_text(&http::client(), url).await?;
    serde_json::from_str(&text).with_context(|| format!("{url} answers {text}"))
}

/// Every `"pid"` in the description.
fn pids(told: &Value) -> Vec<i64> {
    match told {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match value.as_i64() {
                Some(pid) if name == "pid" => vec![pid],
                _ => pids(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(pids).collect(),
        _ => Vec::new(),
    }
}
