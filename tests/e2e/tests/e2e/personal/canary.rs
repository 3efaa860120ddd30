//! Values planted in every field of users, then everything that can go wrong: they must be nowhere but where data belongs.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use axum::response::IntoResponse as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, MySqlConnection, PgConnection};
use usersync_core::subjects::{
    USER_ADVISORY, USER_ALERT, USER_CHECK, USER_DEAD, USER_REFUSED, USER_REPAIR, USER_RESULT,
};
use usersync_stack::{Directory, MariaDbServer, PostgresServer, Stack, eventually, http};

use super::search::Search;
use crate::support::{Api, Bus, Call, LATER, Recorder};

/// Everything that our own code has to say, and what libraries say to developers.
const LOGS: &str = "debug,usersync=trace,usersync_core=trace,usersync_gateway=trace,usersync_worker=trace,\
                    usersync_scheduler=trace,usersync_targets=trace,usersync_source=trace";
const QUICK: &str = "timeout = \"2s\"\nretry = { max_deliver = 2, base = \"50ms\", factor = 1.0, cap = \"50ms\" }\n\
                     breaker = { least = 10000, permanent = 10000, faults = 10000, window = \"10m\" }\nresults = true\ncheck = { every = \"0s\" }";

fn user(id: u64, more: Value) -> Value {
    let mut user = json!({
        "user_id": id, "username": format!("canary-name-{id}"), "email": format!("canary-{id}@example.com"),
        "data": {"phone": format!("canary-phone-{id}"), "canary_member": {"deep": ["canary-deep"]}, "status": "canary-status"},
        "canary_unknown": "canary-unknown",
    });
    if let (Some(user), Value::Object(more)) = (user.as_object_mut(), more) {
        user.extend(more);
    }
    user
}

