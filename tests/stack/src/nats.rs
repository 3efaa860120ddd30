//! A NATS server of our own, started with the project's `nats.conf`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::{Client, ConnectOptions, Subscriber, client::RequestErrorKind};
use futures_util::future::try_join_all;

use crate::roles::{self, Roles, TEST};
use crate::{Certificates, Launch, Process, Signal, free_port, http, tools};

const READY_WITHIN: Duration = Duration::from_secs(20);
/// A subject that nobody serves.
const NOBODY: &str = "usersync.test.nobody";

/// Subscribes to `subject`, and returns once the server knows: whatever any connection publishes from then on
/// arrives. [`Client::flush`] tells no more than that it was written.
///
/// # Errors
/// When the server can't be asked, or somebody answers for nobody.
pub async fn subscribe(client: &Client, subject: impl Into<String>) -> Result<Subscriber> {
    let subscriber = client.subscribe(subject.into()).await?;
    // The server reads what a connection says in order: with this answer it has read the subscription.
    let answered = client.request(NOBODY, "".into()).await;
    let error = answered.err().context("somebody answers for nobody")?;
    ensure!(error.kind() == RequestErrorKind::NoResponders, error);
    Ok(subscriber)
}

/// A running nats-server with JetStream; killed on drop, its store stays in its directory.
#[derive(Debug)]
pub struct NatsServer {
    launch: Launch,
    process: Process,
    port: u16,
    monitor_port: u16,
    conf: PathBuf,
    roles: Roles,
    test: String,
    certificates: Option<Certificates>,
    peers: Vec<NatsServer>,
}

/// How the three servers of a cluster reach each other.
#[derive(Clone, Debug)]
pub struct Routes {
    ports: [u16; 3],
    /// The port by which one reaches another.
    by: [[u16; 3]; 3],
}

impl Routes {
    /// Directly, at free ports.
    ///
    /// # Errors
    /// When there are none.
    pub fn direct() -> Result<Self> {
        let ports = [free_port()?, free_port()?, free_port()?];
        Ok(Self {
            ports,
            by: [ports; 3],
        })
    }

    /// Where a server listens for the others.
    #[must_use]
    pub fn port(&self, server: usize) -> u16 {
        self.ports[server]
    }

    /// `from` reaches `to` by this port from now on, such as that of a proxy.
    pub fn lead(&mut self, from: usize, to: usize, port: u16) {
        self.by[from][to] = port;
    }

    /// What tells a server of the others.
    fn args(&self, server: usize) -> Vec<String> {
        let url = |port| format!("nats://127.0.0.1:{port}");
        let by = self.by[server].into_iter().map(url);
        let args = [
            ["-n".to_owned(), format!("server-{server}")],
            ["--cluster_name".to_owned(), "tests".to_owned()],
            ["--cluster".to_owned(), url(self.ports[server])],
            ["--routes".to_owned(), by.collect::<Vec<_>>().join(",")],
        ];
        let mut args = args.concat();
        if self.by != [self.ports; 3] {
            // Nobody hears of a way that leads past the proxies.
            args.extend(["--cluster_advertise", "127.0.0.1:1"].map(str::to_owned));
        }
        args
    }
}

/// What to start a [`NatsServer`] with.
#[derive(Debug)]
pub struct NatsBuilder {
    dir: PathBuf,
    conf: Option<PathBuf>,
    port: Option<u16>,
    monitor_port: Option<u16>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    tls: bool,
    clustered: Option<Routes>,
}

