//! Who may use the HTTP API, and what for. Knows nothing of what the API does.

mod browser;
mod caller;
mod guard;
mod limits;
mod new_key;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use usersync_core::settings::{Problems, Reader};

pub(crate) use caller::{Caller, Callers, Scope};
pub(crate) use guard::{Visitor, guard, scope_of};
use limits::{Limits, Rates};
pub use new_key::KeyCommand;

/// The largest request body, in bytes.
pub(crate) const BODY_BYTES: usize = 8 * 1024 * 1024;
/// The most bytes of bodies at once whose signatures aren't proven yet.
const UNPROVEN_BYTES: usize = 64 * 1024 * 1024;
/// How often the file with keys is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// What the settings say of access: `[http]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether everybody may do everything, although others than this machine can call.
    open: bool,
    /// The callers in the settings themselves.
    callers: Callers,
    /// A file with more callers, which may change.
    file: Option<PathBuf>,
    /// How much each caller may ask for.
    rates: Rates,
}

impl Settings {
    /// Reads `[http]`; problems stay in `reader`.
    pub(crate) fn read(reader: &mut Reader, listen: SocketAddr) -> Self {
        let open = reader.get("http.open", false, "true or false");
        let file: Option<PathBuf> = reader.optional("http.keys_file", "the path of a file");
        let callers = Callers::read(reader);
        let rates = Rates::read(reader);
        if let Some(Err(problems)) = file.as_deref().map(read_file) {
            problems
                .0
                .into_iter()
                .for_each(|problem| reader.report(problem));
        }
        let settings = Self {
            open,
            callers,
            file,
            rates,
        };
        if settings.asks_for_keys() && open {
            reader.problem(
                "http.open",
                "false, or neither http.keys nor http.keys_file",
            );
        }
        if !settings.asks_for_keys() && !open && !listen.ip().is_loopback() {
            reader.problem(
                "listen",
                "an address of this machine only, such as 127.0.0.1:8090, because anybody could change everything: \
                 make a key with `usersync-gateway key new` and name its file in http.keys_file (--keys FILE), \
                 or set http.open = true (--open) where something else keeps strangers out",
            );
        }
        settings
    }

    fn asks_for_keys(&self) -> bool {
        !self.callers.is_empty() || self.file.is_some()
    }
}

/// Decides about requests, by the keys as they are now.
pub(crate) struct Access {
    /// `None` where no key is asked for.
    callers: Option<watch::Receiver<Callers>>,
    /// Nobody but this machine can call.
    local: bool,
    anyone: Arc<Caller>,
    limits: Arc<Limits>,
    /// The bytes of bodies whose signatures aren't proven yet.
    unproven: Arc<Semaphore>,
}

impl Access {
    /// Reads the keys, and goes on reading their file until `shutdown`.
    ///
    /// # Errors
    /// When the file can't be read any more.
    pub(crate) fn begin(settings: &Settings, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let callers = match (&settings.file, settings.asks_for_keys()) {
            (Some(file), _) => {
                let first = settings.callers.and(read_file(file)?);
                let (sender, receiver) = watch::channel(first);
                tokio::spawn(follow(settings.clone(), file.clone(), sender, shutdown));
                Some(receiver)
            }
            (None, true) => Some(watch::channel(settings.callers.clone()).1),
            (None, false) => None,
        };
        if callers.is_none() && settings.open {
            tracing::warn!("http.open: everybody who reaches the API may do everything");
        }
        Ok(Self {
            local: callers.is_none() && !settings.open,
            callers,
            anyone: Arc::new(Caller::anyone()),
            limits: Arc::new(Limits::new(settings.rates)),
            unproven: Arc::new(Semaphore::new(UNPROVEN_BYTES)),
        })
    }
}

/// Takes the file's keys whenever they change. A file that can't be used changes nothing.
async fn follow(
    settings: Settings,
    file: PathBuf,
    callers: watch::Sender<Callers>,
    shutdown: CancellationToken,
) {
    let mut bad = false;
    while let Some(()) = shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await {
        match read_file(&file) {
            Ok(read) => {
                let now = settings.callers.and(read);
                bad = false;
                let changed = callers.send_if_modified(|known| {
                    let changed = *known != now;
                    *known = now;
                    changed
                });
                if changed {
                    tracing::info!(file = %file.display(), "the keys have changed");
                }
            }
            Err(problem) if !bad => {
                bad = true;
                tracing::error!(%problem, "the file of keys is bad; the keys it had before hold");
            }
            Err(_) => {}
        }
    }
}

/// The callers in a file: tables as in the settings.
fn read_file(file: &Path) -> Result<Callers, Problems> {
    let mut reader = Reader::of_file(Some(file));
    let callers = Callers::read(&mut reader);
    reader.finish()?;
    Ok(callers)
}
