//! Programs of v0.1.0 and of today side by side, each replaced while users are changed, as docs/UPGRADING.md says.
//!
//! `cargo xtask test --long` builds v0.1.0 for it, from its tag.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{process::Command, task::JoinHandle, time::sleep};
use usersync_core::subjects::{REFUSED_EVENTS, USER_DEAD, USER_EVENTS};
use usersync_stack::{Launch, NatsServer, Stack, http, subscribe, tools};

use super::before;
use crate::{
    checks,
    outbox::Main,
    support::{Backup, Bus, LATER, Recorder, SOON, answer},
};

const GRACE: Duration = Duration::from_secs(20);
/// How long users are changed before and after each step.
const WHILE: Duration = Duration::from_secs(2);
/// The pause between two changes.
const PACE: Duration = Duration::from_millis(4);
/// Before what failed is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Users that services tell of, and those of the main database.
const TOLD: std::ops::Range<u64> = 0..40;
const ROWS: std::ops::Range<u64> = 1_000..1_020;

/// Changes users in turn, by NATS, by HTTP and in the main database, and says what each was last set to. Whatever isn't
/// acknowledged is tried again.
struct Load {
    set: Arc<Mutex<BTreeMap<u64, u64>>>,
    stop: Arc<AtomicBool>,
    changing: JoinHandle<Result<()>>,
    /// Every state as it is stored: `n` of no user may go back.
    watching: JoinHandle<()>,
    back: Arc<Mutex<Vec<String>>>,
}

impl Load {
    async fn on(stack: &Stack, main: Arc<Main>) -> Result<Self> {
        let (set, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let back: Arc<Mutex<Vec<String>>> = Arc::default();
        let client = stack.nats.connect().await?;
        let states = subscribe(&client, "user.state.*").await?;
        let driver = Driver {
            bus: Bus::connect(stack).await?,
            gateways: stack.dir().join("gateways"),
            main,
            set: Arc::clone(&set),
        };
        let stopped = Arc::clone(&stop);
        let changing = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Relaxed) {
                n += 1;
                driver.change(n).await?;
            }
            Ok(())
        });
        let seen = Arc::clone(&back);
        let watching = tokio::spawn(async move {
            let mut states = states;
            let mut newest: BTreeMap<String, (u64, u64)> = BTreeMap::new();
            while let Some(message) = states.next().await {
                let state: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                let number = |value: &Value| value.as_u64().unwrap_or_default();
                let now = (number(&state["data"]["n"]), number(&state["version"]));
                let before = newest.insert(message.subject.to_string(), now);
                if before.is_some_and(|before| before.0 > now.0 || before.1 > now.1) {
                    let what = format!("{}: {now:?} after {before:?}", message.subject);
                    seen.lock().unwrap().push(what);
                }
            }
        });
        Ok(Self {
            set,
            stop,
            changing,
            watching,
            back,
        })
    }

    /// Stops it; what each user was last set to.
    async fn ended(self) -> Result<BTreeMap<u64, u64>> {
        self.stop.store(true, Relaxed);
        self.changing.await??;
        self.watching.abort();
        let back = self.back.lock().unwrap();
        ensure!(back.is_empty(), "states went back: {back:?}");
        Ok(self.set.lock().unwrap().clone())
    }
}

struct Driver {
    bus: Bus,
    /// A file with the addresses of the gateways that there are.
    gateways: PathBuf,
    main: Arc<Main>,
    set: Arc<Mutex<BTreeMap<u64, u64>>>,
}

impl Driver {
    async fn change(&self, n: u64) -> Result<()> {
        let pick = |range: std::ops::Range<u64>| range.start + n % (range.end - range.start);
        let user = pick(if n.is_multiple_of(3) { ROWS } else { TOLD });
        let event = json!({
            "id": format!("n-{n}"), "source": "load", "user_id": user, "username": format!("u{user}"),
            "data": {"n": n},
        });
        let deadline = Instant::now() + LATER;
        while let Err(error) = self.tell(n, user, &event).await {
            ensure!(Instant::now() < deadline, "change {n}: {error:#}");
            sleep(AGAIN).await;
        }
        self.set.lock().unwrap().insert(user, n);
        sleep(PACE).await;
        Ok(())
    }

