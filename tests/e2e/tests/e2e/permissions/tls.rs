//! NATS with TLS and certificates of a private authority: good ones are let in, bad ones say what is to be done.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use usersync_stack::{
    Certificates, Directory, Launch, NatsServer, Profile, Service, eventually, free_port, http,
    tools,
};

use crate::support::{LATER, Load, SOON};

const GRACE: Duration = Duration::from_secs(20);

/// A worker that is to connect to `nats`, with a certificate or without.
struct Client<'a> {
    nats: &'a NatsServer,
    ca: PathBuf,
    identity: Option<(PathBuf, PathBuf)>,
}

impl Client<'_> {
    fn launch(&self, dir: &Directory, log: &str) -> Result<Launch> {
        let program = tools::binary("usersync-worker", Profile::own())?;
        let password = self.nats.password_file("worker");
        let mut launch = Launch::new("worker", program, dir.path().join(log))
            .args(["--target", "audit"])
            .env("USERSYNC_NATS__URL", self.nats.url())
            .env("USERSYNC_NATS__USER", "worker")
            .env(
                "USERSYNC_NATS__PASSWORD",
                format!("file:{}", password.display()),
            )
            .env("USERSYNC_NATS__CA", &self.ca);
        if let Some((cert, key)) = &self.identity {
            launch = launch
                .env("USERSYNC_NATS__CERT", cert)
                .env("USERSYNC_NATS__KEY", key);
        }
        Ok(launch)
    }

    /// Both `--check` and `/readyz` say `told`, and what it says to do.
    async fn is_told(&self, dir: &Directory, told: &str, hint: &str) -> Result<()> {
        eventually(SOON, async || {
            let check = self.launch(dir, "check.log")?.arg("--check");
            let process = check.spawn()?;
            let status = process.wait_exit(GRACE).await?;
            let said = process.log_tail();
            let clear = said.contains(told) && said.contains(hint);
            ensure!(!status.success() && clear, "{status}: {said}");
            fs::remove_file(check.log())?;
            Ok(())
        })
        .await?;
        let listen = format!("127.0.0.1:{}", free_port()?);
        let launch = self.launch(dir, "worker.log")?.args(["--listen", &listen]);
        let worker = Service::spawn(launch, format!("http://{listen}"))?;
        eventually(SOON, async || {
            let readyz = http::client().get(format!("{}/readyz", worker.url()));
            let said: Value = readyz.send().await?.json().await?;
            let nats = said["parts"]["nats"].as_str().unwrap_or_default();
            ensure!(nats.contains(told) && nats.contains(hint), "{said}");
            Ok(())
        })
        .await?;
        worker.stop(GRACE).await
    }
}

#[tokio::test]
async fn certificates_that_are_no_good_are_refused_and_the_setting_is_named() -> Result<()> {
    let (dir, elsewhere) = (Directory::temporary()?, Directory::temporary()?);
    let nats = NatsServer::builder(dir.path()).tls(true).start().await?;
    let certificates = nats.certificates().context("no certificates")?;
    let others = Certificates::make(elsewhere.path())?;
    let of = |certificates: &Certificates, cert: &str, key: &str| {
        Some((certificates.cert(cert), certificates.key(key)))
    };
    let client = |ca, identity| Client {
        nats: &nats,
        ca,
        identity,
    };
    let good = of(certificates, "client", "client");

    // One of another name, and one of the same name with another key.
    for (ca, told) in [
        (certificates.cert("client"), "UnknownIssuer"),
        (others.ca(), "BadSignature"),
    ] {
        let client = client(ca, good.clone());
        client.is_told(&dir, told, "nats.ca has to hold").await?;
    }
    for (identity, told, hint) in [
        (None, "CertificateRequired", "set nats.cert and nats.key"),
        (
            of(&others, "client", "client"),
            "alert",
            "doesn't take nats.cert",
        ),
        (
            of(certificates, "expired", "expired"),
            "alert",
            "doesn't take nats.cert",
        ),
        (
            of(certificates, "client", "server"),
            "could not add",
            "nats.cert and nats.key have to belong together",
        ),
        (
            Some((certificates.cert("client"), certificates.cert("client"))),
            "could not load private key",
            "nats.key",
        ),
    ] {
        let client = client(certificates.ca(), identity);
        client.is_told(&dir, told, hint).await?;
    }
    for (name, told, hint) in [
        ("expired", "certificate expired", "cert_file in nats.conf"),
        ("wrong-host", "not valid for name \"127.0.0.1\"", "nats.url"),
    ] {
        certificates.show(name)?;
        nats.reload()?;
        client(certificates.ca(), good.clone())
            .is_told(&dir, told, hint)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_tls_is_told_nothing_by_who_wants_it() -> Result<()> {
    let dir = Directory::temporary()?;
    let nats = NatsServer::start(dir.path()).await?;
    let certificates = Certificates::make(&dir.path().join("tls"))?;
    let client = Client {
        nats: &nats,
        ca: certificates.ca(),
        identity: None,
    };
    client
        .is_told(&dir, "corrupt message", "the server has no TLS")
        .await
}

#[tokio::test]
async fn the_servers_certificate_is_renewed_under_load_and_no_event_is_lost() -> Result<()> {
    let mut load = Load::start(|stack| stack.nats_tls(true)).await?;
    let pid = load.worker().pid();
    let certificates = load.stack.nats.certificates();
    certificates.context("no certificates")?.renew("server")?;
    load.stack.nats.reload()?;
    load.change(2).await?;

    // One that has expired keeps everybody out, and says so.
    let certificates = load.stack.nats.certificates();
    certificates.context("no certificates")?.show("expired")?;
    load.stack.nats.restart().await?;
    eventually(LATER, async || {
        let said = load.part("nats").await?;
        let text = said.as_str().unwrap_or_default();
        ensure!(text.contains("certificate expired"), "{said}");
        Ok(())
    })
    .await?;

    // A good one is enough: nobody is restarted.
    let certificates = load.stack.nats.certificates();
    certificates.context("no certificates")?.renew("server")?;
    load.stack.nats.reload()?;
    load.worker().until_ready().await?;
    load.change(3).await?;
    load.has_all_of(3).await?;
    assert_eq!(load.worker().pid(), pid);
    Ok(())
}
