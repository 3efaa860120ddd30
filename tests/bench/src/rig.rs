//! What every benchmark stands on: a NATS server with our streams, and ways to start our binaries and this
//! program in one of its hidden roles. All of it is killed on drop.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_nats::jetstream::{self, consumer::pull, stream};
use serde_json::json;
use usersync_core::{catalogue, registry::Registry, streams, subjects, target::TargetConfig};
use usersync_stack::{Directory, Launch, NatsServer, Process, Profile, Service, free_port, tools};

/// Publishes under way at once, in a preload and in the bare loops.
pub(crate) const WINDOW: usize = 2_000;
/// How long one of our binaries may take to stop.
const GRACE: Duration = Duration::from_secs(15);

/// A NATS server with the streams of usersync and nothing in them.
pub(crate) struct Rig {
    /// JetStream, with room for [`WINDOW`] publishes.
    pub jetstream: jetstream::Context,
    nats: NatsServer,
    directory: Directory,
}

impl Rig {
    /// Starts the server and creates the streams and the consumer of intake.
    ///
    /// # Errors
    /// When the server doesn't start or refuses.
    pub(crate) async fn start() -> Result<Self> {
        let directory = Directory::temporary()?;
        let nats = NatsServer::start(directory.path()).await?;
        let client = usersync_stack::connect(&nats.test_url())
            .await
            .context("connecting to the benchmark's NATS server")?;
        let jetstream = jetstream::new(client);
        streams::ensure(&jetstream, 1).await?;
        streams::ensure_consumers(&jetstream).await?;
        Ok(Self {
            jetstream,
            nats,
            directory,
        })
    }

    /// Where data, logs and settings are.
    pub(crate) fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// Where the bare loops connect, who may do everything.
    pub(crate) fn nats_url(&self) -> String {
        self.nats.test_url()
    }

    /// The server, for our binaries.
    pub(crate) fn nats(&self) -> &NatsServer {
        &self.nats
    }

    /// A stream by its name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn stream(&self, name: &str) -> Result<stream::Stream> {
        let stream = self.jetstream.get_stream(name).await;
        stream.with_context(|| format!("asking for stream {name}"))
    }

    /// A second stream for the bare loops: `name` and `subject`, all else as in `like`.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn twin(&self, like: &str, name: &str, subject: &str) -> Result<()> {
        let mut config = self.stream(like).await?.cached_info().config.clone();
        config.name = name.to_owned();
        config.subjects = vec![subject.to_owned()];
        let created = self.jetstream.create_stream(config).await;
        created
            .map(drop)
            .with_context(|| format!("creating stream {name}"))
    }

    /// Creates a consumer anew, so that it starts at its first message.
    ///
    /// # Errors
    /// When the server refuses.
    pub(crate) async fn fresh_consumer(&self, stream: &str, config: pull::Config) -> Result<()> {
        let name = config.durable_name.clone().unwrap_or_default();
        // Fails when it isn't there, which is as good.
        let _ = self
            .jetstream
            .delete_consumer_from_stream(&name, stream)
            .await;
        let created = self
            .jetstream
            .create_consumer_on_stream(config, stream)
            .await;
        created
            .map(drop)
            .with_context(|| format!("creating consumer {name} on stream {stream}"))
    }

    /// Registers a target, and creates its consumer of repairs. `settings` are the keys of its entry but the URL.
    ///
    /// # Errors
    /// When the target is no valid one, or the server refuses.
    pub(crate) async fn target(
        &self,
        name: &str,
        url: &str,
        settings: &serde_json::Value,
    ) -> Result<TargetConfig> {
        // Everything runs on this machine.
        let mut entry = json!({ "url": url, "allow_networks": ["loopback"] });
        for (key, value) in settings.as_object().into_iter().flatten() {
            entry[key] = value.clone();
        }
        let target = catalogue::entry(name, entry.clone())
            .map_err(|problems| anyhow!(problems.join("\n")))?;
        let registry = Registry::open(&self.jetstream, |_| Ok(())).await?;
        let value = serde_json::to_vec(&entry)?.into();
        let stored = registry.store().put(name, value).await;
        stored.with_context(|| format!("registering target {name}"))?;
        self.fresh_consumer(subjects::USER_REPAIR, streams::repair_consumer(&target))
            .await?;
        Ok(target)
    }

    /// A real worker for the target of [`Rig::target`]; not yet ready.
    ///
    /// # Errors
    /// When it isn't built or can't be started.
    pub(crate) fn worker(&self, target: &TargetConfig) -> Result<Service> {
        self.service("usersync-worker", &["--target", target.name.as_ref()])
    }

    /// The same that records no metrics and logs nothing.
    ///
    /// # Errors
    /// When it isn't built or can't be started.
    pub(crate) fn unobserved_worker(&self, target: &TargetConfig) -> Result<Service> {
        let settings = self.dir().join("unobserved.toml");
        std::fs::write(&settings, "metrics = false\nlog.filter = \"off\"\n")?;
        let (settings, target) = (settings.to_string_lossy(), target.name.as_ref());
        self.service(
            "usersync-worker",
            &["--config", &settings, "--target", target],
        )
    }

    /// A real worker for every target that is registered; not yet ready.
    ///
    /// # Errors
    /// When it isn't built or can't be started.
    pub(crate) fn worker_of_all(&self) -> Result<Service> {
        self.service("usersync-worker", &[])
    }

    /// A real gateway; not yet ready.
    ///
    /// # Errors
    /// When it isn't built or can't be started.
    pub(crate) fn gateway(&self) -> Result<Service> {
        self.service("usersync-gateway", &[])
    }

    /// A real gateway with the settings in `usersync.toml` here, the outbox of a [`crate::main_db::MainDb`] for example; not yet ready.
    ///
    /// # Errors
    /// When it isn't built or can't be started.
    pub(crate) fn gateway_as_set(&self) -> Result<Service> {
        let settings = self.dir().join("usersync.toml");
        self.service(
            "usersync-gateway",
            &["--config", &settings.to_string_lossy()],
        )
    }

    fn service(&self, binary: &str, args: &[&str]) -> Result<Service> {
        let address = format!("127.0.0.1:{}", free_port()?);
        let log = self.dir().join(format!("{binary}.log"));
        let launch = Launch::new(binary, tools::binary(binary, Profile::own())?, log)
            .current_dir(self.dir())
            .nats(&self.nats, binary.trim_start_matches("usersync-"))
            .args(["--listen", &address])
            .args(["--log-format", "human"])
            .args(args);
        Service::spawn(launch, format!("http://{address}"))
    }

    /// This very program in one of its hidden roles.
    ///
    /// # Errors
    /// When it can't be started.
    pub(crate) fn role<A: AsRef<OsStr>>(
        &self,
        name: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Process> {
        let own = std::env::current_exe().context("finding this program")?;
        let log = self.dir().join(format!("{name}.log"));
        Launch::new(name, own, log).args(args).spawn()
    }
}

/// Stops one of our binaries the ordinary way; anything but a clean end is an error.
pub(crate) async fn stop(service: Service) -> Result<()> {
    service.stop(GRACE).await
}