    async fn tell(&self, n: u64, user: u64, event: &Value) -> Result<()> {
        match n % 3 {
            0 => {
                let statement = format!("UPDATE people SET n = {n} WHERE uid = {user}");
                self.main.run(&statement).await
            }
            1 => self.bus.publish("user.updated", event.clone()).await,
            _ => self.post(event).await,
        }
    }

    async fn post(&self, event: &Value) -> Result<()> {
        let mut error = None;
        for gateway in fs::read_to_string(&self.gateways)?.lines() {
            let mut event = event.clone();
            event["type"] = "user.updated".into();
            let posted = http::client()
                .post(format!("{gateway}/v1/events"))
                .json(&event)
                .timeout(SOON)
                .send()
                .await;
            match posted.and_then(reqwest::Response::error_for_status) {
                Ok(_) => return Ok(()),
                Err(refused) => error = Some(refused),
            }
        }
        Err(error.context("no gateway")?.into())
    }
}

/// The nats.conf of v0.1.0 with the user of a test; `beside` adds what docs/UPGRADING.md has people add.
pub(super) async fn conf(before: &Path, dir: &Path, beside: bool) -> Result<PathBuf> {
    let path = dir.join("nats.conf");
    fs::copy(before.join("nats.conf"), &path)?;
    if beside {
        let patch = tools::repository().join("deploy/upgrade/beside-v0.1.0.patch");
        let mut applied = Command::new("git");
        applied.current_dir(dir).args(["apply", "-p0"]).arg(patch);
        // Not within the repository that this folder may be in.
        applied.env("GIT_CEILING_DIRECTORIES", "/");
        let applied = applied.output().await?;
        let said = String::from_utf8_lossy(&applied.stderr);
        ensure!(applied.status.success(), "{said}");
    }
    let shipped = fs::read_to_string(&path)?;
    let user = "  users: [\n    { user: test, password: $USERSYNC_TEST_PASSWORD }\n";
    fs::write(&path, shipped.replacen("  users: [\n", user, 1))?;
    Ok(path)
}

#[expect(clippy::print_stderr, reason = "tells whoever runs the tests")]
fn left_out() -> Result<()> {
    eprintln!("left out: `cargo xtask test --long` builds v0.1.0 and runs it");
    Ok(())
}

/// Says where the gateways are now.
fn tell(stack: &Stack, from: usize) -> Result<()> {
    let urls: Vec<_> = stack.gateways[from..]
        .iter()
        .map(|gateway| gateway.url().to_owned())
        .collect();
    Ok(fs::write(stack.dir().join("gateways"), urls.join("\n"))?)
}

