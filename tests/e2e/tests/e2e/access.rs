//! Who may use the HTTP API: keys, scopes, sources, and what a gateway without keys refuses.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::{Method, header};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};
use usersync_stack::{Directory, Stack, eventually, http, tools};

use crate::{
    intake::{Answer, assert_problem},
    support::{LATER, SOON, only},
};

/// A key and its entry, as `usersync-gateway key new` made them.
pub(crate) struct Made {
    pub(crate) key: String,
    pub(crate) entry: String,
}

/// Runs `usersync-gateway key new`.
pub(crate) fn new_key(args: &[&str]) -> Result<Made> {
    let gateway = tools::binary("usersync-gateway", tools::Profile::own())?;
    let output = Command::new(gateway)
        .args(["key", "new"])
        .args(args)
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{said}");
    Ok(Made {
        key: said.lines().last().context("no key")?.to_owned(),
        entry: String::from_utf8(output.stdout)?,
    })
}

/// A gateway that asks for keys, and the file they are in.
pub(crate) struct Guarded {
    pub(crate) stack: Stack,
    pub(crate) file: PathBuf,
    client: reqwest::Client,
    _dir: Directory,
}

impl Guarded {
    /// With a file of keys, and more settings.
    pub(crate) async fn start(keys: &str, env: &[(&str, &str)]) -> Result<Self> {
        let dir = Directory::temporary()?;
        let file = dir.path().join("keys.toml");
        fs::write(&file, keys)?;
        let mut builder = only("").gateway_args([PathBuf::from("--keys"), file.clone()]);
        for (name, value) in env {
            builder = builder.env(name, value);
        }
        Ok(Self {
            stack: builder.start().await?,
            file,
            client: http::client(),
            _dir: dir,
        })
    }

    /// A request with `key`, or without any.
    pub(crate) fn request(&self, key: &str, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.stack.gateway().url());
        let request = self.client.request(method, url);
        match key {
            "" => request,
            key => request.bearer_auth(key),
        }
    }

    pub(crate) async fn post(&self, key: &str, body: Value) -> Answer {
        Answer::to(self.request(key, Method::POST, "/v1/events").json(&body)).await
    }
}

