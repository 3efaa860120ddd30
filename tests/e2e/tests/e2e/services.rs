//! The whole of it: three real services and Redis hold the same users.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use redis::AsyncTypedCommands as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use usersync_core::subjects::USER_EVENTS;
use usersync_stack::{Stack, eventually, http};

use crate::support::{Bus, SOON};

const SERVICES: [(&str, &str); 2] = [
    ("user-service", "/api/v1/users"),
    ("unified-auth", "/api/v1/users"),
];

/// The services with what the tests do to them.
struct World {
    stack: Stack,
    bus: Bus,
    http: reqwest::Client,
    redis: redis::aio::MultiplexedConnection,
}

impl World {
    async fn start() -> Result<Self> {
        let stack = Stack::builder().start().await?;
        let bus = Bus::connect(&stack).await?;
        let redis = redis::Client::open(stack.redis.url())?;
        let redis = redis.get_multiplexed_async_connection().await?;
        Ok(Self {
            stack,
            bus,
            http: http::client(),
            redis,
        })
    }

    /// Calls a service: the status and the body it answers.
    async fn call(
        &self,
        method: Method,
        service: &str,
        path: &str,
        body: Value,
    ) -> Result<(StatusCode, Value)> {
        let base = match service {
            "gateway" => self.stack.gateway(),
            name => self.stack.example(name),
        };
        let mut request = self.http.request(method, format!("{}{path}", base.url()));
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        Ok((
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        ))
    }

    /// Registers a user at basic-server; answers the id.
    async fn register(&self, username: &str, password: &str) -> Result<u64> {
        let body = json!({
            "username": username, "email": format!("{username}@example.com"),
            "password": password, "phone": "0731 1",
        });
        let (status, user) = self
            .call(Method::POST, "basic-server", "/api/v1/auth/register", body)
            .await?;
        ensure!(status == 201, "{status}: {user}");
        user["id"].as_u64().context("the answer has no id")
    }

    async fn log_in(&self, username: &str, password: &str) -> Result<StatusCode> {
        let body = json!({"username": username, "password": password});
        let answer = self.call(Method::POST, "unified-auth", "/api/v1/auth/login", body);
        Ok(answer.await?.0)
    }

    /// What each target holds of a user: null where there is none.
    async fn copies(&self, user: u64) -> Result<Vec<(&'static str, Value)>> {
        let mut copies = Vec::new();
        for (name, path) in SERVICES {
            let path = format!("{path}/{user}");
            let (status, held) = self.call(Method::GET, name, &path, Value::Null).await?;
            match status.as_u16() {
                200 => copies.push((name, held)),
                404 => copies.push((name, Value::Null)),
                _ => anyhow::bail!("{name} answers {status}: {held}"),
            }
        }
        let text = self.redis.clone().get(format!("user:{user}")).await?;
        let held = text.map_or(Ok(Value::Null), |text| serde_json::from_str(&text))?;
        copies.push(("redis-cache", held));
        Ok(copies)
    }

    /// Waits until every target holds exactly the newest state, and that is what `is_it` accepts.
    async fn until_everywhere(&self, user: u64, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(SOON, async || {
            let state = self.bus.state(user).await?;
            ensure!(is_it(&state), "the state is {state}");
            let newest = portrait(&state);
            for (target, held) in self.copies(user).await? {
                let held = portrait(&held);
                ensure!(
                    held == newest,
                    "{target} holds {held}, the newest is {newest}"
                );
            }
            Ok(state)
        })
        .await
    }
}

/// What all copies of a user have in common; null when the user is gone.
fn portrait(user: &Value) -> Value {
    if user.is_null() || user["deleted"] == true {
        return Value::Null;
    }
    let mut data = user["data"].clone();
    if let Some(data) = data.as_object_mut() {
        data.remove("password_hash");
    }
    json!({
        "user_id": user["user_id"], "username": user["username"], "email": user["email"],
        "status": user["status"], "data": data, "version": user["version"],
    })
}

