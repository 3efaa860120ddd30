//! The target catalogue on disk: `targets.d/*.{toml,yaml,json}`, one table per target, later files winning.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use config::{Config, File, FileFormat};
use serde_json::{Value, json};
use url::Url;

use crate::{
    network::Kind,
    target::{TargetConfig, TargetName},
    user_id::Ids,
};

/// The three targets of the original system.
const SHIPPED: &str = include_str!("targets.toml");

/// Every target, enabled or not, by name.
pub type Catalogue = BTreeMap<TargetName, TargetConfig>;

/// Every entry as the files have it: an object of a target's keys, by name.
pub type Tables = BTreeMap<String, Value>;

/// Loads a catalogue file, or a directory of them merged in the order of their names.
///
/// Without `path`: the three targets that ship.
///
/// # Errors
/// Every problem found, each naming file, target and key.
pub fn load(path: Option<&Path>) -> Result<Catalogue, Vec<String>> {
    let mut catalogue = Catalogue::new();
    let mut problems = Vec::new();
    for (name, table) in tables(path)? {
        match entry(&name, table) {
            Ok(target) => {
                catalogue.insert(target.name.clone(), target);
            }
            Err(found) => {
                let origin = origin(path);
                let named = |problem| format!("{origin}: {name}.{problem}");
                problems.extend(found.iter().map(named));
            }
        }
    }
    if problems.is_empty() {
        Ok(catalogue)
    } else {
        Err(problems)
    }
}

/// The same without a look at what the entries hold, but for where they are: files are written by who runs the
/// service, so one that says nothing of networks, and whose URL can only mean this machine or this network, may be
/// there (ADR 25).
///
/// # Errors
/// When a file can't be read, or isn't what its ending says.
pub fn tables(path: Option<&Path>) -> Result<Tables, Vec<String>> {
    let mut builder = Config::builder();
    match path {
        None => builder = builder.add_source(File::from_str(SHIPPED, FileFormat::Toml)),
        Some(path) => {
            for file in files(path)? {
                builder = builder.add_source(File::from(file));
            }
        }
    }
    let read = builder.build().and_then(Config::try_deserialize);
    let mut tables: Tables = read.map_err(|error| vec![format!("{}: {error}", origin(path))])?;
    for members in tables.values_mut().filter_map(Value::as_object_mut) {
        let url = members.get("url").and_then(Value::as_str);
        if url.is_some_and(is_near) && !members.contains_key("allow_networks") {
            let near = json!([Kind::Loopback.to_string(), Kind::Private.to_string()]);
            members.insert("allow_networks".to_owned(), near);
        }
    }
    Ok(tables)
}

/// Whether what `url` names is never on the internet, whoever answers for names there: an address, a name without a
/// dot such as `localhost` or a container's, one below `.localhost` or `.internal`, or no host at all.
fn is_near(url: &str) -> bool {
    let Ok(url) = url.parse::<Url>() else {
        return false;
    };
    let host = url.host_str().unwrap_or_default();
    let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    literal || !host.contains('.') || host.ends_with(".localhost") || host.ends_with(".internal")
}

fn origin(path: Option<&Path>) -> String {
    path.map_or_else(
        || "shipped targets".to_owned(),
        |path| path.display().to_string(),
    )
}

/// The catalogue files at `path`, in the order they are merged.
///
/// # Errors
/// When there is nothing to be read at `path`.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, Vec<String>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |error| {
        vec![format!(
            "{}: {error}; expected a catalogue file or a directory of them",
            path.display()
        )]
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("toml" | "yaml" | "yml" | "json")) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one entry, as files, the HTTP API and KV hold it: an object of a target's keys.
///
/// # Errors
/// Every problem found, each beginning with the key. Never quotes a value: it may be a secret.
pub fn entry(name: &str, table: Value) -> Result<TargetConfig, Vec<String>> {
    let Value::Object(mut members) = table else {
        return Err(vec!["url: expected a table with at least `url`".to_owned()]);
    };
    // The name is the entry's key; one that repeats it does no harm.
    if members.get("name").is_some_and(|repeated| repeated == name) {
        members.remove("name");
    }
    if let Some(newer) = newer_format(&members) {
        return Err(vec![newer]);
    }
    members.remove(FORMAT_KEY);
    let found = misfits(name, &members);
    if !found.is_empty() {
        return Err(found);
    }
    members.insert("name".to_owned(), name.into());
    let target: TargetConfig = serde_json::from_value(members.into())
        .map_err(|_| vec![format!("url: {}", expected("url"))])?;
    match target.problems() {
        problems if problems.is_empty() => Ok(target),
        problems => Err(problems),
    }
}

