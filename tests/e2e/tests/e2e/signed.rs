//! Callers who sign their requests (Standard Webhooks), with the library that others publish as the caller.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use usersync_core::subjects::USER_EVENTS;
use usersync_stack::{Directory, eventually, tools};

use crate::{
    access::Guarded,
    intake::Answer,
    support::{Bus, LATER, SOON},
};

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A gateway that knows the caller `crm` by signatures, bound to the source `crm`.
struct Signed {
    gateway: Guarded,
    dir: Directory,
}

impl Signed {
    async fn start(more: &str) -> Result<Self> {
        let dir = Directory::temporary()?;
        fs::write(dir.path().join("old"), OLD)?;
        fs::write(dir.path().join("new"), format!("{NEW}\n"))?;
        let signed = Self {
            gateway: Guarded::start("", &[]).await?,
            dir,
        };
        signed.knows(&["old"], more)?;
        let known = json!({"secret": OLD, "id": "known", "body": "[]"});
        eventually(SOON, async || {
            let answers = signed.answers(std::slice::from_ref(&known))?;
            ensure!(answers[0].0 != 401, "{answers:?}");
            Ok(())
        })
        .await?;
        Ok(signed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Has the gateway know the caller by these secrets.
    fn knows(&self, secrets: &[&str], more: &str) -> Result<()> {
        let secrets: Vec<_> = secrets
            .iter()
            .map(|name| format!("file:{}", self.path(name).display()))
            .collect();
        let entry = format!(
            "[http.keys.crm]\nsecrets = {}\nscopes = [\"publish\"]\nsources = [\"crm\"]\n{more}\n",
            serde_json::to_string(&secrets)?
        );
        // Never half a file.
        let whole = self.path("keys");
        fs::write(&whole, entry)?;
        fs::rename(whole, &self.gateway.file)?;
        Ok(())
    }

    fn python(&self) -> Result<Child> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/signed.py");
        let url = format!(
            "{}/v1/events?caller=crm",
            self.gateway.stack.gateway().url()
        );
        let mut python = tools::python();
        python.arg(script).arg(url);
        python
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        python.spawn().context("python3 can't be run")
    }

    /// What the gateway answers to requests, in their order.
    fn answers(&self, cases: &[Value]) -> Result<Vec<(u16, Value)>> {
        let mut child = self.python()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        for case in cases {
            writeln!(stdin, "{case}")?;
        }
        drop(stdin);
        let answers = lines(child)?.into_iter().map(|mut answer| {
            let status = answer[0].as_u64().unwrap_or_default();
            Ok((u16::try_from(status)?, answer[1].take()))
        });
        answers.collect()
    }
}

fn lines(child: Child) -> Result<Vec<Value>> {
    let output = child.wait_with_output()?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{problem}");
    let lines = output.stdout.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty());
    lines
        .map(|line| Ok(serde_json::from_slice(line)?))
        .collect()
}

fn event(n: u64) -> String {
    json!({"type": "user.updated", "user_id": 7, "data": {"n": n}}).to_string()
}

