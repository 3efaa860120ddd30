//! Checks with TLS on every link: NATS, the main database, and a Redis, all by private authorities.

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use redis::{AsyncTypedCommands as _, aio::MultiplexedConnection};
use serde_json::{Value, json};
use usersync_core::check::Stage;
use usersync_stack::{Certificates, Directory, Process, RedisServer, Service, Stack, free_port};

use super::{
    check, counts,
    states::{forget, repaired, tamper},
};
use crate::{
    outbox::{Main, fill},
    readiness::{Asked, wrong},
    support::{Bus, SOON},
};

const USERS: u64 = 50;

fn log(service: &Service) -> Result<String> {
    Ok(std::fs::read_to_string(service.process().log())?)
}

/// Everything that a check reads and writes, each behind TLS; its users are the same everywhere.
struct Secured {
    // The order in which they end.
    scheduler: Asked,
    _scheduler: Process,
    bus: Bus,
    stack: Stack,
    cache: RedisServer,
    certificates: Certificates,
    main: Main,
    _dir: Directory,
}

impl Secured {
    async fn start() -> Result<Self> {
        let dir = Directory::temporary()?;
        let certificates = Certificates::make(&dir.path().join("tls"))?;
        let cache = RedisServer::start_secured(dir.path(), &certificates, &[]).await?;
        let port = cache.tls_port().context("no port with TLS")?;
        let ca = certificates.ca();
        let entry = format!(
            "[redis-cache]\nenabled = false\n[cache]\nurl = \"rediss://127.0.0.1:{port}\"\n\
             tls = {{ ca = \"file:{}\" }}\ncheck = {{ every = \"0s\" }}\n\
             retry = {{ max_deliver = 100, base = \"200ms\", factor = 1.0, cap = \"200ms\" }}\n\
             breaker = {{ probe = \"100ms\", probe_cap = \"200ms\" }}\n",
            ca.display()
        );
        let main = Main::mariadb_secured().await?;
        super::states::add(&main, "[sources.main.check]\nevery = \"0s\"\n")?;
        main.install().await?;
        let stack = main.builder(1).targets_toml(move |_| entry).start().await?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let listen = ["--listen", &address];
        let process = main.spawn_scheduler("scheduler", Some(&stack.nats), &listen)?;
        let scheduler = Asked::at(&format!("http://{address}"));
        scheduler.until_well().await?;
        let bus = Bus::connect(&stack).await?;
        fill(&main, USERS).await?;
        main.equals_the_states(&stack).await?;
        bus.until_settled("cache").await?;
        Ok(Self {
            scheduler,
            _scheduler: process,
            bus,
            stack,
            cache,
            certificates,
            main,
            _dir: dir,
        })
    }

    /// A client of the cache's other port.
    async fn redis(&self) -> Result<MultiplexedConnection> {
        let client = redis::Client::open(self.cache.url())?;
        Ok(client.get_multiplexed_async_connection().await?)
    }

    /// The worker of the cache.
    fn worker(&self) -> Asked {
        Asked::of(&self.stack.workers["cache"][0])
    }

    /// A check finds what `expected` says, and has it repaired.
    async fn finds(&self, target: &str, expected: [u64; 4]) -> Result<()> {
        let report = check(&self.bus, target, json!({})).await?;
        ensure!(
            report.stage == Stage::Done && counts(&report) == expected && report.users > 0,
            "{target}: {report:?}"
        );
        ensure!(
            repaired(&report) == expected.iter().sum::<u64>(),
            "{target}: {report:?}"
        );
        self.bus.until_settled("cache").await
    }
}

#[tokio::test]
async fn states_and_a_target_are_compared_and_mended_over_tls() -> Result<()> {
    let secured = Secured::start().await?;
    let Secured { bus, main, .. } = &secured;
    for target in ["gateway", "cache"] {
        secured.finds(target, [0; 4]).await?;
    }
    forget(bus, 1).await?;
    tamper(bus, 2, |state| state["email"] = json!("other")).await?;
    secured.finds("gateway", [1, 0, 1, 0]).await?;
    main.equals_the_states(&secured.stack).await?;

    let mut redis = secured.redis().await?;
    let held = redis.get("user:3").await?.context("user 3 isn't there")?;
    let tampered = held.replace("@example.com", "@mallory.example");
    ensure!(tampered != held, "{held}");
    redis.set("user:3", tampered).await?;
    secured.finds("cache", [0, 0, 1, 0]).await?;
    ensure!(redis.get("user:3").await?.as_ref() == Some(&held));
    for target in ["gateway", "cache"] {
        secured.finds(target, [0; 4]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_check_names_the_certificate_that_is_no_good_and_ends_well_with_a_good_one() -> Result<()>
{
    let mut secured = Secured::start().await?;
    let args = ["check", "--target", "gateway", "--once"];
    for (user, shown, told) in [
        (1, "expired", "no TLS: its certificate has expired"),
        (2, "wrong-host", "no TLS: its certificate is another host's"),
    ] {
        let began = Timestamp::now();
        secured.main.show(shown).await?;
        let said = secured
            .scheduler
            .until_wrong(503, "source main", told, began)
            .await?;
        ensure!(wrong(&said) == ["source main"], "{said}");
        let (main, nats) = (&secured.main, &secured.stack.nats);
        let asked = main.spawn_scheduler(shown, Some(nats), &args)?;
        let status = asked.wait_exit(SOON).await?;
        let said = asked.log_tail();
        ensure!(!status.success() && said.contains(told), "{status}: {said}");

        let changed = format!("UPDATE people SET email = '{shown}' WHERE uid = {user}");
        secured.main.run(&changed).await?;
        secured.main.renew().await?;
        secured.scheduler.until_well().await?;
        secured.main.equals_the_states(&secured.stack).await?;
        secured.finds("gateway", [0; 4]).await.context(shown)?;
    }

    for (user, shown, told) in [
        (3, "expired", "its certificate has expired"),
        (4, "wrong-host", "its certificate is another host's"),
    ] {
        let began = Timestamp::now();
        secured.certificates.show(shown)?;
        secured.cache.restart().await?;
        let event = json!({"user_id": user, "email": shown});
        secured.bus.publish("user.updated", event).await?;
        let worker = secured.worker();
        worker
            .until_wrong(200, "cache", "nothing is delivered", began)
            .await?;
        // Readiness repeats nothing of what a target says; the log does.
        let log = self::log(&secured.stack.workers["cache"][0])?;
        ensure!(log.contains(told), "{log}");
        let failed = check(&secured.bus, "cache", json!({})).await?;
        let error = failed.error.as_deref().unwrap_or_default();
        ensure!(
            failed.stage == Stage::Failed && error.contains(told),
            "{failed:?}"
        );

        secured.certificates.renew("server")?;
        secured.cache.restart().await?;
        worker.until_well().await?;
        secured.bus.until_settled("cache").await?;
        secured.finds("cache", [0; 4]).await.context(shown)?;
        let mut redis = secured.redis().await?;
        let held = redis.get(format!("user:{user}")).await?;
        let held: Value = serde_json::from_str(&held.unwrap_or_default())?;
        ensure!(held["email"] == shown, "{held}");
    }
    Ok(())
}
