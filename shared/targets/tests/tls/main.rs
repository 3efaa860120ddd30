//! Redis and databases over TLS by a private authority: who proves to be the host is told of users, nobody else
//! learns anything.

#[path = "../common/mod.rs"]
mod common;
mod server;
mod tap;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, anyhow, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};
use usersync_core::{catalogue, egress::Egress};
use usersync_stack::{Authorities, Certificates, Directory, egress};
use usersync_targets::{Names, Outcome, Target, connect, connect_by};

use self::{
    common::{deliver, user},
    server::{Kind, Server},
    tap::Tap,
};

const USERNAME: &str = "ann-of-the-test";

fn file(path: PathBuf) -> Value {
    json!(format!("file:{}", path.display()))
}

fn target(url: &str, secret: &Value, tls: Value) -> Result<Box<dyn Target>> {
    let entry = json!({"url": url, "secret": secret, "tls": tls, "timeout": "5s"});
    let config = catalogue::entry("crm", entry);
    let config = config.map_err(|problems| anyhow!(problems.join("; ")))?;
    Ok(connect(&config, &egress())?)
}

async fn is_told(target: &dyn Target) -> Result<()> {
    let outcome = deliver(target, user(42, USERNAME)).await?;
    ensure!(
        outcome == Outcome::Delivered { guarded: true },
        "{outcome:?}"
    );
    target.probe().await.context("the probe")
}

/// Neither delivery nor probe gets through, and both say why.
async fn is_refused(target: &dyn Target, told: &str) -> Result<()> {
    let outcome = deliver(target, user(42, USERNAME)).await?;
    let Outcome::Fault(failure) = outcome else {
        anyhow::bail!("{outcome:?} is no fault");
    };
    let probe = target
        .probe()
        .await
        .err()
        .context("the probe got an answer")?;
    for reason in [failure.to_string(), probe.to_string()] {
        ensure!(reason.contains(told), "{reason:?} is not: {told}");
    }
    Ok(())
}

/// The clauses, in turn; a kind without clients' certificates leaves out those about them.
async fn hold(kind: Kind) -> Result<()> {
    let Authorities { ours, others, dir } = Authorities::make()?;
    let mut server = Server::secured(kind, dir.path(), &ours).await?;
    let secret = server.secret();
    let at = |server: &Server, tls| {
        target(
            &kind.url(kind.user(), "localhost", server.port),
            &secret,
            tls,
        )
    };
    let known = json!({"ca": file(ours.ca())});

    // The authority is known.
    let good = at(&server, known.clone())?;
    if kind != Kind::Redis {
        good.init().await.context("making the table")?;
    }
    is_told(&*good).await.context("a good certificate")?;

    // It isn't, or another one of that name is.
    for ca in [others.ca(), ours.cert("client")] {
        let target = at(&server, json!({"ca": file(ca)}))?;
        let authority = "its certificate is of no authority we know: `tls.ca` has to hold the one that issued it";
        let told = format!("crm: no TLS with localhost:{}: {authority}", server.port);
        is_refused(&*target, &told)
            .await
            .context("another authority")?;
    }
    for (shown, told) in [
        (
            "expired",
            "its certificate has expired: renew it at the server",
        ),
        (
            "wrong-host",
            "its certificate is another host's: the host in `url` has to be in it",
        ),
    ] {
        ours.show(shown)?;
        server.renew(dir.path(), &ours).await?;
        let target = at(&server, known.clone())?;
        let told = format!("crm: no TLS with localhost:{}: {told}", server.port);
        is_refused(&*target, &told).await.context(shown)?;
    }
    ours.renew("server")?;
    server.renew(dir.path(), &ours).await?;
    is_told(&*at(&server, known.clone())?)
        .await
        .context("renewed")?;

    if kind != Kind::Neo4j {
        certificates_are_asked_for(kind, &server, &ours, &others).await?;
    }
    nothing_is_sent_in_clear(kind, &ours).await
}

/// The server wants to know who we are.
async fn certificates_are_asked_for(
    kind: Kind,
    server: &Server,
    ours: &Certificates,
    others: &Certificates,
) -> Result<()> {
    server.ask().await?;
    let url = kind.url(kind.user(), "localhost", server.port);
    let showing = |of: &Certificates, name: &str| {
        let (cert, key) = (file(of.cert(name)), file(of.key(name)));
        let tls = json!({"ca": file(ours.ca()), "cert": cert, "key": key});
        target(&url, &server.secret(), tls)
    };
    is_told(&*showing(ours, "client")?)
        .await
        .context("our certificate")?;
    let nobody = target(&url, &server.secret(), json!({"ca": file(ours.ca())}))?;
    let told = match kind {
        Kind::MySql => "where it asks for a certificate, at `tls.cert` (error 1045)",
        _ => "it asks for a certificate: set `tls.cert` and `tls.key`",
    };
    is_refused(&*nobody, told).await.context("no certificate")?;
    let told = "it doesn't take our certificate: `tls.cert` has expired, or is of an authority it doesn't know";
    for (of, name) in [(others, "client"), (ours, "expired")] {
        let stranger = showing(of, name)?;
        is_refused(&*stranger, told)
            .await
            .with_context(|| format!("a bad certificate, {name}"))?;
    }
    Ok(())
}

