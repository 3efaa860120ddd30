//! Target kinds called directly: batches, reading back, probes.

use anyhow::Result;
use axum::{Json, response::IntoResponse as _};
use serde_json::{Value, json};
use usersync_core::{
    event::{Change, EventType},
    fields::Members,
    target::TargetConfig,
};
use usersync_stack::{RedisServer, egress};
use usersync_targets::{Action, ConfigError, Delivery, Failure, Outcome, Target, connect};

use crate::support::{Recorder, answer};

const FINE: Outcome = Outcome::Delivered { guarded: false };

/// The driver of a target at `url` with these keys.
fn driver(url: &str, mut keys: Value) -> Result<Box<dyn Target>, ConfigError> {
    keys["name"] = json!("t");
    keys["url"] = json!(url);
    let config: TargetConfig = serde_json::from_value(keys).expect("a valid entry");
    connect(&config, &egress())
}

fn delivery(user: u64, version: u64, action: Action) -> Delivery {
    let upsert = Members {
        username: Change::Set(format!("name-{user}")),
        email: Change::Clear,
        status: Change::Set("active".to_owned()),
        data: Change::Set(json!({"status": "active", "list": [1, 2], "n": 1})),
    };
    let members = match action {
        Action::Upsert => upsert,
        Action::Delete => Members::default(),
        Action::Disable => Members {
            status: Change::Set("disabled".to_owned()),
            data: Change::Set(json!({"status": "disabled"})),
            ..Members::default()
        },
    };
    Delivery {
        task_id: format!("t:{user}:{version}"),
        user_id: user.into(),
        version,
        action,
        partial: action == Action::Disable,
        event_type: EventType::Updated,
        timestamp: jiff::Timestamp::UNIX_EPOCH,
        source: None,
        members,
        trace: None,
    }
}

fn batch(users: u64) -> Vec<Delivery> {
    (0..users)
        .map(|user| delivery(user, 5, Action::Upsert))
        .collect()
}

fn failure(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Transient(failure)
        | Outcome::Permanent(failure)
        | Outcome::Fault(failure)
        | Outcome::Down(failure)
        | Outcome::Gone(failure) => failure,
        Outcome::Conflict(conflict) => &conflict.failure,
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => panic!("no failure: {outcome:?}"),
    }
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved() -> Result<()> {
    let recorder = Recorder::start(async |call| {
        let users = call.body.as_array().map_or(0, Vec::len);
        let huge = call
            .body
            .as_array()
            .is_some_and(|users| users.iter().any(|user| user["user_id"] == 3));
        answer(if users > 3 || huge { 413 } else { 204 })
    })
    .await?;
    let target = driver(&recorder.url(), json!({"batch": 16}))?;
    let outcomes = target.deliver(&batch(16)).await;
    for (user, outcome) in outcomes.iter().enumerate() {
        match user {
            3 => assert!(
                matches!(outcome, Outcome::Permanent(failure) if failure.code.as_deref() == Some("413"))
            ),
            _ => assert_eq!(outcome, &FINE, "{user}"),
        }
    }
    let sizes = recorder
        .calls()
        .iter()
        .map(|call| call.body.as_array().map_or(0, Vec::len))
        .collect::<Vec<_>>();
    assert_eq!(sizes, [16, 8, 4, 2, 2, 1, 1, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2]);
    let ids: std::collections::BTreeSet<_> = recorder
        .calls()
        .iter()
        .map(|call| call.header("idempotency-key").to_owned())
        .collect();
    assert_eq!(ids.len(), 17, "every part has an id of its own");
    Ok(())
}

#[tokio::test]
async fn an_answer_to_a_batch_must_be_empty_or_a_result_for_each() -> Result<()> {
    let ok = |user: u64| json!({"task_id": format!("t:{user}:5"), "status": 200});
    let odd = [
        json!({"results": [ok(0), ok(1), ok(2)]}),
        json!("fine"),
        json!([ok(0), ok(1)]),
        json!([ok(1), ok(0), ok(2)]),
        json!([ok(0), ok(1), {"status": 7}]),
        json!([ok(0), ok(1), "x".repeat(2 * 1024 * 1024)]),
    ];
    for body in odd {
        let recorder = Recorder::start(move |_| {
            let body = body.clone();
            async move { Json(body).into_response() }
        })
        .await?;
        let target = driver(&recorder.url(), json!({"batch": 3}))?;
        for outcome in target.deliver(&batch(3)).await {
            assert!(matches!(outcome, Outcome::Transient(_)), "{outcome:?}");
        }
    }
    let statuses = [200, 422, 503, 410, 401];
    let recorder = Recorder::start_guarded(move |_| async move {
        Json(statuses.map(|status| json!({"status": status}))).into_response()
    })
    .await?;
    let target = driver(&recorder.url(), json!({"batch": 5}))?;
    let outcomes = target.deliver(&batch(5)).await;
    assert_eq!(outcomes[0], Outcome::Delivered { guarded: true });
    assert!(matches!(&outcomes[1], Outcome::Permanent(_)));
    assert!(matches!(&outcomes[2], Outcome::Transient(_)));
    assert!(
        matches!(&outcomes[3], Outcome::Permanent(_)),
        "410 is said of the user"
    );
    assert!(matches!(&outcomes[4], Outcome::Fault(_)));
    Ok(())
}