#[tokio::test]
async fn programs_of_v0_1_0_are_replaced_one_by_one_under_load() -> Result<()> {
    let Some(before) = before() else {
        return left_out();
    };
    let old = before.join("target/debug");
    let recorder = Recorder::start_guarded(async |_| answer(200)).await?;
    let audit = recorder.target("audit", "");
    let main = Arc::new(Main::postgres().await?);
    for user in ROWS {
        let row = format!("INSERT INTO people (uid, username, n) VALUES ({user}, 'u{user}', 0)");
        main.run(&row).await?;
    }
    let install = |folder: &Path| {
        let launch = Launch::new(
            "install",
            folder.join("usersync-scheduler"),
            main.dir.path().join("install.log"),
        );
        let launch = launch
            .args(["outbox", "install", "--config"])
            .arg(main.settings());
        launch.spawn()
    };
    let installed = install(&old)?.wait_exit(LATER).await?;
    ensure!(installed.success(), "v0.1.0 made no outbox");

    // As it was.
    let dir = tempfile::tempdir()?;
    let conf_path = conf(&before, dir.path(), false).await?;
    let mut stack = main
        .builder(2)
        .dir(dir.path())
        .binaries(&old)
        .nats_conf(&conf_path)
        .targets_toml(move |_| audit)
        .start()
        .await?;
    tell(&stack, 0)?;
    let bus = Bus::connect(&stack).await?;
    let load = Load::on(&stack, Arc::clone(&main)).await?;
    sleep(WHILE).await;
    bus.jetstream
        .publish("user.created", "nothing".into())
        .await?
        .await?;

    // Gateways first. One of v0.1.0 dies and comes back meanwhile.
    conf(&before, dir.path(), true).await?;
    stack.nats.reload()?;
    stack.set_binaries(None);
    stack.add_gateway().await?;
    sleep(WHILE).await;
    stack.gateways[0].kill9().await;
    stack.gateways[0].restart().await?;
    sleep(WHILE).await;
    stack.add_gateway().await?;
    tell(&stack, 2)?;
    for gateway in &stack.gateways[..2] {
        gateway.stop(GRACE).await?;
        sleep(WHILE).await;
    }
    stack.gateways.drain(..2);

    // Then workers.
    for target in ["audit", "redis-cache"] {
        stack.add_worker(target).await?;
        sleep(WHILE).await;
        let replaced = stack
            .workers
            .get_mut(target)
            .context("no workers")?
            .remove(0);
        replaced.stop(GRACE).await?;
    }
    sleep(WHILE).await;

    // Then the outbox.
    let installed = install(&today()?)?.wait_exit(LATER).await?;
    ensure!(installed.success(), "the outbox wasn't renewed");
    sleep(WHILE).await;

    // Then the accounts: everything stops for it.
    for worker in stack.workers.values().flatten() {
        worker.stop(GRACE).await?;
    }
    for gateway in &stack.gateways {
        gateway.stop(GRACE).await?;
    }
    let context = &bus.jetstream;
    let mut backups = Vec::new();
    let mut names = context.stream_names();
    while let Some(name) = names.next().await {
        backups.push(Backup::of(context, &name?).await?);
    }
    stack.nats.stop(GRACE).await?;
    fs::rename(
        stack.dir().join("nats/jetstream/$G"),
        stack.dir().join("before-accounts"),
    )?;
    let (port, monitor) = (stack.nats.port(), stack.nats.monitor_port());
    fs::remove_file(&conf_path)?;
    stack.nats = NatsServer::builder(stack.dir())
        .port(port)
        .monitor_port(monitor)
        .start()
        .await?;
    let bus = Bus::connect(&stack).await?;
    for backup in &backups {
        backup.restore(&bus.jetstream).await?;
    }
    for gateway in &mut stack.gateways {
        gateway.restart().await?;
    }
    for worker in stack.workers.values_mut().flatten() {
        worker.restart().await?;
    }
    stack.add_scheduler().await?;
    sleep(WHILE).await;

    let set = load.ended().await?;
    ensure!(
        set.len() == 60 && set.values().max() > Some(&1_000),
        "{set:?}"
    );
    main.until_published().await?;
    for target in ["audit", "redis-cache"] {
        bus.until_settled(target).await?;
    }
    for (user, n) in &set {
        let held = [bus.state(*user).await?, recorder.holds(*user)];
        let held = held.map(|copy| copy["data"]["n"].clone());
        ensure!(
            held == [json!(n), json!(n)],
            "user {user}: {held:?}, not {n}"
        );
    }
    let checked = checks::check(&bus, "redis-cache", json!({})).await?;
    ensure!(checks::counts(&checked) == [0; 4], "{checked:?}");
    let events = bus.count(USER_EVENTS).await?;
    let (dead, refused) = (
        bus.count(USER_DEAD).await?,
        bus.count("USER_REFUSED").await?,
    );
    ensure!(
        (dead, refused) == (0, 1),
        "{dead} dead, {refused} {REFUSED_EVENTS}, of {events} events"
    );
    stack.stop().await
}

/// The folder of the binaries that this test was built with.
fn today() -> Result<PathBuf> {
    let program = tools::binary("usersync-scheduler", tools::Profile::own())?;
    Ok(program.parent().context("no folder")?.to_owned())
}