/// A server without TLS learns neither who we are nor whom we know.
async fn nothing_is_sent_in_clear(kind: Kind, ours: &Certificates) -> Result<()> {
    let dir = Directory::temporary()?;
    let server = Server::plain(kind, dir.path()).await?;
    let tap = Tap::before(server.port).await?;
    let url = kind.url(kind.user(), "localhost", tap.port);
    let target = target(&url, &server.secret(), json!({"ca": file(ours.ca())}))?;
    let outcome = deliver(&*target, user(42, USERNAME)).await?;
    let Outcome::Fault(failure) = outcome else {
        anyhow::bail!("{outcome:?} is no fault");
    };
    let reason = failure.to_string();
    let begin = format!("crm: no TLS with localhost:{}: it ", tap.port);
    ensure!(reason.contains(&begin), "without TLS: {reason}");
    let (length, heard) = tap.heard(&[USERNAME, kind.user(), kind.password()]);
    ensure!(heard.is_empty(), "{heard:?} among {length} bytes");
    Ok(())
}

#[tokio::test]
async fn redis_is_told_by_tls_or_not_at_all() -> Result<()> {
    hold(Kind::Redis).await
}

#[tokio::test]
async fn mysql_is_told_by_tls_or_not_at_all() -> Result<()> {
    hold(Kind::MySql).await
}

#[tokio::test]
async fn postgres_is_told_by_tls_or_not_at_all() -> Result<()> {
    hold(Kind::Postgres).await
}

#[tokio::test]
async fn neo4j_is_told_by_tls_or_not_at_all() -> Result<()> {
    hold(Kind::Neo4j).await
}

/// A resolver that knows one name more than this machine's.
struct Here;

#[async_trait]
impl Names for Here {
    async fn addresses(&self, host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
        ensure_name(host)?;
        Ok(vec![([127, 0, 0, 1], port).into()])
    }
}

fn ensure_name(host: &str) -> std::io::Result<()> {
    let known = host == "cache.usersync.test";
    known
        .then_some(())
        .ok_or(std::io::ErrorKind::NotFound.into())
}

#[tokio::test]
async fn a_name_is_proven_at_the_address_that_was_looked_at() -> Result<()> {
    let Authorities { ours, dir, .. } = Authorities::make()?;
    ours.renew_for("server", &["cache.usersync.test"])?;
    let server = Server::secured(Kind::Redis, dir.path(), &ours).await?;
    let url = Kind::Redis.url("sync", "cache.usersync.test", server.port);
    let tls = json!({"ca": file(ours.ca())});
    let entry = json!({"url": url, "secret": server.secret(), "tls": tls, "timeout": "5s"});
    let config = catalogue::entry("crm", entry);
    let config = config.map_err(|problems| anyhow!(problems.join("; ")))?;
    let found = connect_by(&config, &egress(), Arc::new(Here))?;
    is_told(&*found).await?;
    // Where the address may not be connected to, its certificate doesn't help.
    let nowhere = Egress {
        secrets: egress().secrets,
        ..Egress::default()
    };
    let nowhere = connect_by(&config, &nowhere, Arc::new(Here))?;
    is_refused(&*nowhere, "").await
}

#[tokio::test]
async fn certificates_are_read_at_every_connect_and_named_when_they_can_not_be_used() -> Result<()>
{
    let Authorities { ours, others, dir } = Authorities::make()?;
    let server = Server::secured(Kind::Postgres, dir.path(), &ours).await?;
    let url = Kind::Postgres.url("postgres", "localhost", server.port);
    let ca = dir.path().join("ca.pem");
    let identity = (ours.cert("client"), ours.key("expired"));
    let tls = json!({"ca": file(ca.clone())});
    let target = target(&url, &server.secret(), tls)?;
    is_refused(&*target, "No such file or directory (os error 2)").await?;
    std::fs::write(&ca, "of-a-secret")?;
    is_refused(&*target, "tls.ca: expected certificates in PEM form").await?;
    std::fs::copy(others.ca(), &ca)?;
    is_refused(&*target, "has to hold the one that issued it").await?;
    std::fs::copy(ours.ca(), &ca)?;
    target.init().await?;
    is_told(&*target).await?;
    let tls = json!({"ca": file(ca), "cert": file(identity.0), "key": file(identity.1)});
    let mixed = self::target(&url, &server.secret(), tls)?;
    let told = "tls.cert, tls.key: the key has to be the one of the certificate";
    is_refused(&*mixed, told).await
}
