//! What a stack is made of, and how it comes up.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Result;
use futures_util::future::try_join_all;

use crate::{
    Directory, Launch, NatsServer, Profile, RedisServer, Routes, Service, Stack, catalogue,
    free_port, free_port_or, tools,
};

/// Hashing passwords as slowly as in production would only cost time here.
const PASSWORD_MEMORY_KIB: u32 = 1024;

/// The ports of a stack's parts, for a catalogue that refers to them. `None` when the stack runs without the
/// examples.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// The NATS server.
    pub nats: u16,
    /// The Redis server.
    pub redis: u16,
    /// The example service that writes.
    pub basic_server: Option<u16>,
    /// The example target user-service.
    pub user_service: Option<u16>,
    /// The example target unified-auth.
    pub unified_auth: Option<u16>,
}

impl Endpoints {
    /// The port of what a shipped target stands for.
    pub(crate) fn port_of(&self, target: &str) -> Option<u16> {
        match target {
            "unified-auth" => self.unified_auth,
            "user-service" => self.user_service,
            "redis-cache" => Some(self.redis),
            _ => None,
        }
    }
}

/// Writes a catalogue once the endpoints are known.
type Catalogue = Box<dyn FnOnce(&Endpoints) -> String + Send>;

/// What to start. Made by [`Stack::builder`].
#[must_use]
pub struct StackBuilder {
    dir: Option<PathBuf>,
    standard_ports: bool,
    gateways: usize,
    schedulers: usize,
    workers: BTreeMap<String, usize>,
    examples: bool,
    targets: Option<Catalogue>,
    targets_file: Option<PathBuf>,
    nats_conf: Option<PathBuf>,
    nats_tls: bool,
    nats_cluster: Option<Routes>,
    recipe: Recipe,
}

/// What it takes to start one more of our services later.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) profile: Profile,
    pub(crate) gateway_args: Vec<OsString>,
    pub(crate) worker_args: Vec<OsString>,
    pub(crate) scheduler_args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where our binaries are, if not where this program was built.
    pub(crate) binaries: Option<PathBuf>,
    /// How far the clock of a binary is off, as faketime takes it.
    pub(crate) clocks: BTreeMap<String, String>,
    pub(crate) password_memory_kib: Option<u32>,
}

impl Default for StackBuilder {
    fn default() -> Self {
        Self {
            dir: None,
            standard_ports: false,
            gateways: 1,
            schedulers: 0,
            workers: BTreeMap::new(),
            examples: true,
            targets: None,
            targets_file: None,
            nats_conf: None,
            nats_tls: false,
            nats_cluster: None,
            recipe: Recipe {
                profile: Profile::own(),
                gateway_args: Vec::new(),
                worker_args: Vec::new(),
                scheduler_args: Vec::new(),
                env: Vec::new(),
                binaries: None,
                clocks: BTreeMap::new(),
                password_memory_kib: Some(PASSWORD_MEMORY_KIB),
            },
        }
    }
}

impl StackBuilder {
    /// Keeps everything in `dir` and continues with what is there. Without it: a temporary directory.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Takes the well-known ports (4222, 6379, 8080, 8081, 8090, 8207) where they are free.
    pub fn standard_ports(mut self) -> Self {
        self.standard_ports = true;
        self
    }

    /// How many gateways; 1 unless said otherwise.
    pub fn gateways(mut self, count: usize) -> Self {
        self.gateways = count;
        self
    }

    /// How many consistency schedulers; none unless said otherwise.
    pub fn schedulers(mut self, count: usize) -> Self {
        self.schedulers = count;
        self
    }

    /// How many workers for `target`; 1 for each enabled target of the catalogue unless said otherwise.
    pub fn workers(mut self, target: &str, count: usize) -> Self {
        self.workers.insert(target.to_owned(), count);
        self
    }

    /// Whether the example services run; they do unless said otherwise. Without them `redis-cache` is the only
    /// shipped target in the catalogue.
    pub fn examples(mut self, run: bool) -> Self {
        self.examples = run;
        self
    }

    /// Adds a catalogue file (TOML), merged over the shipped targets.
    pub fn targets_toml(
        mut self,
        write: impl FnOnce(&Endpoints) -> String + Send + 'static,
    ) -> Self {
        self.targets = Some(Box::new(write));
        self
    }

    /// Adds the user's own catalogue file (TOML, YAML or JSON), merged over all others.
    pub fn targets_file(mut self, file: &Path) -> Self {
        self.targets_file = Some(file.to_owned());
        self
    }