#[tokio::test]
async fn a_good_signature_lets_in_and_nothing_else_does() -> Result<()> {
    let signed = Signed::start("").await?;
    let bus = Bus::connect(&signed.gateway.stack).await?;
    let foreign = json!({"type": "user.updated", "user_id": 7, "source": "erp"}).to_string();
    let case =
        |id: &str, secret: &str, body: &str| json!({"secret": secret, "id": id, "body": body});
    let with = |mut case: Value, name: &str, value: Value| {
        case[name] = value;
        case
    };
    let good = |id: &str| case(id, OLD, &event(1));
    let cases = [
        (202, good("good")),
        (202, with(good("young"), "age", json!(-295))),
        (202, with(good("aged"), "age", json!(295))),
        (202, with(good("either"), "secret", json!([NEW, OLD]))),
        (401, with(good("old"), "age", json!(302))),
        (401, with(good("early"), "age", json!(-303))),
        (401, case("other-secret", NEW, &event(1))),
        (401, with(good("body"), "send", json!({"body": event(2)}))),
        (401, with(good("id"), "send", json!({"id": "another"}))),
        (401, with(good("time"), "send", json!({"age": 10}))),
        (401, with(good("late"), "send", json!({"age": 302}))),
        (401, good("has a space")),
        (401, good(&"x".repeat(81))),
        (403, case("source", OLD, &foreign)),
        (422, case("invalid", OLD, r#"{"type":"user.updated"}"#)),
        (400, case("no-json", OLD, "{")),
        (413, case("long", OLD, &"x".repeat(8 * 1024 * 1024 + 1))),
    ];
    let requests: Vec<_> = cases.iter().map(|(_, case)| case.clone()).collect();
    let answers = signed.answers(&requests)?;
    ensure!(answers.len() == cases.len(), "{} answers", answers.len());
    for ((expected, case), (status, answer)) in cases.iter().zip(&answers) {
        let id = case["id"].as_str().unwrap_or_default();
        assert_eq!(status, expected, "{id}: {answer}");
        ensure!(!answer.to_string().contains("whsec"), "{answer}");
    }
    assert_eq!(bus.count(USER_EVENTS).await?, 4);
    let state = bus.state_after_intake(7).await?;
    assert_eq!(state["event"]["source"], "crm", "{state}");
    // The others say the same.
    assert_eq!(state["event"]["id"], "crm:good", "{state}");
    Ok(())
}

#[tokio::test]
async fn what_is_sent_again_is_answered_again_and_stored_once_whichever_gateway_takes_it()
-> Result<()> {
    let mut signed = Signed::start("").await?;
    let array = format!("[{},{}]", event(1), event(2));
    let cases = [
        json!({"secret": OLD, "id": "one", "body": event(3)}),
        json!({"secret": OLD, "id": "many", "body": array}),
    ];
    let first = signed.answers(&cases)?;
    ensure!(first.iter().all(|(status, _)| *status == 202), "{first:?}");
    let bus = Bus::connect(&signed.gateway.stack).await?;
    assert_eq!(bus.count(USER_EVENTS).await?, 3);
    let again = signed.answers(&cases)?;
    assert_eq!(again[0].1["duplicate"], true, "{again:?}");
    assert_eq!(again[0].1["seq"], first[0].1["seq"]);
    // Another gateway, and this one after a restart, have never seen them.
    signed.gateway.stack.gateways[0].restart().await?;
    let again = signed.answers(&cases)?;
    for item in again[1].1["results"].as_array().context("no results")? {
        assert_eq!(item["duplicate"], true, "{again:?}");
    }
    assert_eq!(bus.count(USER_EVENTS).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_signature_is_good_for_events_only() -> Result<()> {
    let signed = Signed::start("").await?;
    let headers = [
        ("webhook-id", "m"),
        ("webhook-timestamp", "1"),
        ("webhook-signature", "v1,x"),
    ];
    for (method, path) in [
        (Method::GET, "/v1/users/7?caller=crm"),
        (Method::DELETE, "/v1/users/7/data?caller=crm"),
        (Method::POST, "/v1/repairs?caller=crm"),
    ] {
        let mut request = signed.gateway.request("", method, path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = Answer::to(request).await;
        assert_eq!(answer.status, 401, "{path}");
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains("POST /v1/events only"), "{path}: {detail}");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_has_the_limits_of_its_entry() -> Result<()> {
    let signed = Signed::start("limit = { requests = 2 }").await?;
    let cases: Vec<_> = (0..12)
        .map(|n| json!({"secret": OLD, "id": format!("m{n}"), "body": event(n)}))
        .collect();
    let answers = signed.answers(&cases)?;
    let refused = answers.iter().filter(|(status, _)| *status == 429).count();
    ensure!((1..12).contains(&refused), "{answers:?}");
    Ok(())
}

#[tokio::test]
async fn a_secret_is_replaced_under_load_without_one_refusal() -> Result<()> {
    let signed = Signed::start("").await?;
    let bus = Bus::connect(&signed.gateway.stack).await?;
    let (secret, stop) = (signed.path("of the sender"), signed.path("stop"));
    fs::write(&secret, OLD)?;
    let mut sender = signed.python()?;
    let mut stdin = sender.stdin.take().context("no stdin")?;
    let asked = json!({"stream": secret, "stop": stop, "user": 7});
    writeln!(stdin, "{asked}")?;
    drop(stdin);
    let sending = async |more: u64| {
        let before = bus.count(USER_EVENTS).await?;
        eventually(LATER, async || {
            let now = bus.count(USER_EVENTS).await?;
            ensure!(now >= before + more, "{now} events");
            Ok(())
        })
        .await
    };
    let status_of = |secret: &str| -> Result<u16> {
        let case = json!({"secret": secret, "id": "probe", "body": event(0)});
        Ok(signed.answers(&[case])?[0].0)
    };
    sending(20).await?;
    ensure!(status_of(NEW)? == 401, "the new secret is known already");
    signed.knows(&["old", "new"], "")?;
    eventually(SOON, async || {
        let status = status_of(NEW)?;
        ensure!(status == 202, "{status}");
        Ok(())
    })
    .await?;
    sending(20).await?;
    let next = signed.path("next");
    fs::write(&next, NEW)?;
    fs::rename(next, &secret)?;
    sending(20).await?;
    signed.knows(&["new"], "")?;
    eventually(SOON, async || {
        let status = status_of(OLD)?;
        ensure!(status == 401, "{status}");
        Ok(())
    })
    .await?;
    sending(20).await?;
    fs::write(&stop, "")?;
    let counts = tokio::task::spawn_blocking(move || lines(sender)).await??;
    let sent = counts[0]["202"].as_u64().context("none was taken")?;
    assert_eq!(counts, [json!({"202": sent})], "others than 202");
    // All of them, and the probe, once.
    assert_eq!(bus.count(USER_EVENTS).await?, sent + 1);
    let state = bus.state_after_intake(7).await?;
    assert_eq!(state["data"]["n"], sent - 1);
    Ok(())
}