#[tokio::test]
async fn what_is_posted_to_the_gateway_is_held_by_every_target() -> Result<()> {
    let world = World::start().await?;
    let post = async |event: Value| {
        let answer = world.call(Method::POST, "gateway", "/v1/events", event);
        let (status, body) = answer.await?;
        ensure!(status == 202, "{status}: {body}");
        Ok(())
    };
    post(
        json!({"type": "user.created", "user_id": 42, "username": "ann", "email": "ann@example.com",
                "data": {"phone": "1", "status": "active"}}),
    )
    .await?;
    world
        .until_everywhere(42, |state| state["username"] == "ann")
        .await?;

    post(json!({"type": "user.updated", "user_id": "42", "email": null, "data": {"phone": null, "city": "Ulm"}})).await?;
    let state = world
        .until_everywhere(42, |state| state["data"]["city"] == "Ulm")
        .await?;
    assert_eq!(state["data"], json!({"city": "Ulm", "status": "active"}));
    assert_eq!(state.get("email"), None);

    post(json!({"type": "user.deleted", "user_id": 42})).await?;
    world
        .until_everywhere(42, |state| state["deleted"] == true)
        .await?;
    for (target, held) in world.copies(42).await? {
        assert_eq!(held, Value::Null, "{target}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_published_on_nats_is_held_by_every_target() -> Result<()> {
    let world = World::start().await?;
    let event = json!({"user_id": 42, "username": "ann", "data": {"status": "active"}});
    world.bus.publish("user.created", event).await?;
    world
        .until_everywhere(42, |state| state["username"] == "ann")
        .await?;

    let event = json!({"user_id": 42, "data": {"status": "suspended"}});
    world.bus.publish("user.status_changed", event).await?;
    world
        .until_everywhere(42, |state| state["status"] == "suspended")
        .await?;

    world
        .bus
        .publish("user.deleted", json!({"user_id": 42}))
        .await?;
    world
        .until_everywhere(42, |state| state["deleted"] == true)
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_registered_user_lives_and_dies_everywhere() -> Result<()> {
    let world = World::start().await?;
    let id = world.register("ann", "correct horse").await?;
    let path = format!("/api/v1/users/{id}");
    world
        .until_everywhere(id, |state| {
            state["username"] == "ann" && state["data"]["phone"] == "0731 1"
        })
        .await?;

    let change = json!({"email": "new@example.com", "phone": null});
    let (status, _) = world
        .call(Method::PUT, "basic-server", &path, change)
        .await?;
    assert_eq!(status, 200);
    world
        .until_everywhere(id, |state| {
            state["email"] == "new@example.com" && state["data"].get("phone").is_none()
        })
        .await?;

    let (status, _) = world
        .call(Method::DELETE, "basic-server", &path, Value::Null)
        .await?;
    assert_eq!(status, 204);
    world
        .until_everywhere(id, |state| state["deleted"] == true)
        .await?;
    Ok(())
}

#[tokio::test]
async fn the_password_hash_reaches_unified_auth_and_nobody_else() -> Result<()> {
    let world = World::start().await?;
    let id = world.register("ann", "correct horse").await?;
    let state = world
        .until_everywhere(id, |state| state["username"] == "ann")
        .await?;
    let hash = state["data"]["password_hash"]
        .as_str()
        .context("no hash was published")?;
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    for (target, held) in world.copies(id).await? {
        let text = held.to_string();
        assert!(
            !text.contains("argon2") && !text.contains("password_hash"),
            "{target}: {text}"
        );
        if target == "unified-auth" {
            assert_eq!(held["has_password"], true);
        }
    }

    assert_eq!(world.log_in("ann", "correct horse").await?, 200);
    assert_eq!(world.log_in("ann", "wrong horse").await?, 401);
    assert_eq!(world.log_in("bob", "correct horse").await?, 401);

    let change = json!({"password": "battery staple"});
    let path = format!("/api/v1/users/{id}");
    let (status, _) = world
        .call(Method::PUT, "basic-server", &path, change)
        .await?;
    assert_eq!(status, 200);
    eventually(SOON, async || {
        let status = world.log_in("ann", "battery staple").await?;
        ensure!(status == 200, "{status}");
        Ok(())
    })
    .await?;
    assert_eq!(world.log_in("ann", "correct horse").await?, 401);
    Ok(())
}

#[tokio::test]
async fn five_wrong_passwords_lock_the_account_everywhere() -> Result<()> {
    let world = World::start().await?;
    let id = world.register("ann", "correct horse").await?;
    world
        .until_everywhere(id, |state| state["status"] == "active")
        .await?;

    for _ in 0..5 {
        assert_eq!(world.log_in("ann", "wrong horse").await?, 401);
    }
    assert_eq!(world.log_in("ann", "correct horse").await?, 423);
    let state = world
        .until_everywhere(id, |state| state["status"] == "locked")
        .await?;
    assert_eq!(state["event"]["source"], "unified-auth");
    assert_eq!(world.log_in("ann", "correct horse").await?, 423);
    Ok(())
}

#[tokio::test]
async fn a_change_made_at_a_target_reaches_the_others() -> Result<()> {
    let world = World::start().await?;
    let id = world.register("ann", "correct horse").await?;
    world
        .until_everywhere(id, |state| state["username"] == "ann")
        .await?;

    let path = format!("/api/v1/users/{id}/profile");
    let profile = json!({"city": "Ulm"});
    let (status, _) = world
        .call(Method::PUT, "user-service", &path, profile)
        .await?;
    assert_eq!(status, 200);
    let state = world
        .until_everywhere(id, |state| state["data"]["city"] == "Ulm")
        .await?;
    assert_eq!(state["event"]["source"], "user-service");
    // user-service has never seen the hash, and its change leaves it alone.
    assert_eq!(world.log_in("ann", "correct horse").await?, 200);

    let path = format!("/api/v1/users/{id}/status");
    let status = json!({"status": "suspended"});
    let (status, _) = world
        .call(Method::PUT, "user-service", &path, status)
        .await?;
    assert_eq!(status, 200);
    world
        .until_everywhere(id, |state| state["status"] == "suspended")
        .await?;
    Ok(())
}

#[tokio::test]
async fn what_a_service_receives_is_no_new_event() -> Result<()> {
    let world = World::start().await?;
    for user in 1..=20 {
        let event = json!({"user_id": user, "username": format!("name-{user}")});
        world.bus.publish("user.created", event).await?;
    }
    for user in 1..=20 {
        world
            .until_everywhere(user, |state| !state.is_null())
            .await?;
    }
    for target in ["user-service", "unified-auth", "redis-cache"] {
        world.bus.until_settled(target).await?;
    }
    // Stopping makes the services publish whatever they still have.
    for (service, _) in SERVICES {
        world
            .stack
            .example(service)
            .stop(Duration::from_secs(10))
            .await?;
    }
    assert_eq!(world.bus.count(USER_EVENTS).await?, 20);
    Ok(())
}