#[tokio::test]
async fn a_status_for_the_whole_batch_is_one_for_each() -> Result<()> {
    for (status, expected) in [
        (503, "transient"),
        (400, "permanent"),
        (403, "fault"),
        (409, "conflict"),
        (410, "gone"),
    ] {
        let recorder = Recorder::start(move |_| async move { answer(status) }).await?;
        let target = driver(&recorder.url(), json!({"batch": 3}))?;
        for outcome in target.deliver(&batch(3)).await {
            let found = match &outcome {
                Outcome::Transient(_) => "transient",
                Outcome::Permanent(_) => "permanent",
                Outcome::Fault(_) => "fault",
                Outcome::Down(_) => "down",
                Outcome::Gone(_) => "gone",
                Outcome::Conflict(_) => "conflict",
                Outcome::Delivered { .. } | Outcome::AlreadyNewer => "fine",
            };
            assert_eq!(found, expected);
            assert_eq!(
                failure(&outcome).code.as_deref(),
                Some(status.to_string().as_str())
            );
        }
    }
    Ok(())
}

/// What `verify` says of one delivery when the target shows this.
async fn read_back(status: u16, shown: Value, delivery: &Delivery) -> Result<Outcome> {
    let recorder = Recorder::start(move |call| {
        let shown = shown.clone();
        async move {
            assert_eq!(
                (call.method.as_str(), call.path.as_str()),
                ("GET", "/users/1/profile")
            );
            (answer(status).status(), Json(shown)).into_response()
        }
    })
    .await?;
    let read_url = format!("{}/{{id}}/profile", recorder.url());
    let target = driver(
        &recorder.url(),
        json!({"verify": true, "read_url": read_url}),
    )?;
    let mut outcomes = target
        .verify(std::slice::from_ref(delivery))
        .await
        .expect("it can");
    assert_eq!(outcomes.len(), 1);
    Ok(outcomes.remove(0))
}

#[tokio::test]
async fn what_an_http_target_shows_is_compared_with_what_it_was_told() -> Result<()> {
    let (upsert, delete, disable) = (Action::Upsert, Action::Delete, Action::Disable);
    let whole = json!({"user_id": 1, "username": "name-1", "version": 5, "role": "own",
                       "data": {"status": "active", "list": [1, 2], "n": 1.0, "own": true}});
    let with = |name: &str, value: Value| {
        let mut shown = whole.clone();
        shown[name] = value;
        shown
    };
    let fine = [
        (200, whole.clone(), upsert),
        (200, with("email", Value::Null), upsert),
        (200, with("status", json!("whatever")), upsert),
        (404, json!({}), delete),
        (410, json!({}), delete),
        (200, json!({"deleted": true}), delete),
        (404, json!({}), disable),
        (
            200,
            json!({"data": {"status": "disabled", "n": 1}}),
            disable,
        ),
    ];
    for (status, shown, action) in fine {
        let found = read_back(status, shown.clone(), &delivery(1, 5, action)).await?;
        assert_eq!(found, FINE, "{status} {shown} {action:?}");
    }
    let newer = read_back(200, json!({"version": 6}), &delivery(1, 5, upsert)).await?;
    assert_eq!(newer, Outcome::AlreadyNewer);
    let different = [
        (404, json!({}), upsert, "the user isn't there"),
        (
            200,
            json!({"version": 5, "deleted": true}),
            upsert,
            "the user isn't there",
        ),
        (
            200,
            with("username", json!("eve")),
            upsert,
            "differs: username",
        ),
        (200, with("email", json!("a@x")), upsert, "differs: email"),
        (200, with("version", json!(4)), upsert, "an older version"),
        (
            200,
            with("data", json!({"status": "active", "list": [2, 1], "n": 1})),
            upsert,
            "differs: data.list",
        ),
        (200, with("data", Value::Null), upsert, "differs: data"),
        (200, whole.clone(), delete, "the user is still there"),
        (200, whole.clone(), disable, "differs: data.status"),
        (200, json!([]), upsert, "no JSON object"),
        (500, json!({}), upsert, "answered 500"),
        (405, json!({}), upsert, "answered 405"),
    ];
    for (status, shown, action, expected) in different {
        let found = read_back(status, shown.clone(), &delivery(1, 5, action)).await?;
        assert!(matches!(found, Outcome::Transient(_)), "{shown}: {found:?}");
        let reason = &failure(&found).reason;
        assert!(
            reason.contains(expected) && !reason.contains("eve"),
            "{reason}"
        );
    }
    let denied = read_back(401, json!({}), &delivery(1, 5, upsert)).await?;
    assert!(matches!(denied, Outcome::Fault(_)));
    Ok(())
}

