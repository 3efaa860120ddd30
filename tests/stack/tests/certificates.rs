//! Certificates for tests, looked at by somebody else: OpenSSL.

use std::process::Command;

use anyhow::{Context as _, Result};
use usersync_stack::{Certificates, Directory};

/// What OpenSSL says of a certificate as a server's at 127.0.0.1.
fn verified(certificates: &Certificates, name: &str) -> Result<String> {
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslserver"]);
    openssl.args(["-verify_ip", "127.0.0.1", "-CAfile"]);
    let output = openssl
        .arg(certificates.ca())
        .arg(certificates.cert(name))
        .output()
        .context("openssl can't be run; install the package openssl")?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn each_certificate_is_as_good_as_its_name() -> Result<()> {
    let dir = Directory::temporary()?;
    let certificates = Certificates::make(dir.path())?;
    let before = std::fs::read(certificates.cert("server"))?;
    certificates.renew("server")?;
    assert_ne!(std::fs::read(certificates.cert("server"))?, before);
    for (name, told) in [
        ("server", ": OK"),
        ("client", ": OK"),
        ("expired", "certificate has expired"),
        ("wrong-host", "IP address mismatch"),
    ] {
        let said = verified(&certificates, name)?;
        assert!(said.contains(told), "{name}: {said}");
    }
    Ok(())
}
