//! How HTTP targets know who calls: signatures by one or two secrets, tokens, passwords, certificates.

#[path = "../common/mod.rs"]
mod common;
mod https;
mod service;

use std::{path::PathBuf, sync::atomic::Ordering::SeqCst, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use futures_util::future::join_all;
use serde_json::{Value, json};
use usersync_core::{catalogue, egress::Egress};
use usersync_stack::{Authorities, Directory, egress, eventually, signed_by};
use usersync_targets::{Outcome, Target, connect};

use self::{
    common::{deliver, user},
    https::Https,
    service::{Giving, Service},
};

const CURRENT: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";
const PREVIOUS: &str = "whsec_cHJldmlvdXMgMDEyMzQ1Njc4OWFiY2Rl";
const OTHER: &str = "whsec_b3RoZXIgMDEyMzQ1Njc4OWFiY2RlZjAx";
const FINE: Outcome = Outcome::Delivered { guarded: false };

/// Secrets in files.
struct Secrets(Directory);

impl Secrets {
    fn new() -> Result<Self> {
        Ok(Self(Directory::temporary()?))
    }

    /// A reference to `secret`.
    fn file(&self, name: &str, secret: &str) -> Result<String> {
        let path = self.0.path().join(name);
        std::fs::write(&path, secret)?;
        Ok(format!("file:{}", path.display()))
    }
}

fn target(url: &str, more: Value) -> Result<Box<dyn Target>> {
    open(url, more, &egress())
}

fn open(url: &str, mut entry: Value, egress: &Egress) -> Result<Box<dyn Target>> {
    entry["url"] = json!(url);
    let config = catalogue::entry("auth", entry);
    let config = config.map_err(|problems| anyhow!(problems.join("; ")))?;
    Ok(connect(&config, egress)?)
}

async fn told(target: &dyn Target, id: u64) -> Result<Outcome> {
    deliver(target, user(id, "Änne")).await
}

fn fault(outcome: &Outcome) -> Result<String> {
    match outcome {
        Outcome::Fault(failure) => Ok(failure.to_string()),
        other => Err(anyhow!("{other:?} is no fault")),
    }
}

fn verified(call: &service::Call, secrets: &[&str]) -> Result<Vec<bool>> {
    signed_by(&call.body, |name| call.header(name), secrets)
}

#[tokio::test]
async fn a_published_library_takes_calls_by_either_secret_while_one_replaces_the_other()
-> Result<()> {
    let (service, secrets) = (Service::start(Giving::Denied).await?, Secrets::new()?);
    let secret = secrets.file("current", CURRENT)?;
    let previous = secrets.file("previous", PREVIOUS)?;
    let rotating = target(
        &service.url,
        json!({"secret": secret, "previous_secret": previous}),
    )?;
    let settled = target(&service.url, json!({"secret": secret}))?;
    ensure!(told(&*rotating, 1).await? == FINE && told(&*settled, 1).await? == FINE);
    let calls = service.calls.lock().expect("a lock");
    let all = [CURRENT, PREVIOUS, OTHER];
    ensure!(verified(&calls[0], &all)? == [true, true, false]);
    ensure!(verified(&calls[1], &all)? == [true, false, false]);
    let signatures = calls[0].header("webhook-signature");
    ensure!(signatures.split(' ').count() == 2, "{signatures}");
    Ok(())
}

#[tokio::test]
async fn a_token_or_a_password_goes_with_every_call() -> Result<()> {
    let (service, secrets) = (Service::start(Giving::Denied).await?, Secrets::new()?);
    let token = secrets.file("token", "a.b-c\n")?;
    let bearer = target(&service.url, json!({"auth": {"bearer": token}}))?;
    let password = secrets.file("password", "open sesame")?;
    // The example of RFC 7617 section 2.
    let basic = json!({"basic": {"user": "Aladdin", "password": password}});
    let basic = target(&service.url, json!({"auth": basic}))?;
    ensure!(told(&*bearer, 1).await? == FINE && told(&*basic, 1).await? == FINE);
    let calls = service.calls.lock().expect("a lock");
    let sent: Vec<_> = calls
        .iter()
        .map(|call| call.header("authorization"))
        .collect();
    ensure!(
        sent == ["Bearer a.b-c", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="],
        "{sent:?}"
    );
    Ok(())
}

/// The target of `service`, which asks it for tokens too.
fn with_tokens(service: &Service, secrets: &Secrets) -> Result<Box<dyn Target>> {
    let secret = secrets.file("client", "hunter2 &")?;
    let oauth2 = json!({"token_url": format!("{}/token", service.url), "client_id": "us er",
                        "client_secret": secret, "scope": "users:write x"});
    let entry = json!({"auth": {"oauth2": oauth2}, "headers": {"X-Own": "1"}, "timeout": "5s"});
    target(&service.url, entry)
}

#[tokio::test]
async fn one_token_is_fetched_for_all_calls() -> Result<()> {
    let (service, secrets) = (Service::start(Giving::For(3600)).await?, Secrets::new()?);
    let target = with_tokens(&service, &secrets)?;
    let outcomes = join_all((0..100).map(|id| told(&*target, id))).await;
    for outcome in outcomes {
        ensure!(outcome? == FINE);
    }
    ensure!(service.counts() == (100, 1), "{:?}", service.counts());
    let asked = service.asked.lock().expect("a lock");
    // `us+er:hunter2+%26`, encoded as RFC 6749 section 2.3.1 wants it.
    ensure!(asked[0].header("authorization") == "Basic dXMrZXI6aHVudGVyMislMjY=");
    ensure!(
        asked[0].header("x-own").is_empty(),
        "the target's header went elsewhere"
    );
    ensure!(asked[0].body == "grant_type=client_credentials&scope=users%3Awrite+x");
    let calls = service.calls.lock().expect("a lock");
    ensure!(
        calls
            .iter()
            .all(|call| call.header("authorization") == "Bearer token-1")
    );
    Ok(())
}

#[tokio::test]
async fn a_token_is_fetched_again_before_it_expires() -> Result<()> {
    let (service, secrets) = (Service::start(Giving::For(2)).await?, Secrets::new()?);
    let target = with_tokens(&service, &secrets)?;
    let begun = std::time::Instant::now();
    let last = |service: &Service| {
        let calls = service.calls.lock().expect("a lock");
        calls.last().map(|call| call.header("authorization"))
    };
    eventually(Duration::from_secs(5), async || {
        ensure!(told(&*target, 1).await? == FINE);
        ensure!(last(&service).as_deref() == Some("Bearer token-2"));
        Ok(())
    })
    .await?;
    let took = begun.elapsed();
    ensure!(
        took < Duration::from_secs(2),
        "after {took:?} the first had expired"
    );
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_not_taken_is_replaced_once() -> Result<()> {
    let (service, secrets) = (Service::start(Giving::For(3600)).await?, Secrets::new()?);
    let target = with_tokens(&service, &secrets)?;
    ensure!(told(&*target, 1).await? == FINE);
    service.least.store(2, SeqCst);
    let outcomes = join_all((0..20).map(|id| told(&*target, id))).await;
    for outcome in outcomes {
        ensure!(outcome? == FINE);
    }
    ensure!(service.counts().1 == 2, "{:?}", service.counts());
    // It takes none: each call is made twice and no more.
    service.least.store(usize::MAX, SeqCst);
    let before = service.counts();
    let reason = fault(&told(&*target, 1).await?)?;
    ensure!(reason.contains("401"), "{reason}");
    ensure!(
        service.counts() == (before.0 + 2, before.1 + 1),
        "{:?}",
        service.counts()
    );
    Ok(())
}

#[tokio::test]
async fn without_a_token_no_call_is_made_and_no_secret_told() -> Result<()> {
    for (giving, why) in [
        (Giving::Denied, "401 Unauthorized invalid_client"),
        (Giving::Endless, "too long"),
        (Giving::OtherType, "no bearer token"),
    ] {
        let (service, secrets) = (Service::start(giving).await?, Secrets::new()?);
        let target = with_tokens(&service, &secrets)?;
        let outcomes = join_all((0..100).map(|id| told(&*target, id))).await;
        for outcome in outcomes {
            let reason = fault(&outcome?)?;
            ensure!(
                reason.contains(why) && !reason.contains("hunter2"),
                "{reason}"
            );
        }
        // Who waited for the first answer takes it as theirs.
        let (calls, asked) = service.counts();
        ensure!(
            calls == 0 && (1..=3).contains(&asked),
            "{calls} calls, asked {asked} times"
        );
    }
    Ok(())
}

#[tokio::test]
async fn tokens_are_fetched_where_the_target_may_be_and_nowhere_else() -> Result<()> {
    let (service, secrets) = (Service::start(Giving::For(60)).await?, Secrets::new()?);
    let secret = secrets.file("client", "hunter2")?;
    let port = service.url.rsplit(':').next().unwrap_or_default();
    for host in ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{port}/token");
        let oauth2 = json!({"token_url": url, "client_id": "c", "client_secret": secret});
        let entry = json!({"auth": {"oauth2": oauth2}});
        let target = open(
            "http://192.0.2.1:1/",
            entry,
            &Egress {
                allow: vec!["192.0.2.1".parse()?],
                limit: Vec::new(),
                ..usersync_stack::egress()
            },
        )?;
        let reason = fault(&told(&*target, 1).await?)?;
        ensure!(reason.contains("no connection is made to it"), "{reason}");
    }
    ensure!(service.counts() == (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_private_authority_and_a_certificate_of_ours_let_us_in() -> Result<()> {
    let authorities = Authorities::make()?;
    let mut https = Https::start(&authorities.ours).await?;
    let file = |path: PathBuf| format!("file:{}", path.display());
    let (ours, others) = (&authorities.ours, &authorities.others);
    let (cert, key) = (file(ours.cert("client")), file(ours.key("client")));
    let us = json!({"ca": file(ours.ca()), "cert": cert, "key": key});
    let in_time = json!("5s");
    let known = target(&https.url, json!({"tls": us, "timeout": in_time}))?;
    ensure!(told(&*known, 1).await? == FINE);
    ensure!(https.caller().await? == "client");
    for (tls, what) in [
        (json!({}), "an authority that isn't ours"),
        (
            json!({"ca": file(others.ca()), "cert": cert, "key": key}),
            "another authority",
        ),
        (json!({"ca": file(ours.ca())}), "no certificate"),
        (
            json!({"ca": file(ours.ca()), "cert": file(others.cert("client")), "key": file(others.key("client"))}),
            "a stranger's certificate",
        ),
    ] {
        let target = target(&https.url, json!({"tls": tls, "timeout": in_time}))?;
        let outcome = told(&*target, 1).await?;
        ensure!(
            matches!(outcome, Outcome::Fault(_) | Outcome::Transient(_)),
            "{what}: {outcome:?}"
        );
    }
    // Nobody else came in meanwhile.
    ensure!(told(&*known, 2).await? == FINE);
    ensure!(https.caller().await? == "client");
    Ok(())
}

#[tokio::test]
async fn certificates_that_do_not_fit_are_named_and_not_repeated() -> Result<()> {
    let (authorities, secrets) = (Authorities::make()?, Secrets::new()?);
    let cert = format!("file:{}", authorities.ours.cert("client").display());
    let junk = secrets.file("junk", "hunter2")?;
    for (tls, key) in [
        (json!({"ca": junk}), "tls.ca: "),
        (json!({"cert": junk, "key": junk}), "tls.cert: "),
        (json!({"ca": "file:/nonexistent/ca.pem"}), "tls.ca: "),
        (
            json!({"cert": cert, "key": "env:USERSYNC_NOT_SET"}),
            "tls.key: ",
        ),
    ] {
        let made = target("https://127.0.0.1:1/", json!({"tls": tls}));
        let problem = made.err().context("it was taken")?.to_string();
        ensure!(
            problem.starts_with(key) && !problem.contains("hunter2"),
            "{problem}"
        );
    }
    Ok(())
}