#[tokio::test]
async fn verify_is_refused_where_it_cannot_work() -> Result<()> {
    let url = "http://127.0.0.1:1/users";
    let error = |keys| {
        driver(url, keys)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(
        error(json!({"verify": true})).starts_with("verify: an HTTP target is read at `read_url`")
    );
    for read_url in ["http://127.0.0.1:1/users", "ftp://h/{id}", "/users/{id}"] {
        assert!(
            error(json!({"verify": true, "read_url": read_url})).starts_with("read_url: "),
            "{read_url}"
        );
    }
    let without = driver(url, json!({}))?;
    assert_eq!(without.verify(&batch(1)).await, None);
    Ok(())
}

#[tokio::test]
async fn over_http_a_status_is_told_inside_data() -> Result<()> {
    let recorder = Recorder::start(async |_| answer(204)).await?;
    let target = driver(&recorder.url(), json!({}))?;
    let mut disable = delivery(1, 5, Action::Disable);
    disable.partial = false;
    let renamed = json!({"state": "disabled"});
    for (data, expected) in [
        (Change::Keep, json!({"status": "disabled"})),
        (Change::Set(renamed.clone()), renamed),
    ] {
        disable.members.data = data;
        target.deliver(std::slice::from_ref(&disable)).await;
        let call = recorder.calls().pop().expect("a call");
        assert_eq!(call.body["data"], expected);
        assert_eq!(call.body["action"], "disable");
        assert_eq!(call.body["partial"], true);
    }
    Ok(())
}

#[tokio::test]
async fn redis_reads_back_what_it_holds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = RedisServer::start(dir.path()).await?;
    let target = driver(&server.url(), json!({"verify": true}))?;
    let told = [
        delivery(1, 5, Action::Upsert),
        delivery(2, 5, Action::Delete),
        delivery(3, 5, Action::Disable),
        delivery(4, 5, Action::Upsert),
    ];
    let guarded = Outcome::Delivered { guarded: true };
    assert!(
        target
            .deliver(&told)
            .await
            .iter()
            .all(|outcome| *outcome == guarded)
    );
    let found = target.verify(&told).await.expect("it can");
    assert!(
        !found
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Transient(_))),
        "{found:?}"
    );

    let disable = [delivery(4, 6, Action::Disable)];
    assert_eq!(
        target.deliver(&disable).await,
        std::slice::from_ref(&guarded)
    );
    assert_eq!(target.verify(&disable).await, Some(vec![FINE]));
    assert_eq!(
        target.verify(&told[3..]).await,
        Some(vec![Outcome::AlreadyNewer])
    );
    // Somebody who never was there stays away: nothing older comes either.
    assert_eq!(
        target.deliver(&[delivery(3, 4, Action::Upsert)]).await,
        [Outcome::AlreadyNewer]
    );
    assert_eq!(
        target.deliver(&[delivery(4, 5, Action::Disable)]).await,
        [Outcome::AlreadyNewer]
    );

    let client = redis::Client::open(server.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let tampered = r#"{"version":5,"username":"eve"}"#;
    redis::cmd("SET")
        .arg("user:1")
        .arg(tampered)
        .exec_async(&mut redis)
        .await?;
    redis::cmd("DEL")
        .arg("user:4")
        .exec_async(&mut redis)
        .await?;
    redis::cmd("SET")
        .arg("user:2")
        .arg("{}")
        .exec_async(&mut redis)
        .await?;
    let found = target.verify(&told).await.expect("it can");
    let reasons: Vec<&str> = [0, 1, 3]
        .map(|user: usize| &*failure(&found[user]).reason)
        .into();
    for (reason, expected) in
        reasons
            .iter()
            .zip(["differs: username", "still there", "isn't there"])
    {
        assert!(reason.ends_with(expected), "{reason}");
    }
    Ok(())
}

