//! The HTTP API over TLS by a private authority: who is let in, what is refused, and what changes while it runs.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use reqwest::{Certificate, Client, Identity};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use usersync_stack::{Certificates, Directory, Launch, NatsServer, Service, eventually, free_port};

const GRACE: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(15);

/// A gateway with TLS.
struct Api {
    dir: Directory,
    _nats: NatsServer,
    tls: Certificates,
    others: Certificates,
    gateway: Service,
    port: u16,
}

impl Api {
    /// With more settings.
    async fn start(client_ca: bool) -> Result<Self> {
        let dir = Directory::temporary()?;
        let nats = NatsServer::start(dir.path()).await?;
        let tls = Certificates::make(&dir.path().join("tls"))?;
        let others = Certificates::make(&dir.path().join("others"))?;
        let port = free_port()?;
        let mut launch =
            launch(&nats, &tls, dir.path()).args(["--listen", &format!("127.0.0.1:{port}")]);
        if client_ca {
            launch = launch.env("USERSYNC_HTTP__TLS__CLIENT_CA", tls.ca());
        }
        let gateway = Service::spawn(launch, format!("https://localhost:{port}"))?;
        let api = Self {
            dir,
            _nats: nats,
            tls,
            others,
            gateway,
            port,
        };
        let client = api.client(Some(&api.tls), client_ca.then_some("client"))?;
        eventually(SOON, async || Ok(api.get(&client, "/readyz").await?)).await?;
        Ok(api)
    }

    /// A client with a new connection for each request, that trusts an authority and shows a certificate.
    fn client(&self, ca: Option<&Certificates>, shown: Option<&str>) -> Result<Client> {
        // Only the first call in a process installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(SOON);
        if let Some(ca) = ca {
            client = client.tls_certs_only([Certificate::from_pem(&fs::read(ca.ca())?)?]);
        }
        if let Some(name) = shown {
            let pem = [
                fs::read(self.tls.cert(name))?,
                fs::read(self.tls.key(name))?,
            ]
            .concat();
            client = client.identity(Identity::from_pem(&pem)?);
        }
        Ok(client.build()?)
    }

    async fn get(&self, client: &Client, path: &str) -> std::result::Result<(), reqwest::Error> {
        let url = format!("{}{path}", self.gateway.url());
        client.get(url).send().await?.error_for_status().map(drop)
    }

    /// What the gateway has logged.
    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("gateway.log"))?)
    }
}

fn launch(nats: &NatsServer, tls: &Certificates, dir: &Path) -> Launch {
    Launch::new(
        "gateway",
        env!("CARGO_BIN_EXE_usersync-gateway"),
        dir.join("gateway.log"),
    )
    .nats(nats, "gateway")
    .env("USERSYNC_HTTP__TLS__CERT", tls.cert("server"))
    .env("USERSYNC_HTTP__TLS__KEY", tls.key("server"))
}

#[tokio::test]
async fn https_lets_in_who_trusts_it_and_nobody_without_tls() -> Result<()> {
    let api = Api::start(false).await?;
    let known = api.client(Some(&api.tls), None)?;
    api.get(&known, "/healthz").await?;
    let stranger = api.client(Some(&api.others), None)?;
    assert!(
        api.get(&stranger, "/healthz").await.is_err(),
        "another authority"
    );

    let mut plain = TcpStream::connect(("127.0.0.1", api.port)).await?;
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, plain.read_to_end(&mut answer)).await??;
    // An alert of TLS, and nothing of HTTP.
    assert_eq!(answer.first(), Some(&21), "{answer:?}");
    assert!(answer.len() < 16, "{answer:?}");
    api.gateway.stop(GRACE).await
}

#[tokio::test]
async fn who_is_asked_for_a_certificate_has_to_show_a_good_one() -> Result<()> {
    let api = Api::start(true).await?;
    for (shown, let_in) in [
        (Some("client"), true),
        (None, false),
        (Some("expired"), false),
    ] {
        let client = api.client(Some(&api.tls), shown)?;
        let answered = api.get(&client, "/healthz").await;
        assert_eq!(answered.is_ok(), let_in, "{shown:?}: {answered:?}");
    }
    Ok(())
}

#[tokio::test]
async fn silent_connections_hold_up_nobody() -> Result<()> {
    let api = Api::start(false).await?;
    let client = api.client(Some(&api.tls), None)?;
    // Within what may be under way, and beyond.
    for silent in [200, 400] {
        let mut connections = Vec::new();
        for _ in 0..silent {
            connections.push(TcpStream::connect(("127.0.0.1", api.port)).await?);
        }
        let begun = Instant::now();
        for _ in 0..20 {
            api.get(&client, "/healthz").await?;
        }
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(3),
            "20 requests beside {silent} silent ones took {took:?}"
        );
        // They are sent away.
        let mut first = connections.swap_remove(0);
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(SOON, first.read_to_end(&mut rest)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_failed_request() -> Result<()> {
    let api = Api::start(false).await?;
    let client = api.client(Some(&api.tls), None)?;
    let mut requests = 0;
    for turn in 1..=3 {
        api.tls.renew("server")?;
        let until = Instant::now() + SOON;
        while api.log()?.matches("has changed").count() < turn {
            assert!(Instant::now() < until, "the certificate wasn't read again");
            let four = (0..4).map(|_| api.get(&client, "/healthz"));
            for answered in futures_util::future::join_all(four).await {
                answered?;
                requests += 1;
            }
        }
        api.get(&client, "/healthz").await?;
    }
    assert!(requests >= 12, "{requests}");

    // One that isn't the key's changes nothing; one that has expired is shown, and said to be no good.
    fs::copy(api.tls.cert("client"), api.tls.cert("server"))?;
    eventually(SOON, async || {
        let log = api.log()?;
        ensure!(
            log.contains("the key has to be the one of the certificate"),
            "{log}"
        );
        Ok(())
    })
    .await?;
    api.get(&client, "/healthz").await?;
    api.tls.show("expired")?;
    eventually(SOON, async || {
        let log = api.log()?;
        ensure!(log.contains("the certificate has expired"), "{log}");
        Ok(())
    })
    .await?;
    assert!(
        api.get(&client, "/healthz").await.is_err(),
        "an expired certificate"
    );
    Ok(())
}

#[tokio::test]
async fn files_that_can_not_be_used_are_named_by_check() -> Result<()> {
    let dir = Directory::temporary()?;
    let nats = NatsServer::start(dir.path()).await?;
    let tls = Certificates::make(&dir.path().join("tls"))?;
    let launch = launch(&nats, &tls, dir.path()).arg("--check");
    let check = async |told: &str| -> Result<()> {
        let process = launch.spawn()?;
        let status = process.wait_exit(GRACE).await?;
        let said = process.log_tail();
        assert_eq!(status.success(), told.is_empty(), "{said}");
        assert!(said.contains(told), "{said}");
        fs::remove_file(dir.path().join("gateway.log"))?;
        Ok(())
    };
    check("").await?;
    tls.show("expired")?;
    check("http.tls.cert: the certificate has expired").await?;
    fs::copy(tls.key("client"), tls.key("server"))?;
    check("http.tls.cert, http.tls.key: the key has to be the one of the certificate").await?;
    fs::write(tls.cert("server"), "hunter2")?;
    check("http.tls.cert, http.tls.key: expected certificates in PEM form").await?;
    fs::remove_file(tls.cert("server"))?;
    check("http.tls.cert: can't read").await
}
