//! People are told of alerts, by a webhook and by mail: once, in time, whoever dies and whatever is away.

mod command;
mod failures;
mod older;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_core::subjects::{NOTIFY_EMAIL, NOTIFY_WEBHOOK, USER_ALERT};
use usersync_stack::{Directory, SmtpServer, StackBuilder, eventually, signed_by};

use crate::{
    alerts::{hasty, history},
    support::{Bus, Call, LATER, Recorder, SOON, answer, only},
};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Settings of a gateway in a directory of their own, with the secrets they refer to.
struct Settings {
    dir: Directory,
    text: String,
}

impl Settings {
    fn new() -> Result<Self> {
        let (dir, text) = (Directory::temporary()?, String::new());
        fs::write(dir.path().join("secret"), SECRET)?;
        fs::write(dir.path().join("password"), SmtpServer::PASSWORD)?;
        Ok(Self { dir, text })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The receiver is told by a webhook; `more` are further lines.
    fn webhook(mut self, receiver: &Recorder, more: &str) -> Result<Self> {
        let (url, secret) = (receiver.url(), self.file("secret"));
        writeln!(
            self.text,
            "[notify.webhook]\nurl = \"{url}\"\nsecret = \"file:{}\"\nallow_networks = [\"loopback\"]\n{more}",
            secret.display()
        )?;
        Ok(self)
    }

    /// Mails go to `server`, which is spoken to by `security`.
    fn email(mut self, server: &SmtpServer, security: &str, more: &str) -> Result<Self> {
        let (port, ca, password) = (server.port(), server.ca(), self.file("password"));
        let login = match security {
            "none" => String::new(),
            _ => format!(
                "ca = \"file:{}\"\nusername = \"{}\"\npassword = \"file:{}\"",
                ca.display(),
                SmtpServer::USER,
                password.display()
            ),
        };
        writeln!(
            self.text,
            "[notify.email]\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"{security}\"\n{login}\n\
             from = \"usersync <usersync@example.com>\"\n{more}"
        )?;
        Ok(self)
    }

    fn write(&self) -> Result<PathBuf> {
        let path = self.file("usersync.toml");
        fs::write(&path, &self.text)?;
        Ok(path)
    }

    /// A stack whose gateways have them.
    fn with(&self, stack: StackBuilder) -> Result<StackBuilder> {
        let path = self.write()?;
        Ok(stack.gateway_args([Path::new("--config"), &path]))
    }
}

const OPS: &str = "to = [\"Ops <ops@example.com>\", \"boss@example.com\"]";

/// An alert that no gateway resolves by itself, as a scheduler tells it.
async fn raise(bus: &Bus, n: u64) -> Result<()> {
    let alert = json!({
        "id": format!("drift:gateway:{n}"), "kind": "drift", "target": "gateway", "status": "raised",
        "severity": "warning", "since": "2026-01-01T00:00:00Z", "summary": format!("drift {n}"),
        "runbook": "docs/RUNBOOK.md#drift", "reason": "not told",
    });
    bus.publish("user.alert.drift.gateway", alert).await
}

/// The alerts in a call.
fn alerts(call: &Call) -> Vec<Value> {
    let alerts = call.body["data"]["alerts"].as_array();
    alerts.cloned().unwrap_or_default()
}

/// How often each alert was told, by its id and status, in all calls that were taken.
fn told(receiver: &Recorder) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for alert in receiver.calls().iter().flat_map(alerts) {
        let text = |member: &str| alert[member].as_str().unwrap_or_default().to_owned();
        *told
            .entry(format!("{} {}", text("id"), text("status")))
            .or_default() += 1;
    }
    told
}

/// Waits until so many different alerts were told.
async fn until_told(receiver: &Recorder, count: usize, deadline: Duration) -> Result<()> {
    eventually(deadline, async || {
        let told = told(receiver);
        ensure!(told.len() == count, "told of {told:?}");
        Ok(())
    })
    .await
}

async fn until_mailed(server: &SmtpServer, count: usize) -> Result<Vec<Value>> {
    eventually(LATER, async || {
        let mails = server.mails()?;
        ensure!(mails.len() == count, "{mails:#?}");
        Ok(mails)
    })
    .await
}

/// Waits until nothing is left to be told.
async fn until_settled(bus: &Bus, durable: &str) -> Result<()> {
    eventually(LATER, async || {
        let stream = bus.jetstream().get_stream(USER_ALERT).await?;
        let info = stream.consumer_info(durable).await?;
        let (waiting, held) = (info.num_pending, info.num_ack_pending);
        ensure!(
            waiting == 0 && held == 0,
            "{durable}: {waiting} wait, {held} are held"
        );
        Ok(())
    })
    .await
}

fn verified(call: &Call, secrets: &[&str]) -> Result<Vec<bool>> {
    signed_by(&call.raw, |name| call.header(name).to_owned(), secrets)
}

