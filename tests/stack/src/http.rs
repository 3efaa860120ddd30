//! An HTTP client for loopback, and the one request that everything here starts with.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Certificate, Client, ClientBuilder};

/// A client with short timeouts that goes straight to the address, whatever proxy the environment names.
///
/// # Panics
/// Never in practice: building a client fails only without a TLS provider, and one is installed first.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "a test helper that can't fail is easier to use"
)]
pub fn client() -> Client {
    builder()
        .build()
        .expect("a client without special settings can be built")
}

/// The same that trusts the authority in this file and no other.
///
/// # Errors
/// When the file can't be read or holds no certificate.
pub fn client_trusting(ca: &Path) -> Result<Client> {
    let pem = std::fs::read(ca).with_context(|| format!("reading {}", ca.display()))?;
    let authority = Certificate::from_pem(&pem).context("an authority in PEM")?;
    builder()
        .tls_certs_only([authority])
        .build()
        .context("building a client")
}

fn builder() -> ClientBuilder {
    // Somebody else may have installed one already; either will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(15))
}

/// The body of `GET url`.
///
/// # Errors
/// When nobody answers, or with anything but 200.
pub async fn get_text(client: &Client, url: &str) -> Result<String> {
    let response = client
        .get(url)
        .send()
        .await
        .with_context(|| format!("GET {url}"))?;
    let status = response.status();
    let body = response
        .text()
        .await
        .with_context(|| format!("reading {url}"))?;
    ensure!(status == 200, "GET {url} answers {status}: {}", body.trim());
    Ok(body)
}
