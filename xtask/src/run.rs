//! Runs other programs, cargo above all: shown as they go, or quietly unless they fail.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use usersync_stack::{Profile, tools};

use crate::terminal::{self, LiveLine};

/// The cargo that runs us, in the root of the repository.
pub(crate) fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(tools::repository());
    command
}

/// Runs it with its output shown, after saying what is run.
pub(crate) fn shown(command: &mut Command) -> Result<()> {
    let text = text(command);
    eprintln!("{}", terminal::stderr().bold(&format!("$ {text}")));
    let status = command
        .status()
        .with_context(|| format!("running {text}"))?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// Builds the binaries of `packages`, or all but this one when there are none. Shows one line while it goes on, and the compiler's output only when it
/// fails.
pub(crate) fn build_binaries(profile: Profile, packages: &[&str]) -> Result<()> {
    let mut args = vec!["build", "--bins"];
    if packages.is_empty() {
        args.extend(["--workspace", "--exclude", "xtask"]);
    }
    for package in packages {
        args.extend(["--package", package]);
    }
    if profile == Profile::Release {
        args.push("--release");
    }
    let mut command = cargo(args);
    let text = text(&command);
    let line = LiveLine::start(&format!("building the binaries ({text})"));
    let mut child = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {text}"))?;
    let stderr = child
        .stderr
        .take()
        .context("cargo's output is not to be had")?;
    let mut output = Vec::new();
    let mut compiled = 0;
    for read in BufReader::new(stderr).lines() {
        let read = read.context("reading cargo's output")?;
        if let Some(name) = read.trim_start().strip_prefix("Compiling ") {
            compiled += 1;
            line.update(&format!(
                "building the binaries: {compiled} crates so far, {name}"
            ));
        }
        output.push(read);
    }
    let status = child
        .wait()
        .with_context(|| format!("waiting for {text}"))?;
    drop(line);
    if !status.success() {
        eprintln!("{}", output.join("\n"));
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// Runs it without showing anything; on failure the error has the end of what it wrote.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    let text = text(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {text}"))?;
    if output.status.success() {
        return Ok(());
    }
    let both = [output.stdout, output.stderr].concat();
    let both = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = both.trim_end().lines().collect();
    let end = lines[lines.len().saturating_sub(8)..].join("\n    ");
    bail!("`{text}` failed ({}):\n    {end}", output.status)
}

/// The command as one would type it.
pub(crate) fn text(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    if text.ends_with("/cargo") {
        text = "cargo".to_owned();
    }
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
