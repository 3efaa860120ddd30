//! `usersync-gateway status --watch` as a person sees it: on a terminal, through everything that happens meanwhile.

use std::{
    num::NonZero,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use pty_process::{OwnedWritePty, Size};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Child,
    task::JoinHandle,
};
use usersync_stack::{Stack, eventually, tools};
use vt100::{Color, Parser};

use crate::support::{Bus, Recorder, SOON, answer, only};

const LOW: (u16, u16) = (24, 80);
const HIGH: (u16, u16) = (40, 120);
const CTRL_C: &[u8] = b"\x03";

/// What has come to the terminal.
struct Seen {
    terminal: Parser,
    raw: Vec<u8>,
    /// The line that must stay in its place, once it is there.
    head: Option<String>,
    /// How often it wasn't there.
    torn: usize,
}

impl Seen {
    /// Takes what was written octet by octet, for a terminal may show any part of it.
    fn take(&mut self, octets: &[u8]) {
        self.raw.extend_from_slice(octets);
        for octet in octets {
            self.terminal.process(&[*octet]);
            if let Some(head) = &self.head {
                self.torn += usize::from(self.lines().get(2) != Some(head));
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let screen = self.terminal.screen();
        let lines = screen.rows(0, screen.size().1.get());
        lines.map(|line| line.trim_end().to_owned()).collect()
    }

    /// The line of a target, and its number.
    fn line(&self, target: &str) -> Result<(u16, String)> {
        let mut lines = (0..).zip(self.lines());
        let found = lines.find(|(_, line)| line.split(' ').next() == Some(target));
        found.with_context(|| format!("no {target} in\n{}", self.lines().join("\n")))
    }

    /// The colour of what `word` begins with in a target's line.
    fn colour(&self, target: &str, word: &str) -> Result<Color> {
        let (row, line) = self.line(target)?;
        let at = line.rfind(word).with_context(|| line.clone())?;
        let cell = self.terminal.screen().cell(row, u16::try_from(at)?);
        Ok(cell.context("no cell")?.fgcolor())
    }
}

fn size(count: u16) -> Result<NonZero<u16>> {
    NonZero::new(count).context("no room")
}

/// Somebody who watches.
struct Watching {
    child: Child,
    keys: OwnedWritePty,
    seen: Arc<Mutex<Seen>>,
    reading: JoinHandle<()>,
}

impl Watching {
    fn start(stack: &Stack, (rows, columns): (u16, u16), env: &[(&str, &str)]) -> Result<Self> {
        let (pty, terminal) = pty_process::open()?;
        pty.resize(Size::new(rows, columns))?;
        let program = tools::binary("usersync-gateway", tools::Profile::own())?;
        let mut command = pty_process::Command::new(program)
            .args(["--nats-url", &stack.nats.url(), "status", "--watch"])
            .envs(operator(stack))
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .kill_on_drop(true);
        for (name, value) in env {
            command = command.env(name, value);
        }
        let child = command.spawn(terminal)?;
        let seen = Arc::new(Mutex::new(Seen {
            terminal: Parser::new(size(rows)?, size(columns)?, 0),
            raw: Vec::new(),
            head: None,
            torn: 0,
        }));
        let (mut screen, keys) = pty.into_split();
        let shown = seen.clone();
        let reading = tokio::spawn(async move {
            let mut octets = [0; 4096];
            // A terminal whose program has ended is an error.
            while let Ok(count @ 1..) = screen.read(&mut octets).await {
                let mut seen = shown.lock().unwrap_or_else(PoisonError::into_inner);
                seen.take(&octets[..count]);
            }
        });
        Ok(Self {
            child,
            keys,
            seen,
            reading,
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the screen is as `check` wants it.
    async fn until(&self, check: impl Fn(&Seen) -> Result<()>) -> Result<()> {
        eventually(SOON, async || {
            let seen = self.seen();
            check(&seen).with_context(|| format!("the screen:\n{}", seen.lines().join("\n")))
        })
        .await
    }

    async fn until_it_says(&self, text: &str) -> Result<()> {
        self.until(|seen| {
            let says = seen.lines().iter().any(|line| line.contains(text));
            ensure!(says, "no {text:?}");
            Ok(())
        })
        .await
    }

    fn resize(&self, (rows, columns): (u16, u16)) -> Result<()> {
        self.seen().head = None;
        self.keys.resize(Size::new(rows, columns))?;
        self.seen()
            .terminal
            .screen_mut()
            .set_size(size(rows)?, size(columns)?);
        Ok(())
    }

    /// From now on the line with the names of the columns is to stay where it is.
    fn hold_still(&self) {
        let mut seen = self.seen();
        seen.head = seen.lines().get(2).cloned();
        seen.torn = 0;
    }

    /// Presses Ctrl-C; answers how it ended, which must not take long, and leaves the terminal as it is then.
    async fn interrupt(&mut self) -> Result<ExitStatus> {
        self.seen().head = None;
        self.keys.write_all(CTRL_C).await?;
        let ended = tokio::time::timeout(Duration::from_secs(2), self.child.wait());
        let ended = ended.await.context("it goes on after Ctrl-C")??;
        tokio::time::timeout(SOON, &mut self.reading).await??;
        Ok(ended)
    }
}

/// Who asks, as the environment says it.
fn operator(stack: &Stack) -> [(&'static str, String); 2] {
    let password = stack.nats.password_file("operator");
    [
        ("USERSYNC_NATS__USER", "operator".to_owned()),
        (
            "USERSYNC_NATS__PASSWORD",
            format!("file:{}", password.display()),
        ),
    ]
}

/// Targets of every kind: fine, one that is down, one that refuses everybody, one that is paused, and others.
async fn targets() -> Result<(Recorder, Recorder, Stack)> {
    let fine = Recorder::start(async |_| answer(200)).await?;
    let refusing = Recorder::start(async |_| answer(422)).await?;
    let nobody = "[away]\nurl = \"http://127.0.0.1:9/\"\n[paused]\nurl = \"http://127.0.0.1:9/\"\nenabled = false\n";
    let catalogue = fine.target("fine", "")
        + &fine.target("another", "")
        + &fine.target("lonely", "")
        + &refusing.target("refusing", "")
        + nobody;
    let stack = only(catalogue).workers("lonely", 0).start().await?;
    let bus = Bus::connect(&stack).await?;
    for id in 1..=3 {
        bus.publish("user.created", json!({"user_id": id, "username": "zaphod"}))
            .await?;
    }
    Ok((fine, refusing, stack))
}

/// Everything that is to be seen of [`targets`].
fn all_of_them(seen: &Seen) -> Result<()> {
    let lines = seen.lines();
    ensure!(
        lines[0].contains("3 users, 0 events waiting, 0 refused"),
        "{}",
        lines[0]
    );
    for (target, says) in [
        ("fine", "ok"),
        ("another", "ok"),
        ("lonely", "no-worker"),
        ("refusing", "failing"),
        ("away", "down ("),
        ("paused", "paused"),
    ] {
        let (_, line) = seen.line(target)?;
        let said = line.trim_start_matches(target).trim_start();
        ensure!(said.starts_with(says), "{target} should be {says}");
    }
    let screen = seen.terminal.screen();
    ensure!(screen.alternate_screen() && screen.hide_cursor());
    Ok(())
}

#[tokio::test]
async fn a_person_sees_every_target_through_outages_and_resizes_without_flicker() -> Result<()> {
    let (_fine, _refusing, mut stack) = targets().await?;
    let mut watching = Watching::start(&stack, LOW, &[])?;
    watching.until(all_of_them).await?;
    {
        let seen = watching.seen();
        assert_eq!(seen.colour("away", "down")?, Color::Idx(1), "red");
        assert_eq!(seen.colour("lonely", "no-worker")?, Color::Idx(1), "red");
        assert_eq!(seen.colour("paused", "paused")?, Color::Idx(3), "yellow");
        assert_eq!(seen.colour("fine", "ok")?, Color::Idx(2), "green");
        assert_eq!(seen.colour("refusing", "3")?, Color::Idx(3), "yellow");
        let left_out = seen
            .lines()
            .into_iter()
            .find(|line| line.contains("no room for"));
        let left_out = left_out.context("it says nothing of what is left out")?;
        assert!(left_out.contains("last check"), "{left_out}");
    }
    // The time goes on, and nothing else moves: two answers later the line is where it was, all the while.
    watching.hold_still();
    for _ in 0..2 {
        let now = watching.seen().lines()[0].clone();
        watching
            .until(|seen| {
                ensure!(seen.lines()[0] != now, "nothing new");
                all_of_them(seen)
            })
            .await?;
    }
    assert_eq!(watching.seen().torn, 0, "it flickers");

    watching.resize(HIGH)?;
    watching.until_it_says("last error").await?;
    watching.until(all_of_them).await?;
    watching.resize((6, 40))?;
    watching.until_it_says("more").await?;
    watching
        .until(|seen| {
            ensure!(seen.lines()[0].starts_with("20"), "no title");
            seen.line("away").map(drop)
        })
        .await?;
    watching.resize(LOW)?;
    watching.until(all_of_them).await?;

    // What was known stays, and it is said that nobody answers.
    watching.hold_still();
    stack.nats.kill9().await;
    watching.until_it_says("NATS is away; trying again").await?;
    watching.until(all_of_them).await?;
    stack.nats.restart().await?;
    let recovered = |seen: &Seen| {
        ensure!(seen.lines()[1].is_empty(), "{}", seen.lines()[1]);
        all_of_them(seen)
    };
    watching.until(recovered).await?;
    assert_eq!(watching.seen().torn, 0, "it flickers");

    // One line less leaves nothing behind below the others.
    let bus = Bus::connect(&stack).await?;
    bus.kv_delete("user_targets", "paused").await?;
    watching
        .until(|seen| {
            ensure!(seen.line("paused").is_err(), "it is still shown");
            let mut lines = seen.lines();
            lines.retain(|line| !line.is_empty());
            let shown = lines.len();
            lines.sort();
            lines.dedup();
            ensure!(lines.len() == shown, "a line is there twice");
            Ok(())
        })
        .await?;

    let ended = watching.interrupt().await?;
    assert!(ended.success(), "{ended}");
    let seen = watching.seen();
    let screen = seen.terminal.screen();
    assert!(!screen.alternate_screen(), "the other screen stays");
    assert!(!screen.hide_cursor(), "the cursor is gone");
    let left = screen.contents();
    assert!(left.contains("away") && left.contains("refusing"), "{left}");
    let raw = String::from_utf8_lossy(&seen.raw);
    assert!(!raw.contains("zaphod") && !raw.contains("INFO"), "{raw}");
    Ok(())
}

#[tokio::test]
async fn a_person_who_wants_no_colours_sees_none_and_a_pipe_gets_nothing_but_text() -> Result<()> {
    let (_fine, _refusing, stack) = targets().await?;
    let mut watching = Watching::start(&stack, LOW, &[("NO_COLOR", "1")])?;
    watching.until(all_of_them).await?;
    for (target, word) in [("away", "down"), ("fine", "ok")] {
        assert_eq!(watching.seen().colour(target, word)?, Color::Default);
    }
    assert!(watching.interrupt().await?.success());
    // Before anybody has answered, too.
    stack.gateway().kill9().await;
    let mut early = Watching::start(&stack, LOW, &[])?;
    early.until_it_says("is usersync-gateway running?").await?;
    assert!(early.interrupt().await?.success());
    assert!(!early.seen().terminal.screen().hide_cursor());

    let program = tools::binary("usersync-gateway", tools::Profile::own())?;
    let mut command = tokio::process::Command::new(program);
    let mut piped = command
        .args(["--nats-url", &stack.nats.url(), "status", "--watch"])
        .envs(operator(&stack))
        .env("TERM", "xterm-256color")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut stdout, mut stderr) = (
        piped.stdout.take().context("no output")?,
        piped.stderr.take().context("no errors")?,
    );
    let read = async |from: &mut (dyn tokio::io::AsyncRead + Unpin + Send), until: &str| {
        let (mut text, mut octets) = (String::new(), [0; 4096]);
        while text.matches(until).count() < 2 {
            let count = tokio::time::timeout(SOON, from.read(&mut octets)).await??;
            ensure!(count > 0, "the end: {text}");
            text += std::str::from_utf8(&octets[..count])?;
        }
        ensure!(!text.contains('\x1b'), "{text:?}");
        Ok(text)
    };
    read(&mut stderr, "trying again").await?;
    drop(stderr);
    let mut stack = stack;
    stack.gateways[0].restart().await?;
    read(&mut stdout, "no-worker").await?;
    // A reader who has seen enough isn't an error.
    drop(stdout);
    let ended = tokio::time::timeout(SOON, piped.wait()).await??;
    assert!(ended.success(), "{ended}");
    Ok(())
}
