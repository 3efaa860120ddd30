//! The target catalogue of a stack: the shipped targets at the ports of this stack, and their secrets.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use usersync_core::catalogue::{self, Catalogue, IDS};
use usersync_core::secret::SecretRef;

use crate::{Endpoints, secret};

/// Where a stack keeps the secret that signs calls to `target`; `file:PATH` refers to it.
pub(crate) fn secret_file(dir: &Path, target: &str) -> PathBuf {
    dir.join("secrets").join("targets").join(target)
}

/// Writes the catalogue directory: the shipped targets, then `toml`, then the user's own `file`. The names
/// of the files decide what is merged over what.
pub(crate) fn write(
    dir: &Path,
    endpoints: &Endpoints,
    toml: Option<String>,
    file: Option<&Path>,
) -> Result<PathBuf> {
    let folder = dir.join("targets.d");
    if folder.exists() {
        // Left by an earlier run, which had other ports.
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    let shipped = shipped(dir, endpoints)?;
    for target in shipped.values() {
        if let Some(SecretRef::File(path)) = &target.secret {
            secret::ensure(path, |random| format!("whsec_{}", BASE64.encode(random)))?;
        }
    }
    let mut shipped = serde_json::to_value(&shipped)?;
    let entries = shipped.as_object_mut().into_iter();
    for entry in entries.flat_map(|entries| entries.values_mut()) {
        // The files that ship are silent about it.
        entry.as_object_mut().map(|entry| entry.remove(IDS));
    }
    write("10-shipped.json", serde_json::to_string_pretty(&shipped)?)?;
    if let Some(toml) = toml {
        write("50-stack.toml", toml)?;
    }
    if let Some(file) = file {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(file)
            .with_context(|| format!("reading the targets in {}", file.display()))?;
        write(&format!("90-{name}"), text)?;
    }
    Ok(folder)
}

/// The names of the targets in the catalogue directory that are enabled.
pub(crate) fn enabled(folder: &Path) -> Result<Vec<String>> {
    let targets = catalogue::load(Some(folder)).map_err(|problems| anyhow!(problems.join("\n")))?;
    let enabled = targets.values().filter(|target| target.enabled);
    Ok(enabled.map(|target| target.name.to_string()).collect())
}

/// The shipped targets that have a server here, at its port and, over HTTP, with a secret.
fn shipped(dir: &Path, endpoints: &Endpoints) -> Result<Catalogue> {
    let mut targets = catalogue::load(None).map_err(|problems| anyhow!(problems.join("\n")))?;
    targets.retain(|name, target| {
        let Some(port) = endpoints.port_of(name.as_ref()) else {
            return false;
        };
        // Neither can fail: these URLs have a host.
        let _ = target.url.set_host(Some("127.0.0.1"));
        let _ = target.url.set_port(Some(port));
        if target.url.scheme() == "http" {
            target.secret = Some(SecretRef::File(secret_file(dir, name.as_ref())));
        }
        true
    });
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Endpoints {
        Endpoints {
            nats: 1,
            redis: 2,
            basic_server: Some(3),
            user_service: Some(4),
            unified_auth: Some(5),
        }
    }

    #[test]
    fn shipped_targets_move_to_the_ports_of_the_stack_and_keep_the_rest() {
        let targets = shipped(Path::new("/stack"), &endpoints()).unwrap();
        let told: Vec<_> = targets
            .values()
            .map(|target| (target.name.as_ref(), target.url.as_str()))
            .collect();
        let auth = "http://127.0.0.1:5/api/v1/auth/sync/user";
        let users = "http://127.0.0.1:4/api/v1/users/sync";
        let cache = "redis://127.0.0.1:2";
        assert_eq!(
            told,
            [
                ("redis-cache", cache),
                ("unified-auth", auth),
                ("user-service", users)
            ]
        );
        for target in targets.values() {
            let hides = target
                .fields
                .exclude
                .iter()
                .any(|path| path == "data.password_hash");
            assert_eq!(
                hides,
                target.name.as_ref() != "unified-auth",
                "{}",
                target.name
            );
        }
    }

    #[test]
    fn what_is_added_later_is_merged_over_the_shipped_targets() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("mine.yaml");
        fs::write(&own, "user-service: { enabled: false }\n").unwrap();
        let toml = "[audit]\nurl = \"http://127.0.0.1:9/\"\n".to_owned();
        let folder = write(dir.path(), &endpoints(), Some(toml), Some(&own)).unwrap();
        assert_eq!(
            enabled(&folder).unwrap(),
            ["audit", "redis-cache", "unified-auth"]
        );
    }
}