    /// Which build of our binaries to run; unless said otherwise the one this program was built with.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.recipe.profile = profile;
        self
    }

    /// Another configuration for the NATS server, or the project's without the user of a test.
    pub fn nats_conf(mut self, conf: &Path) -> Self {
        self.nats_conf = Some(conf.to_owned());
        self
    }

    /// Whether NATS has TLS and asks every client for a certificate; it doesn't unless said otherwise. The examples
    /// have no settings for it.
    pub fn nats_tls(mut self, tls: bool) -> Self {
        self.nats_tls = tls;
        self
    }

    /// NATS is a cluster of three, and streams have three replicas.
    pub fn nats_cluster(mut self, routes: Routes) -> Self {
        self.nats_cluster = Some(routes);
        self.env("USERSYNC_STREAMS__REPLICAS", "3")
    }

    /// More arguments for every gateway.
    pub fn gateway_args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.recipe.gateway_args.extend(args);
        self
    }

    /// More arguments for every worker.
    pub fn worker_args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.recipe.worker_args.extend(args);
        self
    }

    /// More arguments for every scheduler.
    pub fn scheduler_args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.recipe.scheduler_args.extend(args);
        self
    }

    /// Sets an environment variable for all our services.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (key.as_ref().to_owned(), value.as_ref().to_owned());
        self.recipe.env.push(pair);
        self
    }

    /// Runs the binaries in `folder`: those of another version.
    pub fn binaries(mut self, folder: &Path) -> Self {
        self.recipe.binaries = Some(folder.to_owned());
        self
    }

    /// Has the clock of a binary be off, by `+1h` for example.
    pub fn clock(mut self, binary: &str, offset: &str) -> Self {
        let clock = (binary.to_owned(), offset.to_owned());
        self.recipe.clocks.extend([clock]);
        self
    }

    /// How much memory hashing a password takes; `None` is what basic-server does in production. Unless
    /// said otherwise it is little, so that registering is fast.
    pub fn password_memory_kib(mut self, kib: Option<u32>) -> Self {
        self.recipe.password_memory_kib = kib;
        self
    }

    /// Starts everything and waits until all of it is ready.
    ///
    /// # Errors
    /// When something is missing, ends early or is not ready in time: with the end of its log. What was
    /// started by then is killed.
    pub async fn start(self) -> Result<Stack> {
        let directory = match &self.dir {
            Some(dir) => Directory::kept(dir)?,
            None => Directory::temporary()?,
        };
        let dir = directory.path();
        let port = |preferred: u16| {
            if self.standard_ports {
                free_port_or(preferred)
            } else {
                free_port()
            }
        };

        let mut nats = NatsServer::builder(dir)
            .port(port(4222)?)
            .tls(self.nats_tls)
            .clustered(self.nats_cluster);
        if let Some(conf) = &self.nats_conf {
            nats = nats.conf(conf);
        }
        let (nats, redis) =
            tokio::try_join!(nats.start(), RedisServer::start_on(dir, port(6379)?))?;

        let example = |preferred| self.examples.then(|| port(preferred)).transpose();
        let endpoints = Endpoints {
            nats: nats.port(),
            redis: redis.port(),
            basic_server: example(8080)?,
            user_service: example(8081)?,
            unified_auth: example(8207)?,
        };
        let toml = self.targets.map(|write| write(&endpoints));
        let catalogue = catalogue::write(dir, &endpoints, toml, self.targets_file.as_deref())?;
        let targets = catalogue::enabled(&catalogue)?;

        let mut stack = Stack {
            gateways: Vec::new(),
            schedulers: Vec::new(),
            workers: BTreeMap::new(),
            examples: BTreeMap::new(),
            redis,
            nats,
            endpoints,
            catalogue,
            recipe: self.recipe,
            directory,
        };
        stack.write_settings()?;
        for number in 0..self.gateways {
            let port = if number == 0 && self.standard_ports {
                free_port_or(8090)?
            } else {
                free_port()?
            };
            stack.spawn_gateway(port)?;
        }
        if self.examples {
            stack.spawn_examples()?;
        }
        let first = stack.gateways.iter().chain(stack.examples.values());
        try_join_all(first.map(Service::until_ready)).await?;

        let mut workers: BTreeMap<_, _> = targets.into_iter().map(|target| (target, 1)).collect();
        workers.extend(self.workers);
        for (target, count) in workers {
            for _ in 0..count {
                stack.spawn_worker(&target)?;
            }
        }
        for _ in 0..self.schedulers {
            stack.spawn_scheduler()?;
        }
        let last = stack.workers.values().flatten().chain(&stack.schedulers);
        try_join_all(last.map(Service::until_ready)).await?;
        Ok(stack)
    }
}

impl Recipe {
    /// The beginning of every launch of one of our binaries.
    pub(crate) fn launch(&self, dir: &Path, binary: &str, name: &str) -> Result<Launch> {
        let program = match &self.binaries {
            Some(folder) => folder.join(binary),
            None => tools::binary(binary, self.profile)?,
        };
        let log = dir.join("logs").join(format!("{name}.log"));
        let mut launch = Launch::new(name, program, log).current_dir(dir);
        for (key, value) in &self.env {
            launch = launch.env(key, value);
        }
        match self.clocks.get(binary) {
            Some(offset) => launch.clock(offset),
            None => Ok(launch),
        }
    }
}
