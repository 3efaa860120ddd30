//! What the gateway and each target hold, in one form: id → the members to compare.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

/// Users by id.
pub(super) type Users = BTreeMap<String, Value>;

const MEMBERS: [&str; 5] = ["username", "email", "status", "data", "version"];
const PAGE: usize = 500;
const AT_ONCE: usize = 16;

/// The gateway's state of one user; deleted and unknown users are `None`.
pub(super) async fn state(client: &Client, gateway: &str, id: &str) -> Result<Option<Value>> {
    let url = format!("{gateway}/v1/users/{id}");
    let answer = client
        .get(&url)
        .send()
        .await
        .with_context(|| format!("GET {url}"))?;
    match answer.status() {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => {
            let state: Value = answer.json().await.with_context(|| format!("GET {url}"))?;
            Ok((state["deleted"] != true).then(|| members(&state)))
        }
        status => bail!("GET {url} answers {status}"),
    }
}

/// The gateway's states of these users, without the deleted ones.
pub(super) async fn states(client: &Client, gateway: &str, ids: Vec<String>) -> Result<Users> {
    stream::iter(ids)
        .map(async |id| Ok(state(client, gateway, &id).await?.map(|state| (id, state))))
        .buffer_unordered(AT_ONCE)
        .try_filter_map(async |found| Ok(found))
        .try_collect()
        .await
}

/// Everything an example service lists under `/api/v1/users`.
pub(super) async fn service(client: &Client, base: &str) -> Result<Users> {
    let mut users = Users::new();
    let mut after = String::new();
    loop {
        let url = format!("{base}/api/v1/users?limit={PAGE}{after}");
        let answer = client
            .get(&url)
            .send()
            .await
            .with_context(|| format!("GET {url}"))?;
        let answer = answer.error_for_status().context("listing users")?;
        let page: Value = answer.json().await.with_context(|| format!("GET {url}"))?;
        for user in page["users"].as_array().into_iter().flatten() {
            users.insert(plain(&user["user_id"]), members(user));
        }
        if page["next"].is_null() {
            return Ok(users);
        }
        after = format!("&after={}", plain(&page["next"]));
    }
}

/// Every `user:<id>` in Redis.
pub(super) async fn redis(url: &str) -> Result<Users> {
    let read = async {
        let client = redis::Client::open(url)?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("user:*")
            .query_async(&mut connection)
            .await?;
        // Keys with a space remember the versions of deleted users.
        let keys: Vec<String> = keys.into_iter().filter(|key| !key.contains(' ')).collect();
        if keys.is_empty() {
            return Ok((keys, Vec::new()));
        }
        let documents: Vec<Option<String>> = redis::cmd("MGET")
            .arg(&keys)
            .query_async(&mut connection)
            .await?;
        redis::RedisResult::Ok((keys, documents))
    };
    let (keys, documents) = read.await.with_context(|| format!("reading {url}"))?;
    let mut users = Users::new();
    for (key, document) in keys.into_iter().zip(documents) {
        let Some(document) = document else { continue };
        let document: Value = serde_json::from_str(&document)
            .with_context(|| format!("{key} in {url} is no JSON"))?;
        users.insert(key["user:".len()..].to_owned(), members(&document));
    }
    Ok(users)
}

/// The members that are compared. A service that hides password hashes tells whether it has one.
fn members(user: &Value) -> Value {
    let mut members = json!({});
    for name in MEMBERS {
        members[name] = user[name].clone();
    }
    members["has_password"] = match user.get("has_password") {
        Some(told) => told.clone(),
        None => json!(user["data"]["password_hash"].is_string()),
    };
    if let Some(data) = members["data"].as_object_mut() {
        data.remove("password_hash");
    }
    members
}

/// 42 and "42" are the same user.
fn plain(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_hash_is_noticed_and_never_kept() {
        let held =
            members(&json!({ "username": "ann", "data": { "password_hash": "$argon2id$" } }));
        assert_eq!(held["has_password"], true);
        assert!(!held.to_string().contains("argon2"));
        let hidden = members(&json!({ "username": "ann", "has_password": true, "data": {} }));
        assert_eq!(hidden["has_password"], true);
        assert_eq!(members(&json!({ "data": {} }))["has_password"], false);
    }
}