impl NatsServer {
    /// Starts one with the project's `nats.conf` and the user of [`NatsServer::test_url`], on free ports, with its
    /// store and log in `dir`.
    ///
    /// # Errors
    /// When it is not installed, or not ready in time: with the end of its log.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::builder(dir).start().await
    }

    /// The same with another configuration file.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn start_with_conf(dir: &Path, conf: &Path) -> Result<Self> {
        Self::builder(dir).conf(conf).start().await
    }

    /// For a server with ports or arguments of its own.
    #[must_use]
    pub fn builder(dir: &Path) -> NatsBuilder {
        NatsBuilder {
            dir: dir.to_owned(),
            conf: None,
            port: None,
            monitor_port: None,
            args: Vec::new(),
            env: Vec::new(),
            tls: false,
            clustered: None,
        }
    }

    /// Where clients connect: `nats://127.0.0.1:PORT`, or `tls://`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() {
            "tls"
        } else {
            "nats"
        };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// The certificates that it and its clients have, if it was started with TLS.
    #[must_use]
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// Connects as a test, who may do everything.
    ///
    /// # Errors
    /// When the server can't be reached, or refuses.
    pub async fn connect(&self) -> Result<Client> {
        let mut options = ConnectOptions::new();
        if let Some(certificates) = &self.certificates {
            options = options
                .require_tls(true)
                .add_root_certificates(certificates.ca())
                .add_client_certificate(certificates.cert("client"), certificates.key("client"));
        }
        roles::connect_with(&self.test_url(), options).await
    }

    /// The same with user and password of a test, who may do everything.
    #[must_use]
    pub fn test_url(&self) -> String {
        format!("nats://{}@127.0.0.1:{}", self.test, self.port)
    }

    /// The same with user and password of a role, for clients that take them nowhere else.
    ///
    /// # Errors
    /// When the password file can't be read.
    pub fn url_as(&self, role: &str) -> Result<String> {
        let login = self.roles.login(role)?;
        Ok(format!("nats://{login}@127.0.0.1:{}", self.port))
    }

    /// The file with the password of a role of `nats.conf`.
    #[must_use]
    pub fn password_file(&self, role: &str) -> PathBuf {
        self.roles.file(role)
    }

    /// Its configuration file; without one of its own a copy of the project's, which a test may change.
    #[must_use]
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// Has it read its configuration file again (SIGHUP).
    ///
    /// # Errors
    /// When it has ended already.
    pub fn reload(&self) -> Result<()> {
        self.process.signal(Signal::SIGHUP)
    }

    /// The port of [`NatsServer::url`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where `/varz`, `/jsz` and the like are: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    /// The port of [`NatsServer::monitor_url`].
    #[must_use]
    pub fn monitor_port(&self) -> u16 {
        self.monitor_port
    }

    /// The server's process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The other servers of its cluster; none where it was started alone.
    pub fn peers(&mut self) -> &mut [Self] {
        &mut self.peers
    }

    /// Kills it the hard way and waits until it is gone.
    pub async fn kill9(&self) {
        self.process.kill9().await;
    }

    /// Starts it again on the same ports and the same store; one that still runs is killed first.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill9().await;
        self.process = self.launch.spawn()?;
        self.until_ready().await
    }

    /// Stops it with SIGTERM; after `grace` it is killed.
    ///
    /// # Errors
    /// When it did not stop cleanly.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.process.stop(grace).await
    }

    /// Ready means that JetStream serves, not only that the port is open.
    async fn until_ready(&self) -> Result<()> {
        let client = http::client();
        let url = format!("{}/healthz?js-server-only=true", self.monitor_url());
        self.process
            .until_ready(READY_WITHIN, async || {
                http::get_text(&client, &url).await.map(drop)
            })
            .await
    }
}

impl NatsBuilder {
    /// Another configuration, or the project's as it is, without the user of a test. It must not set `store_dir`, which is given as a flag.
    #[must_use]
    pub fn conf(mut self, conf: &Path) -> Self {
        self.conf = Some(conf.to_owned());
        self
    }

    /// The port for clients, else a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The port for monitoring, else a free one.
    #[must_use]
    pub fn monitor_port(mut self, port: u16) -> Self {
        self.monitor_port = Some(port);
        self
    }

    /// With TLS as `nats.conf` shows it, for clients with a certificate only; everything in `dir/tls`.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Makes it one of three that form a cluster, in which clients learn of the others. They keep their stores in
    /// `dir/peer-N`.
    #[must_use]
    pub fn clustered(mut self, routes: Option<Routes>) -> Self {
        self.clustered = routes;
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more environment variable, or another value than the password of a role.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it and waits until JetStream serves.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn start(self) -> Result<NatsServer> {
        let members = match self.clustered.clone() {
            Some(routes) => self.into_cluster(&routes)?,
            None => vec![self],
        };
        let servers = members.into_iter().map(Self::spawn);
        let mut servers = servers.collect::<Result<Vec<_>>>()?;
        // A cluster serves when most of its servers are there.
        try_join_all(servers.iter().map(NatsServer::until_ready)).await?;
        let peers = servers.split_off(1);
        let mut server = servers.pop().context("a cluster without a server")?;
        server.peers = peers;
        Ok(server)
    }

    /// All that form the cluster, this one first; they have the same users.
    fn into_cluster(self, routes: &Routes) -> Result<Vec<Self>> {
        let roles = Roles::of(&self.dir)?;
        let mut members = vec![self];
        for number in 1..routes.ports.len() {
            let dir = members[0].dir.join(format!("peer-{number}"));
            roles.copy_to(&dir)?;
            members.push(NatsServer::builder(&dir));
        }
        let of_cluster = |(number, member)| routes.args(number).into_iter().fold(member, Self::arg);
        Ok(members.into_iter().enumerate().map(of_cluster).collect())
    }

    fn spawn(self) -> Result<NatsServer> {
        let port = self.port.map_or_else(free_port, Ok)?;
        let monitor_port = self.monitor_port.map_or_else(free_port, Ok)?;
        let roles = Roles::of(&self.dir)?;
        let certificates = if self.tls {
            Some(Certificates::make(&self.dir.join("tls"))?)
        } else {
            None
        };
        let conf = match self.conf {
            Some(conf) => conf,
            None => roles::conf_of_tests(&self.dir, certificates.as_ref())?,
        };
        let mut launch = roles
            .given_to(Launch::new(
                "nats-server",
                tools::nats_server()?,
                self.dir.join("nats.log"),
            ))?
            .arg("-c")
            .arg(&conf)
            .arg("-sd")
            .arg(self.dir.join("nats"))
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .args(["-m", &monitor_port.to_string()])
            .args(self.args);
        for (name, value) in self.env {
            launch = launch.env(name, value);
        }
        Ok(NatsServer {
            process: launch.spawn()?,
            launch,
            port,
            monitor_port,
            conf,
            test: roles.login(TEST)?,
            roles,
            certificates,
            peers: Vec::new(),
        })
    }
}
