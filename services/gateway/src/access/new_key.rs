//! `usersync-gateway key new`: makes a key and the entry that lets it in.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};

use super::caller::{Hash, Scope, is_name};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key: it is shown once, on standard error; its entry for the file of keys goes to standard output
    New(NewKey),
}

/// Whose key, and what for.
#[derive(Debug, Args)]
pub struct NewKey {
    /// What it may be used for; may be given several times
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// Bind it to events of this source; may be given several times [default: any source]
    #[arg(long = "source", value_name = "SOURCE")]
    sources: Vec<String>,
    /// The caller's name: 1 to 32 characters a-z 0-9 _ - [default: the first source]
    #[arg(long, value_name = "NAME", required_unless_present = "sources")]
    name: Option<String>,
}

impl KeyCommand {
    /// Makes and prints the key and its entry.
    ///
    /// # Errors
    /// When the name can't be one, or the system has no random bytes to give.
    pub fn run(&self) -> anyhow::Result<()> {
        let Self::New(asked) = self;
        let name = asked.name.as_ref().or_else(|| asked.sources.first());
        let name = name.filter(|name| is_name(name));
        let name = name.ok_or_else(|| {
            anyhow::anyhow!(
                "a caller's name is 1 to 32 characters a-z 0-9 _ -; give one with --name"
            )
        })?;
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        // A prefix that scanners for leaked secrets can find.
        let key = format!("usk_{}", URL_SAFE_NO_PAD.encode(bytes));
        let scopes: Vec<_> = asked.scopes.iter().map(|scope| scope.as_str()).collect();
        writeln!(
            std::io::stderr(),
            "The key of {name}, shown this once. Send it as `Authorization: Bearer KEY`:\n{key}"
        )?;
        writeln!(
            std::io::stdout(),
            "[http.keys.{name}]\nhashes = [\"{}\"]\nscopes = {}",
            Hash::of(&key),
            serde_json::to_string(&scopes)?
        )?;
        if !asked.sources.is_empty() {
            let sources = serde_json::to_string(&asked.sources)?;
            writeln!(std::io::stdout(), "sources = {sources}")?;
        }
        Ok(())
    }
}
