//! `cargo xtask sbom`: what our binaries are made of, for whoever has to know.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use usersync_stack::tools;

use crate::run;

/// The binaries that are shipped, by their folders.
const SHIPPED: [(&str, &str); 3] = [
    ("services/gateway", "usersync-gateway"),
    ("services/scheduler", "usersync-scheduler"),
    ("services/worker", "usersync-worker"),
];
const VERSION: &str = "0.5.9";
/// cargo-cyclonedx writes a file of this name beside every Cargo.toml of the workspace.
const WRITTEN: &str = "usersync-sbom";

/// Write a software bill of materials (CycloneDX 1.5, JSON) of each binary: every crate in it, with version and licence
///
/// Compiles cargo-cyclonedx into `.tools` at first, which takes a minute or two.
#[derive(Args)]
pub(crate) struct Sbom {
    /// Where to: usersync-gateway.cdx.json and so on
    #[arg(long, value_name = "DIR", default_value = "target/sbom")]
    output: PathBuf,
}

impl Sbom {
    pub(crate) fn run(self) -> Result<()> {
        let mut make = Command::new(program()?);
        let root = tools::repository();
        make.args(["cyclonedx", "--quiet", "--all", "--target", "all"])
            .args(["--format", "json", "--spec-version", "1.5"])
            .args(["--override-filename", WRITTEN]);
        let made = run::quiet(make.current_dir(&root));
        let written = written(&root)?;
        let kept = made.and_then(|()| keep(&root, &root.join(&self.output)));
        // Those of the crates inside are contained in those of the binaries.
        for path in written {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", path.display()));
                }
                _ => {}
            }
        }
        kept
    }
}

/// cargo-cyclonedx, built if it isn't there yet.
fn program() -> Result<PathBuf> {
    let tools = tools::tools_dir();
    let program = tools.join("bin/cargo-cyclonedx");
    if !program.is_file() {
        let mut install = run::cargo(["install", "--locked", "cargo-cyclonedx", "--version"]);
        install.args([VERSION, "--no-track", "--root"]).arg(tools);
        run::shown(&mut install)?;
    }
    Ok(program)
}

/// Moves what was made of the binaries to `output`, and says where it is.
fn keep(root: &Path, output: &Path) -> Result<()> {
    fs::create_dir_all(output).with_context(|| format!("creating {}", output.display()))?;
    for (folder, binary) in SHIPPED {
        let from = root.join(folder).join(WRITTEN).with_extension("json");
        let to = output.join(format!("{binary}.cdx.json"));
        fs::rename(&from, &to)
            .with_context(|| format!("moving {} to {}", from.display(), to.display()))?;
        println!("{}", to.display());
    }
    Ok(())
}

/// Every file that cargo-cyclonedx makes, whether it is there or not.
fn written(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![root.join("xtask")];
    for group in ["services", "shared", "examples", "tests"] {
        let folder = root.join(group);
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            files.push(entry?.path());
        }
    }
    let files = files.into_iter();
    Ok(files
        .map(|folder| folder.join(WRITTEN).with_extension("json"))
        .collect())
}
