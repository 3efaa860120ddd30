//! `usersync-gateway notify --test`: every way of `[notify]`, tried without any NATS.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::{Launch, SmtpServer, tools};

use super::{OPS, OTHER, SECRET, Settings, verified};
use crate::support::{Recorder, SOON, answer};

/// Exit status, and what it said.
async fn test(settings: &Settings, more: &[&str]) -> Result<(i32, String)> {
    let program = tools::binary("usersync-gateway", tools::Profile::own())?;
    let dir = settings.dir.path();
    let number = fs::read_dir(dir)?.count();
    let launch = Launch::new("notify", program, dir.join(format!("notify-{number}.log")))
        .args([Path::new("--config"), &settings.write()?])
        .args(["notify", "--test"])
        .args(more);
    let status = launch.spawn()?.wait_exit(SOON).await?;
    let said = fs::read_to_string(launch.log())?;
    Ok((status.code().unwrap_or(-1), said))
}

#[tokio::test]
async fn each_way_is_tried_and_says_that_it_works() -> Result<()> {
    let receiver = Recorder::start(async |_| answer(200)).await?;
    for security in ["starttls", "tls", "none"] {
        let settings = Settings::new()?;
        let server = SmtpServer::start(settings.dir.path(), security).await?;
        let settings = settings
            .webhook(&receiver, "")?
            .email(&server, security, OPS)?;
        let (status, said) = test(&settings, &[]).await?;
        assert_eq!((status, said.as_str()), (0, "webhook  ok\nemail    ok\n"));
        let mails = server.mails()?;
        ensure!(mails.len() == 1, "{mails:?}");
        assert_eq!(mails[0]["tls"], security != "none");
        assert_eq!(mails[0]["headers"]["subject"], "usersync: a test");
    }
    let call = receiver.calls().pop().context("no call")?;
    assert_eq!(call.body["type"], "usersync.test");
    ensure!(verified(&call, &[SECRET, OTHER])? == [true, false]);
    Ok(())
}

#[tokio::test]
async fn what_does_not_work_is_told_apart_from_what_does() -> Result<()> {
    let receiver = Recorder::start(async |_| answer(401)).await?;
    let settings = Settings::new()?;
    let server = SmtpServer::start(settings.dir.path(), "starttls").await?;
    let other = SmtpServer::start(settings.dir.path(), "tls").await?;
    let mut settings = settings
        .webhook(&receiver, "")?
        .email(&server, "starttls", OPS)?;
    let (status, said) = test(&settings, &["--json"]).await?;
    let line = said.lines().next().unwrap_or_default();
    let expected = json!({"channels": [
        {"channel": "webhook", "ok": false, "error": "the target answered 401 Unauthorized"},
        {"channel": "email", "ok": true},
    ]});
    assert_eq!(
        (status, serde_json::from_str::<Value>(line)?),
        (1, expected),
        "{said}"
    );

    fs::write(settings.file("password"), "hunter2")?;
    let (status, said) = test(&settings, &[]).await?;
    ensure!(
        status == 1 && said.contains("doesn't let us in: 535"),
        "{said}"
    );
    ensure!(!said.contains("hunter2"), "{said}");

    // An authority that hasn't issued the server's certificate, and a network that nobody allowed.
    let (ours, theirs) = (server.ca(), other.ca());
    settings.text = settings
        .text
        .replace(&*ours.to_string_lossy(), &theirs.to_string_lossy())
        .replace("allow_networks = [\"loopback\"]\n", "");
    let (status, said) = test(&settings, &[]).await?;
    ensure!(
        status == 1 && said.contains("2 of 2 channels did not take the test"),
        "{said}"
    );
    for reason in [
        "127.0.0.1 is a loopback address",
        "invalid peer certificate",
    ] {
        ensure!(said.contains(reason), "no {reason} in {said}");
    }
    ensure!(server.mails()?.len() == 1);

    settings.text.clear();
    let (status, said) = test(&settings, &[]).await?;
    ensure!(
        status == 1 && said.contains("set notify.webhook.url or notify.email.host"),
        "{said}"
    );
    Ok(())
}
