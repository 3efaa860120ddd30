//! A whole usersync, running: servers, gateways, workers and the example services.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::FutureExt as _;
use futures_util::future::{join_all, select_all};
use serde_json::{Value, json};

use crate::builder::Recipe;
use crate::{
    Directory, Endpoints, Metrics, NatsServer, Process, RedisServer, Service, StackBuilder,
    catalogue, egress, free_port,
};

/// How long our services and the servers may take to stop before they are killed.
const SERVICE_GRACE: Duration = Duration::from_secs(15);
const SERVER_GRACE: Duration = Duration::from_secs(10);

/// Everything that runs; dropping it kills all of it, services before servers (the order of the fields).
#[derive(Debug)]
pub struct Stack {
    /// The gateways, in the order they were started.
    pub gateways: Vec<Service>,
    /// The consistency schedulers.
    pub schedulers: Vec<Service>,
    /// The workers of each target.
    pub workers: BTreeMap<String, Vec<Service>>,
    /// `basic-server`, `user-service` and `unified-auth`, unless the stack runs without them.
    pub examples: BTreeMap<String, Service>,
    /// The Redis server.
    pub redis: RedisServer,
    /// The NATS server.
    pub nats: NatsServer,
    pub(crate) endpoints: Endpoints,
    pub(crate) catalogue: PathBuf,
    pub(crate) recipe: Recipe,
    pub(crate) directory: Directory,
}

impl Stack {
    /// What to start, with one of everything unless said otherwise.
    pub fn builder() -> StackBuilder {
        StackBuilder::default()
    }

    /// The directory with data, logs, secrets and the target catalogue.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    /// Has the clock of a binary be off in those that are started from now on; right again with `+0`.
    pub fn set_clock(&mut self, binary: &str, offset: &str) {
        let clock = (binary.to_owned(), offset.to_owned());
        self.recipe.clocks.extend([clock]);
    }

    /// Runs the binaries in `folder` from now on, or those that this program was built with.
    pub fn set_binaries(&mut self, folder: Option<&Path>) {
        self.recipe.binaries = folder.map(Path::to_owned);
    }

    /// Lets the directory stay when the stack ends, for somebody to look into it; answers where it is.
    pub fn keep_dir(&mut self) -> &Path {
        self.directory.keep();
        self.dir()
    }

    /// The directory of target catalogue files, for `--targets`.
    #[must_use]
    pub fn catalogue(&self) -> &Path {
        &self.catalogue
    }

    /// The settings file, for `--config`: where NATS is, and the main database when the examples run.
    #[must_use]
    pub fn settings(&self) -> PathBuf {
        self.dir().join("usersync.toml")
    }