#[tokio::test]
async fn what_is_raised_and_resolved_is_told_once_by_either_way_with_two_gateways() -> Result<()> {
    let mut audit = Recorder::start(async |_| answer(200)).await?;
    let receiver = Recorder::start(async |_| answer(204)).await?;
    let settings = Settings::new()?;
    let server = SmtpServer::start(settings.dir.path(), "starttls").await?;
    let settings = settings
        .webhook(
            &receiver,
            "severity = \"critical\"\nkinds = [\"breaker\", \"backlog\"]",
        )?
        .email(
            &server,
            "starttls",
            &format!("{OPS}\nkinds = [\"breaker\"]"),
        )?;
    let stack = settings.with(hasty(only(audit.target("audit", ""))).gateways(2))?;
    let stack = stack.start().await?;
    let bus = Bus::connect(&stack).await?;
    audit.stop().await;
    let user = json!({"user_id": 1, "username": "zaphod", "email": "zaphod@example.com"});
    bus.publish("user.created", user).await?;
    let raised = until_mailed(&server, 1).await?;
    audit.listen().await?;
    until_told(&receiver, 2, LATER).await?;
    let mails = until_mailed(&server, 2).await?;
    for durable in [NOTIFY_WEBHOOK, NOTIFY_EMAIL] {
        until_settled(&bus, durable).await?;
    }

    // The webhook: signed, and nothing but what it is meant to hear of.
    let history = history(&bus, "breaker", "audit").await?;
    ensure!(history.len() == 2, "{history:?}");
    ensure!(
        told(&receiver).values().all(|count| *count == 1),
        "{:?}",
        told(&receiver)
    );
    for (call, alert) in receiver.calls().iter().zip(&history) {
        ensure!(
            verified(call, &[SECRET, OTHER])? == [true, false],
            "{call:?}"
        );
        assert_eq!(call.body["type"], "usersync.alerts");
        let told = &alerts(call)[0];
        for member in [
            "id", "kind", "target", "status", "severity", "since", "until", "summary", "runbook",
        ] {
            assert_eq!(told[member], alert[member], "{member}");
        }
        ensure!(told["reason"].is_null() && told["note"].is_null(), "{told}");
    }

    // The mails: over TLS, to everybody, the second an answer to the first.
    assert_eq!(mails[0], raised[0]);
    let header = |at: usize, name: &str| mails[at]["headers"][name].as_str().unwrap_or_default();
    for mail in &mails {
        assert_eq!(mail["tls"], true);
        assert_eq!(mail["to"], json!(["ops@example.com", "boss@example.com"]));
        assert_eq!(mail["headers"]["auto-submitted"], "auto-generated");
    }
    assert_eq!(
        header(0, "subject"),
        "usersync: raised, critical: breaker of audit"
    );
    assert_eq!(
        header(1, "subject"),
        "usersync: resolved, critical: breaker of audit"
    );
    assert_eq!(header(0, "in-reply-to"), "");
    assert_eq!(header(1, "in-reply-to"), header(0, "message-id"));
    assert_eq!(header(1, "references"), header(0, "message-id"));
    let text = mails[0]["text"].as_str().unwrap_or_default();
    ensure!(
        text.contains("its breaker is not closed") && text.contains("docs/RUNBOOK.md#breaker-open"),
        "{text}"
    );

    let everything = format!("{mails:?}{:?}", receiver.calls());
    ensure!(!everything.contains("zaphod"), "{everything}");
    let metrics = stack.gateway_metrics().await?;
    for channel in ["webhook", "email"] {
        let count = |result| {
            let labels = [("channel", channel), ("result", result)];
            metrics.sum("usersync_notices_total", &labels)
        };
        assert_eq!(
            (count("sent"), count("failed"), count("refused")),
            (2.0, 0.0, 0.0)
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_is_too_much_for_a_minute_is_gathered_and_none_is_lost() -> Result<()> {
    const BURST: u64 = 150;
    let receiver = Recorder::start(async |_| answer(200)).await?;
    let settings = Settings::new()?.webhook(&receiver, "per_minute = 2")?;
    let stack = settings.with(only("").gateways(2))?.start().await?;
    let bus = Bus::connect(&stack).await?;
    for n in [1, 2] {
        raise(&bus, n).await?;
        until_told(&receiver, usize::try_from(n)?, SOON).await?;
    }
    for n in 3..=BURST {
        raise(&bus, n).await?;
    }
    until_told(&receiver, usize::try_from(BURST)?, 3 * LATER).await?;
    until_settled(&bus, NOTIFY_WEBHOOK).await?;
    ensure!(
        told(&receiver).values().all(|count| *count == 1),
        "{:?}",
        told(&receiver)
    );
    let calls = receiver.calls();
    let sizes: Vec<_> = calls.iter().map(|call| alerts(call).len()).collect();
    assert_eq!(sizes, [1, 1, 100, 48]);
    let minute = Duration::from_secs(60);
    for three in calls.windows(3) {
        let took = three[2].at - three[0].at;
        ensure!(
            took > minute - Duration::from_secs(1),
            "three calls within {took:?}"
        );
    }
    Ok(())
}
