//! What the published library of Standard Webhooks, in Python, says of signed calls.

use std::{io::Write as _, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::tools;

/// For each of `secrets`, whether it has signed `body`; `header` answers a header's value by its name.
///
/// # Errors
/// When the library isn't there, or can't read one of the secrets.
pub fn signed_by(
    body: &[u8],
    header: impl Fn(&str) -> String,
    secrets: &[&str],
) -> Result<Vec<bool>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/verify.py");
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: Value = names
        .iter()
        .map(|name| (*name, json!(header(name))))
        .collect();
    let body = std::str::from_utf8(body).context("the body is no text")?;
    let mut python = tools::python();
    python
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut python = python.spawn().context("python3; see: cargo xtask setup")?;
    let mut stdin = python.stdin.take().context("no stdin")?;
    for secret in secrets {
        let line = json!({"secret": secret, "headers": headers, "body": body});
        writeln!(stdin, "{line}").context("writing to python3")?;
    }
    drop(stdin);
    let output = python.wait_with_output().context("waiting for python3")?;
    ensure!(
        output.status.success(),
        "the Python library; see: cargo xtask setup"
    );
    let lines = String::from_utf8(output.stdout).context("what python3 says")?;
    lines
        .lines()
        .map(|line| line.parse().with_context(|| line.to_owned()))
        .collect()
}