/// What is wrong with an entry of a format that only a newer program reads, or that is none. No program replaces such an
/// entry by itself.
pub fn newer_format(members: &serde_json::Map<String, Value>) -> Option<String> {
    let format = members.get(FORMAT_KEY)?;
    match format.as_u64() {
        Some(1..=FORMAT) => None,
        Some(newer @ 2..) => Some(format!(
            "{FORMAT_KEY}: it is written in format {newer}, but this program reads up to {FORMAT}: upgrade it (docs/UPGRADING.md)"
        )),
        _ => Some(format!("{FORMAT_KEY}: expected a whole number, 1 or more")),
    }
}

/// Has an entry that is to be written say what `ids` are, where it doesn't: an entry that exists keeps what it has, a new
/// one (`stored` is `None`) is of `auto`. What is no entry stays as it is.
pub fn settle_ids(entry: &mut Value, stored: Option<&[u8]>) {
    let Some(members) = entry.as_object_mut() else {
        return;
    };
    if members.contains_key(IDS) {
        return;
    }
    let ids = match stored {
        None => Some(json!(Ids::Auto)),
        Some(stored) => serde_json::from_slice::<Value>(stored)
            .ok()
            .and_then(|stored| stored.get(IDS).cloned()),
    };
    members.extend(ids.map(|ids| (IDS.to_owned(), ids)));
}

/// The newest format of entries that this program reads. It rises only where an older program would misread an entry that
/// it takes; a key that it doesn't know it refuses anyway.
const FORMAT: u64 = 1;
/// The key of an entry that says its format; absent: 1.
const FORMAT_KEY: &str = "format";
/// The key of an entry that says how ids are written.
pub const IDS: &str = "ids";

/// Keys that are unknown or don't fit, tried one at a time so that all are found. Never quotes a
/// value: it may be a secret.
fn misfits(name: &str, members: &serde_json::Map<String, Value>) -> Vec<String> {
    if let Err(error) = name.parse::<TargetName>() {
        return vec![format!("name: {error}")];
    }
    let fits = |key: &str, value: Value| {
        let mut alone = json!({ "name": name, "url": "http://localhost" });
        alone[key] = value;
        serde_json::from_value::<TargetConfig>(alone).is_ok()
    };
    let mut found = Vec::new();
    for (key, value) in members {
        if fits(key, value.clone()) {
            continue;
        }
        // Of a table, what doesn't fit in it.
        let inside = value.as_object().into_iter().flatten();
        let inside = inside.filter(|(inner, value)| !fits(key, json!({*inner: value})));
        let inside: Vec<_> = inside
            .map(|(inner, _)| format!("{key}.{inner}: {}", expected_in(key, inner)))
            .collect();
        match inside.is_empty() {
            true => found.push(format!("{key}: {}", expected(key))),
            false => found.extend(inside),
        }
    }
    found
}

fn expected_in(table: &str, key: &str) -> &'static str {
    match (table, key) {
        ("fields", "mask") => {
            "expected a table of redact, hash or last4 by member, such as { email = \"hash\" }"
        }
        ("fields", "mask_key") => expected("secret"),
        ("headers", _) => {
            "expected a text; one that begins with `env:` or `file:` is a reference and names something"
        }
        _ => expected(table),
    }
}

