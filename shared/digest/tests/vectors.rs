//! The vectors of docs/DIGEST.md, held against Rust, MariaDB and PostgreSQL.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a list of ranges may have one"
)]

mod servers;

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use usersync_digest::{
    Cut, Digest, Form, Key, Keys, Row, RowHash, Stored,
    sql::{Field, Flavour, Table},
};

use servers::Servers;

const PAGE: &str = include_str!("../../../docs/DIGEST.md");
const SECRET: &[u8] = b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// All buckets of a cut without any.
const ALL: Cut = Cut {
    keys: Keys::Hashes,
    shift: 32,
};
const FIRST: &[Range<u64>] = &[0..1];

struct Vector {
    fields: Vec<Option<String>>,
    hash: String,
    keyed: String,
}

fn vectors() -> Vec<Vector> {
    let read = |line: &str| {
        let (fields, hashes) = line.strip_prefix("    [")?.rsplit_once("] ")?;
        let (hash, keyed) = hashes.split_once(' ')?;
        let fields = serde_json::from_str(&format!("[{fields}]")).expect("a row is JSON");
        Some(Vector {
            fields,
            hash: hash.to_owned(),
            keyed: keyed.to_owned(),
        })
    };
    PAGE.lines().filter_map(read).collect()
}

/// The line of the page that holds the digest of the rows with four fields.
fn documented() -> Digest {
    let mut lines = PAGE
        .lines()
        .skip_while(|line| !line.contains("five-column"));
    let numbers: Vec<&str> = lines.nth(2).expect("a digest").split_whitespace().collect();
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("hex");
    Digest {
        count: numbers[0].parse().expect("a count"),
        high: hex(numbers[1]),
        low: hex(numbers[2]),
    }
}

fn row(fields: &[Option<String>]) -> Row {
    let mut row = Row::new(fields[0].as_deref().expect("an id"));
    for field in &fields[1..] {
        row.field(field.as_deref().map(str::as_bytes));
    }
    row
}

fn hex(hash: RowHash) -> String {
    hash.0.iter().map(|octet| format!("{octet:02x}")).collect()
}

#[test]
fn rust_makes_the_hashes_of_the_page() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 7);
    let key = Key::of(SECRET);
    let mut digest = Digest::default();
    for vector in vectors {
        let row = row(&vector.fields);
        assert_eq!(hex(row.hash()), vector.hash, "{:?}", vector.fields);
        assert_eq!(hex(row.keyed(&key)), vector.keyed, "{:?}", vector.fields);
        if vector.fields.len() == 5 {
            digest.add(row.hash());
        }
    }
    assert_eq!(digest, documented());
}

#[test]
fn rust_makes_the_keys_of_the_page() {
    let lines = PAGE
        .lines()
        .skip_while(|line| !line.contains("looking at everybody"))
        .filter(|line| line.starts_with("    "));
    let keys: Vec<_> = lines
        .take(4)
        .filter_map(|line| line.trim().split_once(' '))
        .collect();
    assert_eq!(keys.len(), 4);
    for (id, key) in keys {
        let cut = Cut { shift: 0, ..ALL };
        assert_eq!(
            cut.bucket(id).map(|key| key.to_string()).as_deref(),
            Some(key),
            "{id}"
        );
    }
}

#[tokio::test]
async fn databases_make_the_hashes_and_the_digest_of_the_page() -> Result<()> {
    let servers = Servers::start().await?;
    let rows: Vec<Vector> = vectors();
    let rows: Vec<Vector> = rows
        .into_iter()
        .filter(|vector| vector.fields.len() == 5)
        .collect();
    for (flavour, text) in [
        (Flavour::MySql, "varchar(64) COLLATE utf8mb4_bin"),
        (Flavour::Postgres, "text"),
    ] {
        let columns = ["c1", "c2", "c3", "c4"].map(|column| format!(", {column} {text}"));
        servers
            .run(
                flavour,
                &format!(
                    "CREATE TABLE vectors (id {text} PRIMARY KEY{})",
                    columns.concat()
                ),
            )
            .await?;
        for row in &rows {
            servers.insert(flavour, "vectors", &row.fields).await?;
        }
        let field = |column: &str| Field {
            column: Some(flavour.quoted(column)),
            stored: Stored::Text {
                padded: false,
                unicode: true,
                most: None,
            },
            form: Form::TEXT,
        };
        let table = Table {
            name: flavour.quoted("vectors"),
            id: flavour.quoted("id"),
            integer_ids: false,
            counts: None,
            fields: ["c1", "c2", "c3", "c4"].map(field).into(),
        };
        let listed = servers
            .list(flavour, &table.list(flavour, &ALL, FIRST))
            .await?;
        ensure!(listed.len() == rows.len());
        for entry in listed {
            let known = rows
                .iter()
                .find(|row| row.fields[0].as_deref() == Some(&entry.id));
            let known = known.context("somebody unknown is listed")?;
            ensure!(
                hex(entry.hash) == known.hash,
                "{flavour:?} {:?}",
                known.fields
            );
        }
        let digests = servers
            .digest(flavour, &table.digest(flavour, &ALL, FIRST), 0)
            .await?;
        ensure!(digests == [(0, documented())], "{flavour:?} {digests:?}");
        // Keys are the page's too: everybody is in the bucket Rust says.
        for row in &rows {
            let id = row.fields[0].as_deref().unwrap_or_default();
            let cut = Cut { shift: 0, ..ALL };
            let bucket = cut.bucket(id).context("a bucket")?;
            let found = servers
                .list(flavour, &table.list(flavour, &cut, &[bucket..bucket + 1]))
                .await?;
            ensure!(
                found.len() == 1 && &*found[0].id == id,
                "{flavour:?} {id} {found:?}"
            );
        }
    }
    Ok(())
}
