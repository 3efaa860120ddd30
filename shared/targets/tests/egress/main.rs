//! Targets are connected to where they may be and nowhere else, however their URL is written and whatever a resolver
//! says, counted at sockets that listen.

#[path = "../common/mod.rs"]
mod common;
mod forms;
mod listener;
mod resolver;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use usersync_core::{catalogue, egress::Egress, network::Network};
use usersync_stack::eventually;
use usersync_targets::{Names, Outcome, connect_by};

use self::{
    common::{deliver, user},
    listener::Listener,
    resolver::{Answers, Rebinding},
};

/// What a refusal by the guard says.
const REFUSED: &str = "no connection is made to it";
/// Everything an entry could ask for.
const ALL: [&str; 7] = [
    "public",
    "loopback",
    "private",
    "link-local",
    "shared",
    "0.0.0.0/0",
    "::/0",
];
const DATABASES: [&str; 8] = [
    "redis", "rediss", "mysql", "mariadb", "postgres", "neo4j", "bolt", "neo4j+s",
];

/// The URL of a database at `host`.
fn database(scheme: &str, host: &str, port: u16) -> String {
    let name = if scheme.starts_with("redis") {
        "0"
    } else {
        "db"
    };
    format!("{scheme}://u@{host}:{port}/{name}")
}

/// What became of one URL.
#[derive(Debug, PartialEq)]
enum End {
    /// It is no URL of a target.
    NoTarget,
    /// The guard refused it.
    Refused,
    /// The name has no address.
    Unknown,
    /// Something was tried.
    Tried(String),
}

/// Delivers to, probes and reads from the target at `url`.
async fn attempt(url: &str, allow: &[&str], egress: &Egress, names: Arc<dyn Names>) -> Vec<End> {
    let mut entry = json!({"url": url, "timeout": "3s", "allow_networks": allow});
    if url.to_ascii_lowercase().starts_with("http") {
        entry["read_url"] = Value::from(url.to_owned() + "{id}");
    }
    let Ok(config) = catalogue::entry("hostile", entry) else {
        return vec![End::NoTarget];
    };
    let Ok(target) = connect_by(&config, egress, names) else {
        return vec![End::NoTarget];
    };
    let mut ends = Vec::new();
    ends.push(match deliver(&*target, user(1, "ann")).await {
        Ok(Outcome::Fault(failure)) => end(&failure.to_string()),
        other => End::Tried(format!("{other:?}")),
    });
    ends.push(match target.probe().await {
        Err(failure) => end(&failure.to_string()),
        Ok(()) => End::Tried("the probe got an answer".to_owned()),
    });
    if let Some(compared) = target.compare(&[user(1, "ann")]).await {
        ends.push(end(&format!("{compared:?}")));
    }
    if let Err(unchecked) = target.holdings().await {
        let text = unchecked.to_string();
        ends.extend((!text.contains("secret")).then(|| end(&text)));
    }
    ends
}

fn end(reason: &str) -> End {
    match reason {
        _ if reason.contains(REFUSED) => End::Refused,
        _ if reason.contains("can't be resolved") => End::Unknown,
        _ => End::Tried(reason.to_owned()),
    }
}

/// Every hostile URL, with the port and the folder of sockets filled in.
fn urls(port: u16, sockets: &str) -> (Vec<String>, Vec<String>) {
    let fill = |form: &&str| {
        let form = form.replace("%2FSOCKET", &sockets.replace('/', "%2F"));
        form.replace("PORT", &port.to_string())
            .replace("SOCKET", sockets)
    };
    let hosts = forms::hosts();
    let mut http: Vec<String> = forms::HTTP
        .iter()
        .chain(&forms::SCHEMES)
        .map(fill)
        .collect();
    http.extend(hosts.iter().map(|host| format!("http://{host}:{port}/")));
    http.extend(forms::NAMES.map(|host| format!("https://{host}:{port}/")));
    let mut databases: Vec<String> = forms::DATABASES.iter().map(fill).collect();
    for scheme in DATABASES {
        databases.extend(hosts.iter().map(|host| database(scheme, host, port)));
    }
    (http, databases)
}

/// Tries all of `urls`; how many ends of each sort there were.
async fn attack(urls: &[String], allow: &[&str], egress: &Egress) -> Result<[usize; 3]> {
    let mut counts = [0; 3];
    for url in urls {
        for end in attempt(url, allow, egress, Arc::new(Answers)).await {
            match end {
                End::NoTarget => counts[0] += 1,
                End::Refused => counts[1] += 1,
                End::Unknown => counts[2] += 1,
                End::Tried(what) => anyhow::bail!("{url}: {what}"),
            }
        }
    }
    Ok(counts)
}