fn expected(key: &str) -> &'static str {
    match key {
        "url" => {
            "expected a URL such as http://host/path, redis://host:6379 or postgres://user@host/database"
        }
        "allow_networks" => {
            "expected a list of public, loopback, private, link-local, shared, addresses and ranges such as 10.0.0.0/8"
        }
        "method" => "expected a method such as POST",
        "enabled" | "verify" | "suppress_unchanged" | "results" => "expected true or false",
        "timeout" => "expected a duration such as 10s",
        "concurrency" | "batch" => "expected 1 to 1000",
        "retry" => {
            "expected a table of max_deliver, base, factor, cap, permanent_status and transient_status, such as { max_deliver = 8, base = \"1s\" }"
        }
        "breaker" => {
            "expected a table of faults, ratio, window, least, permanent, probe and probe_cap, such as { faults = 3 }"
        }
        "filter" => "expected a CEL expression such as `user.status == 'active'`",
        "on_delete" | "on_out_of_scope" => "expected delete, disable or ignore",
        "ids" => "expected number, string or auto",
        "linger" => "expected a duration such as 5ms",
        "rate_limit" => "expected a number of users per second from 1",
        "table" => {
            "expected a table of name, id, version, deleted and columns, such as { name = \"users\", columns = { phone = \"data.phone\" } }"
        }
        "unique" => "expected a list of members, such as [\"email\"]",
        "read_url" => "expected a URL with {id} in it",
        "note" => "expected a text",
        "fields" => {
            "expected a table of include, exclude, rename, compute, mask and mask_key, such as { exclude = [\"data.password_hash\"] }"
        }
        "headers" => "expected a table of texts",
        "auth" => {
            "expected one of { bearer = \"env:TOKEN\" }, { basic = { user, password } } and { oauth2 = { token_url, client_id, client_secret, scope, audience } }, secrets as references"
        }
        "tls" => {
            "expected a table of ca, cert and key, each a reference to PEM, such as { ca = \"file:/etc/ca.pem\" }"
        }
        "secret" | "previous_secret" => {
            "expected a reference, `env:NAME` or `file:PATH`, never the secret itself"
        }
        _ => {
            "is no key of a target; expected one of url, allow_networks, method, enabled, timeout, concurrency, batch, linger, rate_limit, retry, breaker, filter, on_out_of_scope, on_delete, ids, fields, table, verify, check, refill, read_url, unique, suppress_unchanged, results, headers, secret, previous_secret, auth, tls, note"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_entry_is_of_auto_and_one_that_exists_keeps_what_it_has() {
        let settled = |entry: Value, stored: Option<&str>| {
            let mut entry = entry;
            settle_ids(&mut entry, stored.map(str::as_bytes));
            entry[IDS].clone()
        };
        let silent = json!({"url": "http://h/x"});
        assert_eq!(settled(silent.clone(), None), "auto");
        assert_eq!(settled(json!({"ids": "number"}), None), "number");
        let old = r#"{"url": "http://h/x"}"#;
        assert_eq!(settled(silent.clone(), Some(old)), Value::Null);
        assert_eq!(
            settled(silent.clone(), Some(r#"{"ids": "string"}"#)),
            "string"
        );
        assert_eq!(settled(silent, Some("broken")), Value::Null);
        let read = entry("t", json!({"url": "http://h/x"})).unwrap();
        assert_eq!(read.ids, Ids::Number);
        let wrong = entry("t", json!({"url": "http://h/x", "ids": "text"})).unwrap_err();
        assert_eq!(wrong, ["ids: expected number, string or auto"]);
    }

    #[test]
    fn an_entry_of_a_newer_program_is_refused_by_its_format_whatever_else_it_says() {
        for (format, said) in [
            (json!(2), "upgrade it (docs/UPGRADING.md)"),
            (json!(0), "expected a whole number"),
            (json!("1"), "expected a whole number"),
        ] {
            let newer = json!({"url": "http://h/x", "format": format, "unheard": true});
            let refused = entry("t", newer).unwrap_err();
            assert!(
                refused.len() == 1 && refused[0].contains(said),
                "{refused:?}"
            );
        }
        assert!(entry("t", json!({"url": "http://h/x", "format": 1})).is_ok());
    }

    #[test]
    fn the_shipped_targets_are_those_of_the_original_system() {
        let catalogue = load(None).unwrap();
        let seen: Vec<_> = catalogue
            .values()
            .map(|target| (target.name.as_ref(), target.url.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("redis-cache", "redis://localhost:6379"),
                (
                    "unified-auth",
                    "http://localhost:8207/api/v1/auth/sync/user"
                ),
                ("user-service", "http://localhost:8081/api/v1/users/sync"),
            ]
        );
        for target in catalogue.values() {
            let sees_hash = !target
                .fields
                .exclude
                .contains(&"data.password_hash".to_owned());
            assert_eq!(
                sees_hash,
                target.name.as_ref() == "unified-auth",
                "{}",
                target.name
            );
        }
    }

    #[test]
    fn a_file_may_mean_this_machine_and_this_network_without_saying_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        let near = [
            "http://localhost:1/",
            "redis://10.0.0.1",
            "http://auth:8207/",
            "http://[::1]/",
            "http://a.internal/",
        ];
        let far = [
            "http://hooks.example.com/",
            "http://localhost.example.com/",
            "http://10.0.0.1.example.com/",
        ];
        for (urls, expected) in [(&near[..], 2), (&far[..], 0)] {
            for url in urls {
                std::fs::write(&path, format!("[t]\nurl = '{url}'")).unwrap();
                let target = load(Some(&path)).unwrap().into_values().next().unwrap();
                assert_eq!(target.allow_networks.len(), expected, "{url}");
            }
        }
        std::fs::write(&path, "[t]\nurl = 'http://localhost/'\nallow_networks = []").unwrap();
        let target = load(Some(&path)).unwrap().into_values().next().unwrap();
        assert_eq!(target.allow_networks, []);
        // Only a file's word counts for so much.
        let target = entry("t", json!({"url": "http://localhost/"})).unwrap();
        assert_eq!(target.allow_networks, []);
    }

    #[test]
    fn files_merge_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("10.toml"),
            "[a]\nurl = 'http://h/1'\ntimeout = '3s'",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("20.yaml"),
            "a: {timeout: 5s}\nb: {url: 'redis://h'}",
        )
        .unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not a catalogue").unwrap();
        let catalogue = load(Some(dir.path())).unwrap();
        let a = &catalogue[&"a".parse().unwrap()];
        assert_eq!((a.url.as_str(), a.timeout.as_secs()), ("http://h/1", 5));
        assert_eq!(catalogue.len(), 2);
    }

    #[test]
    fn what_does_not_fit_inside_of_a_table_is_named() {
        let problems = |entry| entry_of(entry).unwrap_err().join("; ");
        for (entry, told) in [
            (
                json!({"fields": {"mask": {"email": "hunter2"}}}),
                "fields.mask: expected a table of redact",
            ),
            (
                json!({"fields": {"mask_key": "hunter2"}}),
                "fields.mask_key: expected a reference",
            ),
            (
                json!({"retry": {"base": "1s", "max_delivery": 3}}),
                "retry.max_delivery: expected a table of max_deliver",
            ),
            (
                json!({"headers": {"X-A": "b", "X-B": 1}}),
                "headers.X-B: expected a text",
            ),
            (json!({"headers": "hunter2"}), "headers: expected a table"),
        ] {
            let found = problems(entry);
            assert!(
                found.starts_with(told) && !found.contains("hunter2"),
                "{found}"
            );
        }
    }

    fn entry_of(mut keys: Value) -> Result<TargetConfig, Vec<String>> {
        keys["url"] = json!("http://h/");
        entry("t", keys)
    }

    #[test]
    fn every_problem_names_file_target_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, "[A]\nurl='http://h'\n[b]\nurl='http://h'\nmethods='PUT'\n[c]\nurl='http://h'\ntimeout='0s'\n[d]\nsecret='hunter2'\nurl='http://h'").unwrap();
        let problems = load(Some(&path)).unwrap_err().join("\n");
        for part in [
            "t.toml: A.name: a target name",
            "b.methods: is no key",
            "c.timeout: expected",
            "d.secret: expected a reference",
        ] {
            assert!(problems.contains(part), "no {part:?} in {problems}");
        }
        assert!(!problems.contains("hunter2"));
    }
}
