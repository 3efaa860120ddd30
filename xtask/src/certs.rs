//! `cargo xtask certs`: certificates to try TLS with.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use usersync_stack::Certificates;

/// Make test certificates: an authority (ca.pem), and of it server, client, expired and wrong-host (NAME.pem, NAME-key.pem)
///
/// They are for localhost, 127.0.0.1 and ::1, and good for 30 days. Not for production: nothing guards their keys.
#[derive(Args)]
pub(crate) struct Certs {
    /// Where to
    #[arg(value_name = "DIR", default_value = "target/certs")]
    dir: PathBuf,
}

impl Certs {
    pub(crate) fn run(self) -> Result<()> {
        let dir = &self.dir;
        let names = ["ca", "server", "client", "expired", "wrong-host"];
        let mut files = names.iter().map(|name| dir.join(format!("{name}.pem")));
        let there = files.find(|file| file.exists());
        ensure!(
            there.is_none(),
            "{} has certificates already; name another directory, or remove them",
            dir.display()
        );
        let certificates = Certificates::make(dir)?;
        println!("{}", certificates.dir().display());
        Ok(())
    }
}