#[tokio::test]
async fn a_key_lets_in_within_its_scopes_only() -> Result<()> {
    let publisher = new_key(&["--scope", "publish", "--source", "basic-server"])?;
    let reader = new_key(&["--scope", "read", "--name", "dashboard"])?;
    let operator = new_key(&["--scope", "read", "--scope", "operate", "--name", "ops"])?;
    assert!(!publisher.entry.contains(&publisher.key) && publisher.key.len() > 40);
    let eraser = new_key(&["--scope", "erase", "--name", "privacy"])?;
    let entries = [&publisher, &reader, &operator, &eraser].map(|made| made.entry.as_str());
    let gateway = Guarded::start(&entries.concat(), &[]).await?;

    let (publish, read, operate) = (&publisher.key, &reader.key, &operator.key);
    let erase = &eraser.key;
    let wrong = read.replace(char::is_lowercase, "x");
    let (post, get, delete) = (Method::POST, Method::GET, Method::DELETE);
    for (key, method, path, status, challenge) in [
        ("", &post, "/v1/events", 401, "Bearer realm=\"usersync\""),
        (
            &wrong,
            &get,
            "/v1/targets",
            401,
            "Bearer realm=\"usersync\", error=\"invalid_token\"",
        ),
        (
            publish,
            &get,
            "/v1/targets",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"read\"",
        ),
        (
            publish,
            &get,
            "/nothing",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"read\"",
        ),
        (
            read,
            &post,
            "/v1/events",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"publish\"",
        ),
        (
            read,
            &post,
            "/v1/checks/gateway/pause",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"operate\"",
        ),
        (
            operate,
            &delete,
            "/v1/users/1/data?dry_run=true",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"erase\"",
        ),
        (
            erase,
            &delete,
            "/v1/targets/a",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"operate\"",
        ),
        (
            operate,
            &post,
            "/v1/events",
            403,
            "Bearer realm=\"usersync\", error=\"insufficient_scope\", scope=\"publish\"",
        ),
    ] {
        let answer = Answer::to(gateway.request(key, method.clone(), path).body("{}")).await;
        answer.is_problem(status, "", path);
        assert_eq!(
            answer.header("www-authenticate"),
            challenge,
            "{method} {path}"
        );
        assert!(
            !answer.body.to_string().contains(&wrong),
            "the key is not repeated"
        );
    }
    for (key, method, path, status) in [
        (publish, &post, "/v1/events", 202),
        (read, &get, "/v1/targets", 200),
        (operate, &get, "/v1/targets", 200),
        (operate, &post, "/v1/repairs", 422),
        (erase, &delete, "/v1/users/1/data?dry_run=true", 200),
    ] {
        let body = json!({"type": "user.created", "user_id": 1}).to_string();
        let answer = Answer::to(gateway.request(key, method.clone(), path).body(body)).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
    let erasing = json!({"type": "user.deleted", "user_id": 1, "erase": true}).to_string();
    let request = gateway.request(publish, post.clone(), "/v1/events");
    let answer = Answer::to(request.body(erasing)).await;
    answer.is_problem(403, "/erase", "an event that erases");
    for path in [
        "/livez",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/openapi.json",
    ] {
        let answer = Answer::to(gateway.request("", Method::GET, path)).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    // Another scheme is no key, and the scheme's case doesn't matter.
    for (authorization, status) in [
        (format!("Basic {read}"), 401),
        (format!("bearer {read}"), 200),
    ] {
        let request = gateway.request("", Method::GET, "/v1/targets");
        let answer = Answer::to(request.header(header::AUTHORIZATION, authorization)).await;
        assert_eq!(answer.status, status);
    }
    Ok(())
}

#[tokio::test]
async fn an_event_of_another_source_is_refused() -> Result<()> {
    let bound = new_key(&[
        "--scope",
        "publish",
        "--scope",
        "read",
        "--source",
        "basic-server",
        "--source",
        "cron",
    ])?;
    let free = new_key(&["--scope", "publish", "--name", "importer"])?;
    let gateway = Guarded::start(&(bound.entry + &free.entry), &[]).await?;
    let event = |user: u64, source: Value| json!({"type": "user.created", "user_id": user, "source": source});

    let other = gateway.post(&bound.key, event(1, json!("billing"))).await;
    other.is_problem(403, "/source", "another source");
    let cloud = json!({"specversion": "1.0", "id": "c", "type": "user.created", "source": "billing", "subject": "1"});
    let cloud = gateway.post(&bound.key, cloud).await;
    cloud.is_problem(403, "/source", "a CloudEvent of another source");
    let some = json!([event(2, json!("cron")), event(3, json!("billing"))]);
    let some = gateway.post(&bound.key, some).await;
    assert_eq!(some.status, 207, "{some:?}");
    assert_problem(
        &some.body["results"][1],
        403,
        "/source",
        "the second of an array",
    );
    let unnamed = gateway.post(&bound.key, event(4, Value::Null)).await;
    assert_eq!(unnamed.status, 202, "{unnamed:?}");
    let any = gateway.post(&free.key, event(5, json!("billing"))).await;
    assert_eq!(any.status, 202, "{any:?}");

    let path = "/v1/users/4";
    eventually(SOON, async || {
        let state = Answer::to(gateway.request(&bound.key, Method::GET, path)).await;
        let source = &state.body["event"]["source"];
        ensure!(source == "basic-server", "the source of user 4 is {source}");
        Ok(())
    })
    .await?;
    for user in [1, 3] {
        let path = format!("/v1/users/{user}");
        let state = Answer::to(gateway.request(&bound.key, Method::GET, &path)).await;
        assert_eq!(state.status, 404, "{state:?}");
    }
    Ok(())
}

#[tokio::test]
async fn keys_are_exchanged_without_a_restart() -> Result<()> {
    let old = new_key(&["--scope", "read", "--name", "dashboard"])?;
    let new = new_key(&["--scope", "read", "--name", "dashboard"])?;
    let hash = |made: &Made| made.entry.split('"').nth(1).unwrap_or_default().to_owned();
    let both = old
        .entry
        .replace(&hash(&old), &format!("{}\", \"{}", hash(&old), hash(&new)));
    let gateway = Guarded::start(&old.entry, &[]).await?;
    let answers = async |expected: [u16; 2]| {
        eventually(SOON, async || {
            let mut found = [0; 2];
            for (made, found) in [&old, &new].into_iter().zip(&mut found) {
                let request = gateway.request(&made.key, Method::GET, "/v1/targets");
                *found = Answer::to(request).await.status;
            }
            ensure!(found == expected, "{found:?} instead of {expected:?}");
            Ok(())
        })
        .await
    };
    answers([200, 401]).await?;
    fs::write(&gateway.file, both)?;
    answers([200, 200]).await?;
    // A file that can't be read as keys changes nothing, and is complained about.
    fs::write(
        &gateway.file,
        "[http.keys.dashboard]\nhashes = ['hunter2']\n",
    )?;
    let log = gateway.stack.dir().join("logs/gateway-1.log");
    eventually(SOON, async || {
        let said = fs::read_to_string(&log)?;
        ensure!(said.contains("the file of keys is bad"), "{said}");
        ensure!(!said.contains("hunter2"), "a value is in the log");
        Ok(())
    })
    .await?;
    answers([200, 200]).await?;
    fs::write(&gateway.file, &new.entry)?;
    answers([401, 200]).await?;
    fs::write(&gateway.file, "")?;
    answers([401, 401]).await
}

#[tokio::test]
async fn without_keys_only_this_machine_is_served_unless_it_is_said_to_be_open() -> Result<()> {
    let dir = Directory::temporary()?;
    let keys = dir.path().join("keys.toml");
    fs::write(
        &keys,
        new_key(&["--scope", "read", "--name", "dashboard"])?.entry,
    )?;
    let keys = keys.to_string_lossy();
    let gateway = tools::binary("usersync-gateway", tools::Profile::own())?;
    for (args, code, says) in [
        (vec!["--listen", "127.0.0.1:0"], 0, ""),
        (vec!["--listen", "[::1]:0"], 0, ""),
        (
            vec!["--listen", "0.0.0.0:0"],
            64,
            "usersync-gateway key new",
        ),
        (vec!["--listen", "[::]:0"], 64, "http.open = true"),
        (vec!["--listen", "0.0.0.0:0", "--open"], 0, ""),
        (vec!["--listen", "0.0.0.0:0", "--keys", &keys], 0, ""),
        (
            vec!["--open", "--keys", &keys],
            64,
            "http.open: expected false",
        ),
        (
            vec!["--keys", "/nonexistent/keys.toml"],
            64,
            "/nonexistent/keys.toml: no such file",
        ),
    ] {
        let output = Command::new(&gateway)
            .args(&args)
            .arg("--print-streams")
            .output()?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn who_asks_for_too_much_is_told_when_to_come_back() -> Result<()> {
    let loud = new_key(&["--scope", "publish", "--name", "loud"])?;
    let quiet = new_key(&["--scope", "publish", "--name", "quiet"])?;
    let env = [
        ("USERSYNC_HTTP__LIMIT__REQUESTS", "20"),
        ("USERSYNC_HTTP__LIMIT__EVENTS", "2"),
    ];
    let gateway = Guarded::start(&(loud.entry + &quiet.entry), &env).await?;
    let one = json!({"type": "user.created", "user_id": 1, "source": "a"});
    let first = gateway.post(&loud.key, one.clone()).await;
    assert_eq!(first.status, 202, "{first:?}");
    let policies: Vec<_> = first.headers.get_all("ratelimit-policy").iter().collect();
    assert_eq!(
        policies,
        ["\"events\";q=1000;w=500", "\"requests\";q=20;w=1"]
    );

    let array = |source: &str| {
        let event = |user| json!({"type": "user.created", "user_id": user, "source": source});
        Value::Array((0..1_000).map(event).collect())
    };
    let before = seq(&gateway).await?;
    let more = gateway.post(&loud.key, array("a")).await;
    assert_eq!(more.status, 429, "a source's events are used up");
    more.is_problem(429, "", "a source's events are used up");
    assert!(more.header("retry-after").parse::<u64>()? >= 1);
    assert!(
        more.header("ratelimit").starts_with("\"events\";r=0;t="),
        "{more:?}"
    );
    assert_eq!(
        seq(&gateway).await?,
        before,
        "an array is taken as a whole or not at all"
    );
    let others = gateway.post(&loud.key, array("b")).await;
    assert_eq!(others.status, 202, "another source: {:?}", others.body);

    let mut refused = None;
    for _ in 0..200 {
        let answer = gateway.post(&loud.key, Value::Null).await;
        match answer.status {
            422 => {}
            _ => refused = Some(answer),
        }
    }
    let refused = refused.context("200 requests at once are all taken, of 20 a second")?;
    refused.is_problem(429, "", "a caller's requests are used up");
    assert_eq!(refused.header("retry-after"), "1");
    let answer = gateway.post(&quiet.key, one).await;
    assert_eq!(answer.status, 202, "another caller: {answer:?}");
    let metrics = gateway.stack.gateway_metrics().await?;
    for limit in ["requests", "events"] {
        let labels = [("caller", "loud"), ("limit", limit)];
        assert!(
            metrics.sum("usersync_http_limited_total", &labels) >= 1.0,
            "{limit}"
        );
    }
    Ok(())
}

/// The sequence of the last event stored.
async fn seq(gateway: &Guarded) -> Result<u64> {
    let client = usersync_stack::connect(&gateway.stack.nats.test_url()).await?;
    let events = async_nats::jetstream::new(client);
    let events = events.get_stream("USER_EVENTS").await?;
    Ok(events.get_info().await?.state.last_sequence)
}

/// Arrays at ten times the rate that it may: a loud caller is refused early, so that another is served in less than
/// half the time that it takes where nobody is limited.
///
/// One good round is enough here, and how much remains is no matter: debug builds that share their machine vary. The
/// benchmark `loud-caller` measures that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_keep_a_loud_caller_from_slowing_another() -> Result<()> {
    const LIMIT: u32 = 25;
    let loud = new_key(&["--scope", "publish", "--name", "loud"])?;
    let quiet = new_key(&["--scope", "publish", "--name", "quiet"])?;
    let keys = loud.entry + &quiet.entry;
    let limit = LIMIT.to_string();
    let limited = [("USERSYNC_HTTP__LIMIT__REQUESTS", limit.as_str())];
    let unlimited = [
        ("USERSYNC_HTTP__LIMIT__REQUESTS", "1000000"),
        ("USERSYNC_HTTP__LIMIT__EVENTS", "1000000"),
    ];
    let (limited, unlimited) = (
        Guarded::start(&keys, &limited).await?,
        Guarded::start(&keys, &unlimited).await?,
    );
    let event =
        |user| json!({"type": "user.updated", "user_id": user, "data": {"a": "x".repeat(200)}});
    let body = Bytes::from(Value::Array((1_000..1_020).map(event).collect()).to_string());
    let answers = [AtomicU32::new(0), AtomicU32::new(0)];
    let burst = async |gateway: &Guarded| {
        let ticks = interval(Duration::from_secs(1) / (10 * LIMIT));
        stream::unfold(ticks, async |mut ticks| Some((ticks.tick().await, ticks)))
            .for_each_concurrent(64, async |_| {
                let request = gateway.request(&loud.key, Method::POST, "/v1/events");
                let answer = Answer::to(request.body(body.clone())).await;
                answers[usize::from(answer.status == 429)].fetch_add(1, Relaxed);
            })
            .await;
    };
    let beside = async |gateway: &Guarded| {
        tokio::select! {
            beside = p99(gateway, &quiet.key, LIMIT) => beside,
            () = burst(gateway) => bail!("the loud caller fell silent"),
        }
    };
    let (mut seen, started) = (Vec::new(), Instant::now());
    while started.elapsed() < LATER {
        let with = beside(&limited).await?;
        let refused = answers[1].load(Relaxed);
        let without = beside(&unlimited).await?;
        seen.push((with, without));
        if with < without / 2 {
            ensure!(refused > 0, "the loud caller was never refused");
            return Ok(());
        }
    }
    bail!(
        "99 of 100 within, beside a loud caller with limits and without: {seen:?}; {answers:?} taken and refused"
    )
}

/// Within which time 99 of 100 events are stored, sent one after the other at most `rate` a second.
async fn p99(gateway: &Guarded, key: &str, rate: u32) -> Result<Duration> {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut times = Vec::new();
    for user in 0..100 {
        ticks.tick().await;
        let started = Instant::now();
        let event = json!({"type": "user.updated", "user_id": user, "data": {"a": "x"}});
        let answer = gateway.post(key, event).await;
        times.push(started.elapsed());
        ensure!(answer.status == 202, "{answer:?}");
    }
    times.sort_unstable();
    Ok(times[98])
}