    /// Writes [`Stack::settings`].
    pub(crate) fn write_settings(&self) -> Result<()> {
        let mut text = format!("[nats]\nurl = {:?}\n", self.nats.url());
        let allow: Vec<String> = egress().allow.into_iter().map(String::from).collect();
        text += &format!("\n[egress]\nallow = {allow:?}\n");
        if self.endpoints.basic_server.is_some() {
            let database = self.dir().join("basic-server.db");
            text += &format!(
                "\n[sources.basic-server]\nurl = \"sqlite:{}\"\n\n[sources.basic-server.columns]\n\
                 username = \"username\"\nemail = \"email\"\nstatus = \"status\"\n\
                 phone = \"data.phone\"\npassword_hash = \"data.password_hash\"\n",
                database.display()
            );
        }
        let path = self.settings();
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The port of everything but gateways and workers.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    /// The file with the secret that signs calls to `target`.
    #[must_use]
    pub fn secret_file(&self, target: &str) -> PathBuf {
        catalogue::secret_file(self.dir(), target)
    }

    /// What lets a process read the secrets of the shipped targets (setting `egress.secrets`).
    #[must_use]
    pub fn granted(&self) -> String {
        let secrets = self.secret_file("");
        format!("file:{}", secrets.display())
    }

    /// The first gateway.
    ///
    /// # Panics
    /// When the stack was built without one.
    #[must_use]
    pub fn gateway(&self) -> &Service {
        &self.gateways[0]
    }

    /// An example service by its name.
    ///
    /// # Panics
    /// When the stack was built without the examples, or there is none of that name.
    #[must_use]
    pub fn example(&self, name: &str) -> &Service {
        &self.examples[name]
    }

    /// One more gateway, ready.
    ///
    /// # Errors
    /// As [`Service::until_ready`].
    pub async fn add_gateway(&mut self) -> Result<&Service> {
        let at = self.gateways.len();
        self.spawn_gateway(free_port()?)?;
        self.gateways[at].until_ready().await?;
        Ok(&self.gateways[at])
    }

    /// One more worker for `target`, ready.
    ///
    /// # Errors
    /// As [`Service::until_ready`].
    pub async fn add_worker(&mut self, target: &str) -> Result<&Service> {
        self.spawn_worker(target)?;
        let worker = self.workers.get(target).and_then(|workers| workers.last());
        let worker = worker.with_context(|| format!("no worker for {target}"))?;
        worker.until_ready().await?;
        Ok(worker)
    }

    /// One more scheduler, ready.
    ///
    /// # Errors
    /// As [`Service::until_ready`].
    pub async fn add_scheduler(&mut self) -> Result<&Service> {
        let at = self.schedulers.len();
        self.spawn_scheduler()?;
        self.schedulers[at].until_ready().await?;
        Ok(&self.schedulers[at])
    }

    /// The metrics of all schedulers together.
    ///
    /// # Errors
    /// When one doesn't answer.
    pub async fn scheduler_metrics(&self) -> Result<Metrics> {
        merged(&self.schedulers).await
    }

    /// The metrics of all gateways together.
    ///
    /// # Errors
    /// When one doesn't answer.
    pub async fn gateway_metrics(&self) -> Result<Metrics> {
        merged(&self.gateways).await
    }

    /// The metrics of all workers of `target` together.
    ///
    /// # Errors
    /// When one doesn't answer.
    pub async fn worker_metrics(&self, target: &str) -> Result<Metrics> {
        merged(self.workers.get(target).map_or(&[], Vec::as_slice)).await
    }

    /// Ends when the first process does, which none of them should, and says which and why.
    pub async fn ended(&self) -> String {
        let ended = self.processes().into_iter().map(|process| {
            async move {
                let status = process.ended().await;
                let status =
                    status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
                format!("{} has ended ({status}){}", process.name(), process.told())
            }
            .boxed()
        });
        select_all(ended).await.0
    }

    /// Stops everything with SIGTERM: workers and gateways, which finish what they have in hand, then the
    /// examples, then the servers. What does not stop in time is killed.
    ///
    /// # Errors
    /// With everything that did not stop cleanly.
    pub async fn stop(self) -> Result<()> {
        let workers = self.workers.values().flatten();
        let ours = workers
            .chain(&self.schedulers)
            .chain(&self.gateways)
            .map(Service::process)
            .collect();
        let examples = self.examples.values().map(Service::process).collect();
        let servers = vec![self.redis.process(), self.nats.process()];
        let mut problems = stop_all(ours, SERVICE_GRACE).await;
        problems.extend(stop_all(examples, SERVICE_GRACE).await);
        problems.extend(stop_all(servers, SERVER_GRACE).await);
        if !problems.is_empty() {
            bail!("{}", problems.join("\n"));
        }
        Ok(())
    }

    /// Every endpoint and process id, for scripts.
    #[must_use]
    pub fn describe(&self) -> Value {
        let service = |service: &Service| json!({ "url": service.url(), "pid": service.pid() });
        let services = |services: &[Service]| services.iter().map(service).collect::<Vec<_>>();
        let workers: BTreeMap<_, _> = self
            .workers
            .iter()
            .map(|(target, workers)| (target, services(workers)))
            .collect();
        let examples: BTreeMap<_, _> = self
            .examples
            .iter()
            .map(|(name, example)| (name, service(example)))
            .collect();
        json!({
            "dir": self.dir(),
            "targets": self.catalogue(),
            "settings": self.settings(),
            "nats": {
                "url": self.nats.url(),
                "pid": self.nats.process().pid(),
                "monitor": self.nats.monitor_url(),
                "user": "operator",
                "password_file": self.nats.password_file("operator"),
            },
            "redis": { "url": self.redis.url(), "pid": self.redis.process().pid() },
            "gateway": services(&self.gateways),
            "workers": workers,
            "schedulers": services(&self.schedulers),
            "examples": examples,
        })
    }

    /// All processes, services before servers.
    #[must_use]
    pub fn processes(&self) -> Vec<&Process> {
        let workers = self.workers.values().flatten();
        workers
            .chain(&self.schedulers)
            .chain(&self.gateways)
            .chain(self.examples.values())
            .map(Service::process)
            .chain([self.redis.process(), self.nats.process()])
            .collect()
    }

    pub(crate) fn spawn_gateway(&mut self, port: u16) -> Result<()> {
        let name = format!("gateway-{}", self.gateways.len() + 1);
        let launch = self
            .recipe
            .launch(self.dir(), "usersync-gateway", &name)?
            .nats(&self.nats, "gateway")
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--log-format", "human", "--targets"])
            .arg(&self.catalogue)
            // Not by its flag: a test may give another file.
            .env("USERSYNC_CONFIG", self.settings())
            .args(&self.recipe.gateway_args);
        let service = Service::spawn(launch, format!("http://127.0.0.1:{port}"))?;
        self.gateways.push(service);
        Ok(())
    }

    pub(crate) fn spawn_worker(&mut self, target: &str) -> Result<()> {
        let number = self.workers.get(target).map_or(0, Vec::len) + 1;
        let port = free_port()?;
        let launch = self
            .recipe
            .launch(
                self.dir(),
                "usersync-worker",
                &format!("worker-{target}-{number}"),
            )?
            .env("USERSYNC_CONFIG", self.settings())
            .nats(&self.nats, "worker")
            .args(["--target", target])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--log-format", "human", "--targets"])
            .arg(&self.catalogue)
            .args(&self.recipe.worker_args);
        let service = Service::spawn(launch, format!("http://127.0.0.1:{port}"))?;
        self.workers
            .entry(target.to_owned())
            .or_default()
            .push(service);
        Ok(())
    }

    pub(crate) fn spawn_scheduler(&mut self) -> Result<()> {
        let name = format!("scheduler-{}", self.schedulers.len() + 1);
        let port = free_port()?;
        let launch = self
            .recipe
            .launch(self.dir(), "usersync-scheduler", &name)?
            // Where the main database is, when the examples run.
            .env("USERSYNC_CONFIG", self.settings())
            .args(&self.recipe.scheduler_args)
            .nats(&self.nats, "scheduler")
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--log-format", "human"]);
        let service = Service::spawn(launch, format!("http://127.0.0.1:{port}"))?;
        self.schedulers.push(service);
        Ok(())
    }

    pub(crate) fn spawn_examples(&mut self) -> Result<()> {
        let ports = [
            ("basic-server", self.endpoints.basic_server),
            ("user-service", self.endpoints.user_service),
            ("unified-auth", self.endpoints.unified_auth),
        ];
        for (name, port) in ports {
            let port = port.with_context(|| format!("{name} has no port"))?;
            let address = format!("127.0.0.1:{port}");
            let database = self.dir().join(format!("{name}.db"));
            let mut launch = self
                .recipe
                .launch(self.dir(), name, name)?
                .args(["--listen", &address])
                .arg("--database")
                .arg(database);
            if name == "basic-server" {
                if let Some(kib) = self.recipe.password_memory_kib {
                    launch = launch.args(["--argon2-memory-kib", &kib.to_string()]);
                }
            } else {
                let secret = format!("file:{}", self.secret_file(name).display());
                let password = self.nats.password_file("publisher");
                launch = launch
                    .args(["--nats-url", &self.nats.url(), "--nats-user", "publisher"])
                    .arg(format!("--nats-password=file:{}", password.display()))
                    .args(["--secret", &secret]);
            }
            let service = Service::spawn(launch, format!("http://{address}"))?;
            self.examples.insert(name.to_owned(), service);
        }
        Ok(())
    }
}

async fn merged(services: &[Service]) -> Result<Metrics> {
    let mut all = Metrics::default();
    for service in services {
        all.merge(service.metrics().await?);
    }
    Ok(all)
}

/// Stops them side by side; what went wrong, as texts.
async fn stop_all(processes: Vec<&Process>, grace: Duration) -> Vec<String> {
    let stopped = join_all(processes.into_iter().map(|process| process.stop(grace))).await;
    stopped
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect()
}