#[tokio::test]
async fn no_hostile_url_leads_to_a_socket() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listener = Listener::everywhere(folder.path()).await?;
    let (http, databases) = urls(listener.port, &folder.path().to_string_lossy());
    ensure!(http.len() >= 300 && databases.len() >= 2_000);
    let nothing = Egress {
        limit: Vec::new(),
        ..Egress::default()
    };
    for (urls, least) in [(&http[..], 600), (&databases[..], 2_000)] {
        // Entries that ask for more than they get.
        let [none, refused, unknown] = attack(urls, &ALL, &nothing).await?;
        ensure!(
            refused >= least,
            "{none} no targets, {refused} refused, {unknown} unknown"
        );
    }
    // And entries that ask for nothing; a client for HTTP takes its time to be made.
    attack(&http[..60], &[], &Egress::default()).await?;
    attack(&databases, &[], &Egress::default()).await?;
    ensure!(
        listener.connections() == 0,
        "{} came",
        listener.connections()
    );
    Ok(())
}

#[tokio::test]
async fn the_same_urls_lead_to_the_socket_where_that_is_allowed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listener = Listener::everywhere(folder.path()).await?;
    let (port, sockets) = (listener.port, folder.path().display());
    let mut urls = vec![
        format!("http://127.0.0.1:{port}/"),
        format!("https://localhost:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("postgres://8.8.8.8/db?host={sockets}&port={port}"),
        format!("mysql://8.8.8.8/db?socket={sockets}/.s.PGSQL.{port}"),
    ];
    for scheme in DATABASES {
        urls.push(database(scheme, "127.0.0.1", port));
        urls.push(database(scheme, "loopback.attacker.test", port));
    }
    // What the driver resolves by itself isn't known to it.
    urls.retain(|url| !(url.starts_with("neo4j+s") && url.contains("attacker")));
    for url in urls {
        let before = listener.connections();
        let ends = attempt(&url, &["loopback"], &Egress::default(), Arc::new(Answers)).await;
        ensure!(
            ends.iter().all(|end| matches!(end, End::Tried(_))),
            "{url}: {ends:?}"
        );
        ensure!(listener.connections() > before, "{url}: nobody came");
    }
    Ok(())
}

/// A name that leads to 127.0.0.2, which is allowed, and to 127.0.0.1, which isn't.
async fn rebind(scheme: &str, at_once: bool) -> Result<()> {
    let (allowed, forbidden): (IpAddr, IpAddr) = ("127.0.0.2".parse()?, "127.0.0.1".parse()?);
    let decoy = Listener::at(allowed, 0).await?;
    let victim = Listener::at(forbidden, decoy.port).await?;
    let egress = Egress {
        allow: vec![Network::Range(allowed.into())],
        limit: Vec::new(),
        ..Egress::default()
    };
    let url = database(scheme, "rebinding.attacker.test", decoy.port);
    let url = url.replace("http://u@", "http://");
    let names = Arc::new(Rebinding::new(allowed, forbidden, at_once));
    for _ in 0..20 {
        attempt(&url, &[], &egress, names.clone()).await;
    }
    eventually(Duration::from_secs(5), async || {
        ensure!(decoy.connections() >= 10, "{scheme}: nobody came");
        Ok(())
    })
    .await?;
    ensure!(
        victim.connections() == 0,
        "{scheme}: {} came",
        victim.connections()
    );
    Ok(())
}

#[tokio::test]
async fn a_name_that_changes_its_answer_leads_to_what_was_looked_at() -> Result<()> {
    for scheme in ["http", "redis", "mysql", "postgres", "neo4j", "bolt"] {
        rebind(scheme, false).await?;
        rebind(scheme, true).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_ships_may_be_on_this_machine_and_the_same_entry_from_elsewhere_may_not() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let listener = Listener::everywhere(folder.path()).await?;
    let url = format!("http://localhost:{}/", listener.port);
    let file = folder.path().join("targets.toml");
    std::fs::write(&file, format!("[t]\nurl = {url:?}"))?;
    let entries =
        catalogue::load(Some(&file)).map_err(|problems| anyhow::anyhow!(problems.join("; ")))?;
    for config in entries.values() {
        let target = connect_by(config, &Egress::default(), Arc::new(Answers))?;
        target.deliver(&[user(1, "ann")]).await;
    }
    ensure!(
        listener.connections() == 1,
        "{} came",
        listener.connections()
    );
    let ends = attempt(&url, &[], &Egress::default(), Arc::new(Answers)).await;
    ensure!(ends.iter().all(|end| *end == End::Refused), "{ends:?}");
    ensure!(
        listener.connections() == 1,
        "{} came",
        listener.connections()
    );
    Ok(())
}
