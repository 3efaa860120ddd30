//! What the published libraries of Standard Webhooks, in Python and for Node.js, say of signed calls.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::tools;

/// For each of `secrets`, whether it has signed `body`; `header` answers a header's value by its name.
///
/// # Errors
/// When a library isn't there or can't read one of the secrets, or when they don't agree.
pub fn signed_by(
    body: &[u8],
    header: impl Fn(&str) -> String,
    secrets: &[&str],
) -> Result<Vec<bool>> {
    let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
    let headers: Value = names
        .iter()
        .map(|name| (*name, json!(header(name))))
        .collect();
    let body = std::str::from_utf8(body).context("the body is no text")?;
    let mut calls = String::new();
    for secret in secrets {
        let call = json!({"secret": secret, "headers": headers, "body": body});
        calls.push_str(&format!("{call}\n"));
    }
    let (mut python, mut node) = (tools::python(), tools::node()?);
    let python = answers(python.arg(script("verify.py")), &calls).context("in Python")?;
    let node = answers(node.arg(script("verify.cjs")), &calls).context("for Node.js")?;
    ensure!(
        python == node,
        "the library in Python says {python:?}, the one for Node.js {node:?}"
    );
    Ok(python)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name)
}

/// What a library says of `calls`, one in a line.
fn answers(library: &mut Command, calls: &str) -> Result<Vec<bool>> {
    library.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut library = library.spawn().context("see: cargo xtask setup")?;
    let mut stdin = library.stdin.take().context("no stdin")?;
    stdin.write_all(calls.as_bytes()).context("writing to it")?;
    drop(stdin);
    let output = library.wait_with_output().context("waiting for it")?;
    ensure!(
        output.status.success(),
        "the library of signatures; see: cargo xtask setup"
    );
    let lines = String::from_utf8(output.stdout).context("what it says")?;
    lines
        .lines()
        .map(|line| line.parse().with_context(|| line.to_owned()))
        .collect()
}
