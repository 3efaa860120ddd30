//! Certificates for tests: an authority, and what it issued, good and bad. Good for nothing else.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::Directory;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a certificate is good, from a day ago.
const DAYS: u32 = 30;
/// Where the servers of a test are.
const HERE: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// A private authority and its certificates in a directory, all PEM: `ca.pem`, and `NAME.pem` with `NAME-key.pem` of
/// `server`, `client`, `expired` and `wrong-host`.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    authority: Issuer<'static, KeyPair>,
}

/// Two authorities that know nothing of each other, in a directory of their own.
#[derive(Debug)]
pub struct Authorities {
    /// Of those who take part.
    pub ours: Certificates,
    /// Of strangers.
    pub others: Certificates,
    /// The directory, which goes with them.
    pub dir: Directory,
}

impl Authorities {
    /// Makes both, and what they issue.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn make() -> Result<Self> {
        let dir = Directory::temporary()?;
        Ok(Self {
            ours: Certificates::make(&dir.path().join("ours"))?,
            others: Certificates::make(&dir.path().join("others"))?,
            dir,
        })
    }
}

impl Certificates {
    /// Makes them all in `dir`, over what is there. The authority's own key is kept nowhere.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn make(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let mut params = named("usersync test authority", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages.clear();
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("making a key")?;
        let ca = params.self_signed(&key).context("signing ca.pem")?;
        write(&dir.join("ca.pem"), &ca.pem())?;
        let certificates = Self {
            dir: dir.to_owned(),
            authority: Issuer::new(params, key),
        };
        certificates.renew("server")?;
        certificates.renew("client")?;
        let mut expired = named("expired", &HERE)?;
        expired.not_after = (SystemTime::now() - DAY / 2).into();
        certificates.issue("expired", expired)?;
        certificates.renew_for("wrong-host", &["elsewhere.invalid"])?;
        Ok(certificates)
    }

    /// Issues a good certificate with a new key, over the one of that name.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn renew(&self, name: &str) -> Result<()> {
        self.renew_for(name, &HERE)
    }

    /// The same for other hosts than those of a test.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn renew_for(&self, name: &str, hosts: &[&str]) -> Result<()> {
        self.issue(name, named(name, hosts)?)
    }

    /// Has whoever shows `server.pem` show another one, from when it reads it again.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn show(&self, name: &str) -> Result<()> {
        for (from, to) in [
            (self.key(name), self.key("server")),
            (self.cert(name), self.cert("server")),
        ] {
            fs::copy(&from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the authority is known by.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A certificate.
    #[must_use]
    pub fn cert(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }

    /// Its key, for the eyes of its owner only.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-key.pem"))
    }

    fn issue(&self, name: &str, params: CertificateParams) -> Result<()> {
        let key = KeyPair::generate().context("making a key")?;
        let cert = params.signed_by(&key, &self.authority);
        let cert = cert.with_context(|| format!("signing {name}.pem"))?;
        write(&self.key(name), &key.serialize_pem())?;
        write(&self.cert(name), &cert.pem())
    }
}

/// What every certificate says: for a server and for a client at once, and of `hosts`.
fn named(name: &str, hosts: &[&str]) -> Result<CertificateParams> {
    let hosts = hosts.iter().map(|host| (*host).to_owned());
    let mut params = CertificateParams::new(hosts.collect::<Vec<_>>()).context("a host's name")?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + DAY * DAYS).into();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn write(path: &Path, pem: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600);
    file.open(path)
        .and_then(|mut file| file.write_all(pem.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