/// Events that are none, each with something planted where it is wrong.
fn invalid() -> Vec<Vec<u8>> {
    let long = format!("canary-{}", "x".repeat(400));
    let deep = (0..40).fold(json!("canary-deep"), |inner, _| json!([inner]));
    let mut events: Vec<Vec<u8>> = [
        user(90, json!({"email": long})),
        user(90, json!({"email": {"canary": 1}})),
        user(90, json!({"username": ["canary"]})),
        user(90, json!({"user_id": "canary example"})),
        user(90, json!({"user_id": {"canary": 1}})),
        user(90, json!({"type": "canary"})),
        user(90, json!({"id": "canary with space"})),
        user(90, json!({"timestamp": "canary o'clock"})),
        user(90, json!({"status": ["canary"]})),
        user(90, json!({"data": deep})),
        user(90, json!({"source": "canary".repeat(40)})),
        json!(["canary"]),
        json!("canary"),
    ]
    .iter()
    .map(|event| event.to_string().into_bytes())
    .collect();
    events.push(b"{\"user_id\":90,\"email\":\"canary\xff\xfe@example.com\"}".to_vec());
    events.push(br#"{"user_id":90,"email":"canary@example.com"#.to_vec());
    events.push(br#"{"user_id":90,"email":"canary@example.com",,}"#.to_vec());
    events.push(br#"{"user_id":90,"email":"canary\u00"}"#.to_vec());
    events
}

/// Answers as told, with everything it was told as its body, header and more.
async fn parrot(status: u16) -> Result<Recorder> {
    let status = StatusCode::from_u16(status)?;
    Recorder::start(move |call: Call| {
        let headers = [
            ("x-told", "canary-header"),
            ("content-type", "application/json"),
        ];
        std::future::ready((status, headers, call.raw).into_response())
    })
    .await
}

const COLUMNS: &str = "username VARCHAR(40), email VARCHAR(100) UNIQUE, status VARCHAR(40), \
                       sync_version BIGINT, sync_deleted BOOLEAN, CHECK (username <> 'canary-name-3')";

struct Databases {
    _dir: Directory,
    _postgres: PostgresServer,
    _mariadb: MariaDbServer,
    entries: String,
}

impl Databases {
    async fn start() -> Result<Self> {
        let dir = Directory::temporary()?;
        let (postgres, mariadb) = tokio::try_join!(
            PostgresServer::start(dir.path()),
            MariaDbServer::start(dir.path())
        )?;
        let table = format!("CREATE TABLE users (id VARCHAR(64) PRIMARY KEY, {COLUMNS})");
        let mut client = PgConnection::connect(&postgres.url_with_password()).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(table))
            .execute(&mut client)
            .await?;
        let table = format!(
            "CREATE TABLE users (id VARCHAR(64) COLLATE utf8mb4_bin PRIMARY KEY, {COLUMNS})"
        );
        let mut client = MySqlConnection::connect(&mariadb.url_with_password()).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(table))
            .execute(&mut client)
            .await?;
        let mut entries = String::new();
        for (name, url, password) in [
            ("pg", postgres.url(), PostgresServer::PASSWORD),
            ("maria", mariadb.url(), MariaDbServer::PASSWORD),
        ] {
            let secret = dir.path().join(name);
            std::fs::write(&secret, password)?;
            writeln!(
                entries,
                "[{name}]\nurl = \"{url}\"\nsecret = \"file:{}\"\n{QUICK}\n\
                 table = {{ columns = {{ username = \"username\", email = \"email\", status = \"status\" }} }}",
                secret.display()
            )?;
        }
        Ok(Self {
            _dir: dir,
            _postgres: postgres,
            _mariadb: mariadb,
            entries,
        })
    }
}

#[tokio::test]
async fn what_is_planted_in_users_is_nowhere_but_where_it_belongs() -> Result<()> {
    let databases = Databases::start().await?;
    let (refuses, fails, gone) = tokio::try_join!(parrot(422), parrot(500), parrot(410))?;
    let takes = parrot(200).await?;
    let verify = format!(
        "verify = true\nread_url = \"{}/{{id}}\"\n{QUICK}",
        takes.url()
    );
    let entries = [
        databases.entries.clone(),
        format!("[redis-cache]\n{QUICK}\nverify = true\n"),
        refuses.target("refuses", QUICK),
        fails.target("fails", QUICK),
        gone.target("gone", QUICK),
        takes.target("verified", &verify),
        takes.target(
            "ruled",
            &format!("filter = \"int(user.data.phone) > 1\"\n{QUICK}"),
        ),
        takes.target(
            "computed",
            &format!("fields = {{ compute = {{ \"data.n\" = \"int(user.email)\" }} }}\n{QUICK}"),
        ),
    ];
    let stack = Stack::builder()
        .examples(false)
        .schedulers(1)
        .env("USERSYNC_LOG__FILTER", LOGS)
        .targets_toml(move |_| entries.concat())
        .start()
        .await?;
    let (api, bus) = (Api::of(&stack).await?, Bus::connect(&stack).await?);
    let mut search = Search::default();

    // Wrong keys in Redis, and two users with one address in the databases.
    let redis = redis::Client::open(stack.redis.url())?;
    let mut redis = redis.get_multiplexed_async_connection().await?;
    let _: () = redis::cmd("LPUSH")
        .arg("user:4")
        .arg("canary")
        .query_async(&mut redis)
        .await?;
    for id in 1..=6 {
        bus.publish("user.created", user(id, json!({}))).await?;
    }
    let same =
        json!({"email": "canary-1@example.com", "username": "canary'; DROP TABLE users; --"});
    bus.publish("user.created", user(7, same)).await?;
    let long = json!({"username": format!("canary-{}", "y".repeat(200)), "email": "canary\"<script>\\@ex\u{202e}ample.com"});
    bus.publish("user.created", user(8, long)).await?;
    let refused = invalid();
    for event in &refused {
        let sent = bus
            .jetstream()
            .publish("user.created", event.clone().into());
        sent.await?.await?;
        let url = format!("{}/v1/events", stack.gateway().url());
        let request = http::client()
            .post(url)
            .header("content-type", "application/json");
        let answer = request.body(event.clone()).send().await?;
        ensure!(answer.status().is_client_error(), "{}", answer.status());
        search.look("POST /v1/events", &answer.bytes().await?);
    }
    let targets = [
        "pg",
        "maria",
        "redis-cache",
        "refuses",
        "fails",
        "verified",
        "ruled",
        "computed",
    ];
    for target in targets {
        bus.until_settled(target).await?;
    }
    eventually(LATER, async || {
        for (target, user) in [
            ("pg", 3),
            ("pg", 7),
            ("pg", 8),
            ("maria", 3),
            ("maria", 7),
            ("maria", 8),
            ("redis-cache", 4),
            ("refuses", 1),
            ("fails", 1),
            ("verified", 1),
            ("ruled", 1),
            ("computed", 1),
        ] {
            ensure!(
                bus.dead_letter(target, user).await?.is_some(),
                "{target} took user {user}"
            );
        }
        ensure!(bus.count(USER_ALERT).await? > 0, "no alert");
        Ok(())
    })
    .await?;

    // Checks that find differences, previews that can't be made, requests that aren't understood.
    let _: () = redis::cmd("SET")
        .arg("user:2")
        .arg("{\"version\":1,\"username\":\"canary-2\"}")
        .query_async(&mut redis)
        .await?;
    let _: () = redis::cmd("SET")
        .arg("user:nobody-9")
        .arg("{}")
        .query_async(&mut redis)
        .await?;
    for target in ["redis-cache", "pg", "maria", "verified", "refuses"] {
        let path = format!("/v1/checks/{target}");
        let asked = api.call(Method::POST, &path, &[], Some(json!({}))).await?;
        ensure!(asked.status == 202, "{target} isn't checked");
    }
    eventually(LATER, async || {
        for target in ["redis-cache", "pg", "maria", "verified", "refuses"] {
            let report = api.get(&format!("/v1/checks/{target}")).await?;
            ensure!(
                report["last"]["stage"].is_string() || report["stage"].is_string(),
                "{report}"
            );
            ensure!(!report.to_string().contains("running"), "{report}");
        }
        Ok(())
    })
    .await?;
    for (method, path, body) in [
        (
            Method::POST,
            "/v1/targets/ruled/preview",
            json!({"user": user(1, json!({}))}),
        ),
        (
            Method::POST,
            "/v1/targets/computed/preview",
            json!({"user": user(1, json!({}))}),
        ),
        (
            Method::POST,
            "/v1/targets/ruled/preview",
            json!({"user": user(1, json!({"email": ["canary"]}))}),
        ),
        (
            Method::POST,
            "/v1/targets/ruled/preview",
            json!({"user_id": "canary example"}),
        ),
        (
            Method::POST,
            "/v1/repairs",
            json!({"target": "ruled", "user_id": "canary example"}),
        ),
        (
            Method::POST,
            "/v1/repairs",
            json!({"target": "ruled", "user_ids": "canary example"}),
        ),
        (Method::GET, "/v1/users/canary%20example", Value::Null),
        (
            Method::DELETE,
            "/v1/users/canary%20example/data",
            Value::Null,
        ),
    ] {
        let answer = api.call(method, path, &[], Some(body)).await?;
        search.look(path, answer.body.to_string().as_bytes());
    }
    for path in [
        "/v1/status",
        "/v1/targets",
        "/v1/dead-letters",
        "/v1/refused-events",
        "/v1/checks",
        "/v1/repairs",
        "/v1/breakers",
        "/v1/users/1/targets",
        "/v1/users/7/targets",
        "/v1/targets/pg",
        "/v1/dead-letters/pg/7",
        "/v1/openapi.json",
    ] {
        search.look(path, api.get(path).await?.to_string().as_bytes());
    }
    let workers = stack.workers.values().flatten();
    let services: Vec<_> = stack
        .gateways
        .iter()
        .chain(workers)
        .chain(&stack.schedulers)
        .collect();
    for service in &services {
        for path in ["/metrics", "/livez", "/readyz"] {
            let answer = http::client()
                .get(format!("{}{path}", service.url()))
                .send()
                .await?;
            search.look(
                &format!("{} {path}", service.name()),
                &answer.bytes().await?,
            );
        }
    }
    for target in targets {
        for question in ["status", "task"] {
            let subject = format!("usersync.worker.{question}.{target}");
            let answer = api.nats().request(subject.clone(), "\"7\"".into()).await?;
            search.look(&subject, &answer.payload);
        }
    }
    search.stream(&bus, USER_REFUSED, |_| true).await?;
    for stream in [
        USER_DEAD,
        USER_RESULT,
        USER_ALERT,
        USER_CHECK,
        USER_REPAIR,
        USER_ADVISORY,
    ] {
        search.stream(&bus, stream, |_| false).await?;
    }
    for bucket in ["user_targets", "user_breakers", "user_checks", "user_jobs"] {
        search
            .stream(&bus, &format!("KV_{bucket}"), |_| false)
            .await?;
    }
    let erased = api
        .request("usersync.users.erase", json!({"user_id": 1}))
        .await;
    search.look("users.erase", format!("{erased:?}").as_bytes());

    let mut logs = 0;
    let names: Vec<_> = services
        .iter()
        .map(|service| service.process().log().to_owned())
        .collect();
    for log in names {
        let text = std::fs::read(&log)?;
        ensure!(!text.is_empty(), "{} is empty", log.display());
        logs += text.len();
        search.look(&log.display().to_string(), &text);
    }
    ensure!(
        logs > 50_000 && search.looked_at > 100,
        "{logs} bytes of logs, {} places",
        search.looked_at
    );
    ensure!(
        bus.count(USER_REFUSED).await? >= refused.len() as u64,
        "nothing was refused"
    );
    let leaks: Vec<_> = search
        .leaks
        .iter()
        .map(|leak| leak.chars().take(400).collect::<String>())
        .collect();
    assert!(
        leaks.is_empty(),
        "{} leaks:\n{}",
        leaks.len(),
        leaks.join("\n")
    );
    Ok(())
}
