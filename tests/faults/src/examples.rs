//! The example services as targets for a while: they mount the receiver kit, which wants calls to be signed and
//! refuses older versions.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use usersync_stack::{Launch, Service, eventually, free_port, http, tools};

use crate::{
    merge::Person,
    world::{SECRETS, SOON, World},
};

/// Their names, and where they take deliveries.
const SERVICES: [(&str, &str); 2] = [
    ("user-service", "/api/v1/users/sync"),
    ("unified-auth", "/api/v1/auth/sync/user"),
];
/// Users in one answer.
const PAGE: usize = 1_000;
const ANSWER: Duration = Duration::from_secs(10);

/// A running service, served by a worker of its own.
pub(crate) struct Example {
    pub(crate) name: &'static str,
    path: &'static str,
    service: Service,
    /// What it takes: two secrets, the same one in both files once one was replaced.
    secrets: [PathBuf; 2],
}

impl Example {
    /// Starts all of them and makes them targets, whose calls are signed with the first secret.
    pub(crate) async fn start(world: &mut World) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (name, path) in SERVICES {
            let dir = world.stack.dir().join(format!("{name}-{}", world.first));
            fs::create_dir_all(&dir)?;
            let example = Self::spawn(world, &dir, name, path)?;
            example.service.until_ready().await?;
            example.signed_with(world, 0).await?;
            world.stack.add_worker(name).await?;
            all.push(example);
        }
        Ok(all)
    }

    fn spawn(world: &World, dir: &Path, name: &'static str, path: &'static str) -> Result<Self> {
        let secrets = [dir.join("first"), dir.join("second")];
        for (file, secret) in secrets.iter().zip(SECRETS) {
            fs::write(file, secret)?;
        }
        let nats = &world.stack.nats;
        let password = nats.password_file("publisher");
        let address = format!("127.0.0.1:{}", free_port()?);
        let program = tools::binary(name, tools::Profile::own())?;
        let mut launch = Launch::new(name, program, dir.join("log"))
            .args(["--listen", &address, "--nats-url", &nats.url()])
            .args(["--nats-user", "publisher", "--nats-password"])
            .arg(format!("file:{}", password.display()))
            .arg("--database")
            .arg(dir.join("users.db"));
        for secret in &secrets {
            launch = launch
                .arg("--secret")
                .arg(format!("file:{}", secret.display()));
        }
        Ok(Self {
            name,
            path,
            service: Service::spawn(launch, format!("http://{address}"))?,
            secrets,
        })
    }

    /// Where it takes deliveries.
    pub(crate) fn url(&self) -> String {
        format!("{}{}", self.service.url(), self.path)
    }

    /// Has deliveries be signed with one of the two secrets.
    pub(crate) async fn signed_with(&self, world: &World, number: usize) -> Result<()> {
        let entry = json!({
            "url": self.url(),
            "secret": format!("file:{}", self.secrets[number].display()),
            "timeout": "3s",
            "retry": {"max_deliver": 100, "base": "200ms", "factor": 1.5, "cap": "1s"},
            "breaker": {"probe": "200ms", "probe_cap": "1s"},
        });
        let target = json!({"name": self.name, "entry": entry});
        world.ask("usersync.targets.put", &target.to_string()).await
    }

    /// From now on it takes the second secret alone.
    pub(crate) async fn forget_the_first(&mut self) -> Result<()> {
        fs::copy(&self.secrets[1], &self.secrets[0])?;
        self.service.restart().await
    }

    /// Until it has been told of somebody among `users`: who that is.
    pub(crate) async fn somebody(&self, users: &Range<u64>) -> Result<u64> {
        eventually(SOON, async || {
            let held = self.holds(users).await?;
            let (user, _) = held.first_key_value().context("nobody is there")?;
            Ok(*user)
        })
        .await
    }

    /// What it holds of these users.
    pub(crate) async fn holds(&self, users: &Range<u64>) -> Result<BTreeMap<u64, Person>> {
        let (mut found, mut after) = (BTreeMap::new(), String::new());
        loop {
            let url = format!("{}/api/v1/users?limit={PAGE}{after}", self.service.url());
            let answer = http::client().get(url).timeout(ANSWER).send().await?;
            ensure!(
                answer.status() == 200,
                "{} answers {}",
                self.name,
                answer.status()
            );
            let page: Value = answer.json().await?;
            for user in page["users"].as_array().context("no users")? {
                let id = number(&user["user_id"]).context("an id")?;
                if users.contains(&id) {
                    found.insert(id, person(user));
                }
            }
            match number(&page["next"]) {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(found),
            }
        }
    }

    /// Ends it, and its target.
    pub(crate) async fn end(self, world: &mut World) -> Result<()> {
        world.stack.workers.remove(self.name);
        let target = json!({"name": self.name, "consumers": "delete"});
        let target = target.to_string();
        world.ask("usersync.targets.delete", &target).await
    }
}

fn number(id: &Value) -> Option<u64> {
    id.as_u64().or_else(|| id.as_str()?.parse().ok())
}

fn person(user: &Value) -> Person {
    let text = |name: &str| user[name].as_str().map(str::to_owned);
    Person {
        username: text("username"),
        email: text("email"),
        data: user["data"].as_object().cloned().unwrap_or_default(),
        deleted: false,
    }
}
