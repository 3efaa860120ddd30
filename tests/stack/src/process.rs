//! One running child process: signalled by id, killed on drop, and able to show what it last said.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{Launch, eventually};

/// How much of the log an error shows.
const TAIL_LINES: usize = 25;
const TAIL_BYTES: u64 = 16 * 1024;

/// A child process. Dropping it kills it and waits until it is gone.
///
/// Each has a thread of its own, which starts it, waits for its end and lives exactly as long: the kernel
/// ties "die with the parent" to the *thread* that started a child, and a runtime's threads come and go.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    log: PathBuf,
    /// Whether the process id has been given back to the system; signals are sent under this lock, so that
    /// none can hit a stranger that got the same id.
    reaped: Arc<Mutex<bool>>,
    exit: watch::Receiver<Option<ExitStatus>>,
    waiter: Option<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn spawn(launch: &Launch) -> Result<Self> {
        let mut command = launch.command()?;
        let reaped = Arc::new(Mutex::new(false));
        let (exit_tx, exit) = watch::channel(None);
        let (started_tx, started) = mpsc::channel();
        let waiter = thread::Builder::new()
            .name(format!("waits-for-{}", launch.name()))
            .spawn({
                let reaped = Arc::clone(&reaped);
                move || match command.spawn() {
                    Ok(child) => {
                        let _ = started_tx.send(Ok(child.id()));
                        let status = wait_for_exit(child, &reaped);
                        exit_tx.send_replace(status.ok());
                    }
                    Err(error) => {
                        let _ = started_tx.send(Err(error));
                    }
                }
            })
            .context("starting a thread")?;
        let pid = started
            .recv()
            .context("the starting thread died")?
            .with_context(|| format!("starting {}", launch.name()))?;
        Ok(Self {
            name: launch.name().to_owned(),
            pid: Pid::from_raw(i32::try_from(pid).context("a process id that is no pid_t")?),
            log: launch.log().to_owned(),
            reaped,
            exit,
            waiter: Some(waiter),
        })
    }

    /// The name that error messages use.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *reaped {
            bail!("{} can't get {signal}: it has ended", self.name);
        }
        kill(self.pid, signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Stops it in its tracks (SIGSTOP), and waits until every thread stands still; SIGCONT lets it go on.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        eventually(Duration::from_secs(10), async || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid))?;
            for task in tasks {
                let stat = std::fs::read_to_string(task?.path().join("stat"))?;
                let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
                ensure!(
                    state.starts_with('T'),
                    "a thread of {} still runs",
                    self.name
                );
            }
            Ok(())
        })
        .await
    }

    /// Kills it the hard way and waits until it is gone. Nothing happens when it has ended already.
    pub async fn kill9(&self) {
        let _ = self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Asks it to stop (SIGTERM) and waits; after `grace` it is killed.
    ///
    /// # Errors
    /// When it had ended before, had to be killed, or ended with anything but 0.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        if let Some(status) = self.exit_status() {
            bail!(
                "{} had ended by itself: {}{}",
                self.name,
                status,
                self.told()
            );
        }
        self.signal(Signal::SIGTERM)?;
        let Ok(status) = timeout(grace, self.ended()).await else {
            self.kill9().await;
            bail!(
                "{} did not stop within {grace:?} and was killed{}",
                self.name,
                self.told()
            );
        };
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{} stopped with {status}{}", self.name, self.told()),
            None => bail!("nobody knows how {} ended", self.name),
        }
    }

    /// Whether it still runs (stopped by SIGSTOP counts as running).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit.has_changed().is_ok() && self.exit_status().is_none()
    }

    /// How it ended; `None` while it runs.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `deadline`.
    pub async fn wait_exit(&self, deadline: Duration) -> Result<ExitStatus> {
        timeout(deadline, self.ended())
            .await
            .map_err(|_| anyhow!("{} still runs after {deadline:?}{}", self.name, self.told()))?
            .with_context(|| format!("nobody knows how {} ended", self.name))
    }

    /// Ends when the process does.
    pub async fn ended(&self) -> Option<ExitStatus> {
        let mut exit = self.exit.clone();
        // An error means that the waiting thread is gone, and so is the process.
        let status = exit.wait_for(Option::is_some).await.map(|status| *status);
        status.ok().flatten()
    }

    /// Waits until `probe` succeeds, and gives up as soon as the process ends.
    ///
    /// # Errors
    /// When the process ends first or is not ready within `deadline`: with the end of its log.
    pub async fn until_ready(
        &self,
        deadline: Duration,
        mut probe: impl AsyncFnMut() -> Result<()>,
    ) -> Result<()> {
        let ready = eventually(deadline, async || probe().await);
        tokio::select! {
            ready = ready => ready.map_err(|error| {
                anyhow!("{} is not ready: {error:#}{}", self.name, self.told())
            }),
            status = self.ended() => {
                let status = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
                bail!("{} ended while starting ({status}){}", self.name, self.told())
            }
        }
    }

    /// The file with its output.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }

    /// The end of the log, ready to be put behind an error message.
    pub(crate) fn told(&self) -> String {
        let tail = self.log_tail();
        let log = self.log.display();
        if tail.is_empty() {
            return format!("\nit wrote nothing to {log}");
        }
        let lines: Vec<String> = tail.lines().map(|line| format!("    {line}")).collect();
        format!("\nthe end of {log}:\n{}", lines.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGKILL);
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}

/// Waits for the end of `child` without giving its id back, then does so under the lock.
fn wait_for_exit(mut child: Child, reaped: &Mutex<bool>) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_raw(child.id().cast_signed());
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
    *reaped = true;
    child.wait()
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}
