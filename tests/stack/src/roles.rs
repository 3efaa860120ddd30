//! The users of the project's `nats.conf`: their passwords, and a copy of it with one user more, for tests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use async_nats::{Client, ConnectOptions, ServerAddr};

use crate::{Certificates, Launch, secret, tools};

/// Every role of `nats.conf`.
pub const ROLES: [&str; 6] = [
    "publisher",
    "gateway",
    "worker",
    "scheduler",
    "operator",
    "viewer",
];

/// Who may do everything; there is none in the shipped `nats.conf`.
pub(crate) const TEST: &str = "test";

/// The passwords of one server's users, in files of its directory.
#[derive(Clone, Debug)]
pub(crate) struct Roles(PathBuf);

impl Roles {
    /// Those of the server in `dir`; made when missing.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let roles = Self(dir.join("secrets").join("nats"));
        for role in ROLES.into_iter().chain([TEST]) {
            // Letters first: nats-server would read `1e5…` in its environment as a number.
            let text = |random: &[u8]| {
                let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("us-{hex}")
            };
            secret::ensure(&roles.file(role), text)?;
        }
        Ok(roles)
    }

    /// The file with the password of `role`.
    pub(crate) fn file(&self, role: &str) -> PathBuf {
        self.0.join(role)
    }

    /// Gives the server in `dir` the same passwords.
    pub(crate) fn copy_to(&self, dir: &Path) -> Result<()> {
        let copy = Self(dir.join("secrets").join("nats"));
        fs::create_dir_all(&copy.0).with_context(|| format!("creating {}", copy.0.display()))?;
        for role in ROLES.into_iter().chain([TEST]) {
            fs::copy(self.file(role), copy.file(role)).context("copying a password")?;
        }
        Ok(())
    }

    /// User and password of `role`, as URLs have them.
    pub(crate) fn login(&self, role: &str) -> Result<String> {
        Ok(format!("{role}:{}", self.password(role)?))
    }

    /// The server, with every password in its environment, as `nats.conf` wants it.
    pub(crate) fn given_to(&self, mut server: Launch) -> Result<Launch> {
        for role in ROLES.into_iter().chain([TEST]) {
            let name = format!("USERSYNC_{}_PASSWORD", role.to_uppercase());
            server = server.env(name, self.password(role)?);
        }
        Ok(server)
    }

    fn password(&self, role: &str) -> Result<String> {
        let file = self.file(role);
        let text = fs::read_to_string(&file);
        Ok(text
            .with_context(|| format!("reading {}", file.display()))?
            .trim()
            .to_owned())
    }
}

/// Connects with the user and the password in `url`, which a client of NATS itself ignores; replies come under the
/// prefix that `nats.conf` allows that role.
///
/// # Errors
/// When the server can't be reached, or refuses.
pub async fn connect(url: &str) -> Result<Client> {
    connect_with(url, ConnectOptions::new()).await
}

/// The same with more options.
pub(crate) async fn connect_with(url: &str, options: ConnectOptions) -> Result<Client> {
    let address: ServerAddr = url.parse().context("an address of NATS")?;
    let user = address.username().unwrap_or_default().to_owned();
    let password = address.password().unwrap_or_default().to_owned();
    let inbox = match &*user {
        TEST | "operator" => "_INBOX".to_owned(),
        role => format!("_INBOX_{role}"),
    };
    let options = options.user_and_password(user, password);
    let connected = options.custom_inbox_prefix(inbox).connect(address).await;
    connected.context("connecting to NATS")
}

/// Writes the project's `nats.conf` into `dir` with the user of the tests beside the roles, and with the block for TLS
/// that it shows in use if there are certificates; answers where.
pub(crate) fn conf_of_tests(dir: &Path, certificates: Option<&Certificates>) -> Result<PathBuf> {
    let mut shipped = fs::read_to_string(tools::nats_conf()).context("reading nats.conf")?;
    if let Some(certificates) = certificates {
        shipped = with_tls(&shipped, certificates)?;
    }
    let user = format!("  users: [\n    {{ user: {TEST}, password: $USERSYNC_TEST_PASSWORD }}\n");
    let conf = shipped.replacen("  users: [\n", &user, 1);
    ensure!(conf != shipped, "nats.conf has no line `  users: [`");
    let path = dir.join("nats.conf");
    fs::write(&path, conf).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// `conf` with its block for TLS uncommented.
fn with_tls(conf: &str, certificates: &Certificates) -> Result<String> {
    let begin = conf
        .find("# tls {\n")
        .context("nats.conf has no tls block")?;
    let end = conf[begin..]
        .find("\n# }\n")
        .context("nats.conf's tls block has no end")?;
    let end = begin + end + "\n# }\n".len();
    let block: Vec<_> = conf[begin..end]
        .lines()
        .map(|line| line.strip_prefix("# ").unwrap_or(line))
        .collect();
    let dir = format!("{}/", certificates.dir().display());
    let block = block.join("\n").replace("/etc/usersync/tls/", &dir);
    Ok([&conf[..begin], &block, "\n", &conf[end..]].concat())
}