#[tokio::test]
async fn the_password_of_redis_is_read_from_where_the_secret_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = RedisServer::start(dir.path()).await?;
    let client = redis::Client::open(server.url())?;
    let nobody = server.url().replace("://", "://nobody@");
    // Here the default user needs no password; nobody is somebody else.
    assert!(driver(&nobody, json!({}))?.probe().await.is_err());
    redis::cmd("CONFIG")
        .arg(&["SET", "requirepass", "a p@ss/word"])
        .exec_async(&mut client.get_multiplexed_async_connection().await?)
        .await?;
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        anyhow::Ok(json!({"secret": format!("file:{}", path.display())}))
    };
    let (right, wrong) = (file("right", "a p@ss/word\n")?, file("wrong", "other")?);
    driver(&server.url(), right.clone())?.probe().await.unwrap();
    for (url, keys) in [
        (&server.url(), json!({})),
        (&server.url(), wrong),
        (&nobody, right),
        (&nobody, json!({})),
    ] {
        let failure = driver(url, keys)?.probe().await.unwrap_err();
        let reason = &failure.reason;
        assert!(reason.contains("refuses the user"), "{url}: {reason}");
    }
    Ok(())
}

#[tokio::test]
async fn disabling_in_redis_never_brings_an_older_document_back() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = RedisServer::start(dir.path()).await?;
    let (one, other) = (
        driver(&server.url(), json!({}))?,
        driver(&server.url(), json!({}))?,
    );
    let client = redis::Client::open(server.url())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    let numbered = |user: u64, n: u64| {
        let mut delivery = delivery(user, n, Action::Upsert);
        delivery.members.data = Change::Set(json!({"n": n}));
        delivery
    };
    let mut met = 0;
    for round in 0..1_000 {
        // Until the two have met, or hopelessly often.
        if round > 20 && met > 0 {
            break;
        }
        let users = round * 100..(round + 1) * 100;
        let first: Vec<_> = users.clone().map(|user| numbered(user, 1)).collect();
        one.deliver(&first).await;
        let newer: Vec<_> = users.clone().map(|user| numbered(user, 2)).collect();
        let disable: Vec<_> = users
            .clone()
            .map(|user| delivery(user, 3, Action::Disable))
            .collect();
        let (newer, disabled) = tokio::join!(other.deliver(&newer), one.deliver(&disable));
        for ((user, newer), disabled) in users.zip(newer).zip(disabled) {
            let text: String = redis::cmd("GET")
                .arg(format!("user:{user}"))
                .query_async(&mut redis)
                .await?;
            let document: Value = serde_json::from_str(&text)?;
            let written = |outcome: &Outcome| matches!(outcome, Outcome::Delivered { .. });
            assert_eq!(document["data"]["n"], if written(&newer) { 2 } else { 1 });
            assert_eq!(
                document["status"] == "disabled",
                written(&disabled),
                "{text}"
            );
            met += usize::from(failure_code(&disabled) == Some("CHANGED"));
        }
    }
    assert!(met > 0, "the two never met: the test says nothing");
    Ok(())
}

/// The code of a failure, if it is one.
fn failure_code(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Delivered { .. } | Outcome::AlreadyNewer => None,
        failed => failure(failed).code.as_deref(),
    }
}

#[tokio::test]
async fn a_probe_asks_whether_it_is_there_and_lets_us_in() -> Result<()> {
    for (status, there) in [
        (200, true),
        (404, true),
        (405, true),
        (501, true),
        (422, true),
        (401, false),
        (403, false),
        (410, false),
        (429, false),
        (500, false),
        (503, false),
    ] {
        let recorder = Recorder::start(move |call| async move {
            assert_eq!(call.method.as_str(), "HEAD");
            answer(status)
        })
        .await?;
        let found = driver(&recorder.url(), json!({}))?.probe().await;
        assert_eq!(found.is_ok(), there, "{status}: {found:?}");
    }
    assert!(
        driver("http://127.0.0.1:1/", json!({}))?
            .probe()
            .await
            .is_err()
    );
    Ok(())
}
