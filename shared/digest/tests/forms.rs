//! Values of many types, on real servers: SQL and Rust write them in one form, and so do the servers among each other.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a list of ranges may have one"
)]

mod servers;

use std::ops::Range;

use anyhow::{Result, ensure};
use usersync_digest::{
    Cut, Entry, Form, Keys, Rounding, Row, RowHash, Stored,
    sql::{Field, Flavour, Table},
};

use servers::Servers;

const ALL: Cut = Cut {
    keys: Keys::Hashes,
    shift: 32,
};
const FIRST: &[Range<u64>] = &[0..1];

/// A column of both servers, in its own type each, and what is known of it.
struct Column {
    mysql: (&'static str, Stored),
    postgres: (&'static str, Stored),
    form: Form,
    values: Vec<Option<&'static str>>,
}

fn columns() -> Vec<Column> {
    let text = Stored::Text {
        padded: false,
        unicode: true,
        most: None,
    };
    let padded = Stored::Text {
        padded: true,
        unicode: true,
        most: None,
    };
    let latin = Stored::Text {
        padded: false,
        unicode: false,
        most: None,
    };
    let instant = |digits, rounding| Stored::Instant { digits, rounding };
    let decimal = |scale| Stored::Decimal { scale };
    let known = |texts: &[&'static str]| -> Vec<_> {
        texts.iter().copied().map(Some).chain([None]).collect()
    };
    let texts = known(&[
        "",
        "ann",
        "ann ",
        " ann",
        "ANN",
        "Zoë 🦀",
        "4:2",
        "e\u{301}",
        "\u{e9}",
    ]);
    let times = known(&[
        "2026-03-29 01:59:59.999999",
        "2026-03-29 02:30:00",
        "2016-12-31 23:59:59.5",
        "1969-12-31 23:59:59.123456",
        "9999-12-31 23:59:59",
        "1970-01-01 00:00:00",
        "2001-09-09 01:46:39.999999",
        "2039-12-31 23:59:59.999999",
        "2040-01-01 00:00:00.000001",
        "2286-11-20 17:46:40",
    ]);
    vec![
        Column {
            mysql: ("text COLLATE utf8mb4_unicode_ci", text),
            postgres: ("text", text),
            form: Form::TEXT,
            values: texts.clone(),
        },
        Column {
            mysql: ("varchar(50) CHARACTER SET latin1", latin),
            postgres: ("varchar(50)", text),
            form: Form::TEXT,
            values: known(&["Zoë", "ann "]),
        },
        Column {
            mysql: ("char(20) CHARACTER SET utf8mb4", padded),
            postgres: ("char(20)", padded),
            form: Form::Text {
                trimmed: true,
                most: None,
            },
            values: texts,
        },
        Column {
            mysql: ("bigint", Stored::Integer),
            postgres: ("bigint", Stored::Integer),
            form: Form::Integer,
            values: known(&["0", "-7", "9223372036854775807"]),
        },
        Column {
            mysql: ("boolean", Stored::Integer),
            postgres: ("boolean", Stored::Boolean),
            form: Form::Integer,
            values: known(&["0", "1"]),
        },
        Column {
            mysql: ("decimal(10, 2)", decimal(Some(2))),
            postgres: ("numeric", decimal(None)),
            form: Form::Decimal { scale: Some(2) },
            values: known(&["1.50", "1.5", "100", "-0.25", "0.00", "-3"]),
        },
        Column {
            mysql: ("decimal(12, 4)", decimal(Some(4))),
            postgres: ("numeric(12, 4)", decimal(Some(4))),
            form: Form::Decimal { scale: Some(1) },
            values: known(&["1.05", "1.0499", "-9.95", "0.04"]),
        },
        Column {
            mysql: ("datetime(6)", instant(6, Rounding::Cut)),
            postgres: ("timestamptz", instant(6, Rounding::Apart)),
            form: Form::Instant {
                digits: 6,
                rounding: Rounding::Apart,
            },
            values: times.clone(),
        },
        Column {
            mysql: ("datetime(6)", instant(6, Rounding::Cut)),
            postgres: ("timestamp(6)", instant(6, Rounding::Apart)),
            form: Form::Instant {
                digits: 0,
                rounding: Rounding::Cut,
            },
            values: times.clone(),
        },
        Column {
            mysql: ("datetime(6)", instant(6, Rounding::Cut)),
            postgres: ("timestamptz", instant(6, Rounding::Apart)),
            form: Form::Instant {
                digits: 3,
                rounding: Rounding::Apart,
            },
            values: times,
        },
        Column {
            mysql: ("date", Stored::Day),
            postgres: ("date", Stored::Day),
            form: Form::Day,
            values: known(&["2024-02-29", "1900-01-01"]),
        },
        Column {
            mysql: ("enum('admin', 'user')", Stored::Label { ascii: true }),
            postgres: ("role", text),
            form: Form::Folded,
            values: known(&["admin", "user"]),
        },
        Column {
            mysql: ("uuid", Stored::Uuid),
            postgres: ("uuid", Stored::Uuid),
            form: Form::Uuid,
            values: known(&["0198C0DE-0000-7000-8000-00000000ABCD"]),
        },
    ]
}

#[tokio::test]
async fn sql_and_rust_and_both_servers_agree_on_every_type() -> Result<()> {
    let servers = Servers::start().await?;
    servers
        .run(
            Flavour::Postgres,
            "CREATE TYPE role AS ENUM ('admin', 'user')",
        )
        .await?;
    for (number, column) in columns().iter().enumerate() {
        let mut answers = Vec::new();
        for flavour in [Flavour::MySql, Flavour::Postgres] {
            let (kind, stored) = match flavour {
                Flavour::MySql => column.mysql,
                Flavour::Postgres => column.postgres,
            };
            let name = format!("typed_{number}");
            servers
                .run(
                    flavour,
                    &format!("CREATE TABLE {name} (id bigint PRIMARY KEY, value {kind} NULL)"),
                )
                .await?;
            for (id, value) in column.values.iter().enumerate() {
                let row = [Some(id.to_string()), value.map(str::to_owned)];
                servers.insert(flavour, &name, &row).await?;
            }
            let table = Table {
                name: flavour.quoted(&name),
                id: flavour.quoted("id"),
                integer_ids: true,
                counts: None,
                fields: vec![Field {
                    column: Some(flavour.quoted("value")),
                    stored,
                    form: column.form,
                }],
            };
            ensure!(table.is_pushed_down(flavour), "{flavour:?} {kind}");
            let mut pushed = servers
                .list(flavour, &table.list(flavour, &ALL, FIRST))
                .await?;
            pushed.sort();
            let mut scanned = servers.scan(flavour, &table).await?;
            scanned.sort();
            ensure!(
                pushed == scanned,
                "{flavour:?} {kind}: {pushed:?} {scanned:?}"
            );
            answers.push(pushed);
        }
        ensure!(
            answers[0] == answers[1],
            "{} and {} differ",
            column.mysql.0,
            column.postgres.0
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_sql_can_not_write_is_not_pushed_down() -> Result<()> {
    let field = |stored, form| Field {
        column: Some("c".to_owned()),
        stored,
        form,
    };
    let latin = Stored::Text {
        padded: false,
        unicode: false,
        most: None,
    };
    let text = Form::TEXT;
    let instant = Stored::Instant {
        digits: 6,
        rounding: Rounding::Apart,
    };
    let float = Stored::Float {
        single: false,
        scale: None,
    };
    let both = [Flavour::MySql, Flavour::Postgres];
    let rows = [
        (Stored::Json, Form::Json, &both[..]),
        (float, float.form(), &both[..1]),
        // As text they could be anything.
        (instant, text, &both),
        (latin, text, &both[1..]),
    ];
    for (stored, form, flavours) in rows {
        for flavour in flavours {
            let table = Table {
                name: "t".to_owned(),
                id: "id".to_owned(),
                integer_ids: true,
                counts: None,
                fields: vec![field(stored, form)],
            };
            ensure!(!table.is_pushed_down(*flavour), "{flavour:?} {stored:?}");
        }
    }
    Ok(())
}

/// Buckets of neighbours and of hashes: each holds exactly those whom Rust says.
#[tokio::test]
async fn servers_find_the_buckets_that_rust_says() -> Result<()> {
    let servers = Servers::start().await?;
    let hash = |id: &str| Row::new(id).hash();
    for flavour in [Flavour::MySql, Flavour::Postgres] {
        servers
            .run(flavour, "CREATE TABLE numbers (id bigint PRIMARY KEY)")
            .await?;
        let mut ids: Vec<i64> = (0..2_000).map(|n| n * 3 - 50).collect();
        ids.push(i64::MAX - 51);
        let values: Vec<String> = ids.iter().map(|id| format!("({id})")).collect();
        servers
            .run(
                flavour,
                &format!("INSERT INTO numbers VALUES {}", values.join(", ")),
            )
            .await?;
        let table = Table {
            name: flavour.quoted("numbers"),
            id: flavour.quoted("id"),
            integer_ids: true,
            counts: None,
            fields: Vec::new(),
        };
        let numbers = Keys::Numbers(-50);
        // One range, few, more than are looked up at a time, and too many to be looked up at all.
        let apart = |ranges| (0..ranges).map(|n| n * 2..n * 2 + 1).collect();
        let (many, too_many): (Vec<Range<u64>>, Vec<Range<u64>>) = (apart(150), apart(2_600));
        let asked: [(Cut, &[Range<u64>]); 7] = [
            (
                Cut {
                    keys: numbers,
                    shift: 6,
                },
                &[0..100],
            ),
            (
                Cut {
                    keys: numbers,
                    shift: 4,
                },
                &[1..3, 7..8, 200..300],
            ),
            (
                Cut {
                    keys: numbers,
                    shift: 4,
                },
                &many,
            ),
            (
                Cut {
                    keys: numbers,
                    shift: 0,
                },
                &too_many,
            ),
            (
                Cut {
                    keys: numbers,
                    shift: 49,
                },
                &[0..1, 16383..16384],
            ),
            (
                Cut {
                    keys: Keys::Hashes,
                    shift: 18,
                },
                &[0..16_384],
            ),
            (
                Cut {
                    keys: Keys::Hashes,
                    shift: 24,
                },
                &[3..90, 200..256],
            ),
        ];
        for (cut, buckets) in asked {
            let mut tally = usersync_digest::Tally::new(cut, buckets);
            let mut listed = Vec::new();
            for id in &ids {
                let id = id.to_string();
                tally.add(&id, hash(&id));
                let bucket = cut.bucket(&id);
                if buckets
                    .iter()
                    .any(|range| bucket.is_some_and(|bucket| range.contains(&bucket)))
                {
                    let hash = hash(&id);
                    listed.push(Entry {
                        id: id.into(),
                        hash,
                    });
                }
            }
            let first = buckets[0].start;
            let digests = servers
                .digest(flavour, &table.digest(flavour, &cut, buckets), first)
                .await?;
            ensure!(digests == tally.digests(), "{flavour:?} {cut:?}");
            let mut found: Vec<Entry> = servers
                .list(flavour, &table.list(flavour, &cut, buckets))
                .await?;
            found.sort();
            listed.sort();
            ensure!(found == listed, "{flavour:?} {cut:?}");
        }
        let nobody = servers
            .digest(
                flavour,
                &table.digest(
                    flavour,
                    &Cut {
                        keys: numbers,
                        shift: 0,
                    },
                    &[1..2],
                ),
                1,
            )
            .await?;
        ensure!(nobody.is_empty(), "{nobody:?}");
    }
    Ok(())
}

impl Servers {
    /// Everybody as the server shows them, hashed by Rust.
    async fn scan(&self, flavour: Flavour, table: &Table) -> Result<Vec<Entry>> {
        let entry = |texts: Vec<Option<String>>| {
            let id = texts[0].clone().unwrap_or_default();
            let mut row = Row::new(&id);
            for (text, field) in texts[1..].iter().zip(&table.fields) {
                let text = text.as_deref().map(|text| field.form.of(text));
                row.field(text.as_deref().map(str::as_bytes));
            }
            let hash: RowHash = row.hash();
            Entry {
                id: id.into(),
                hash,
            }
        };
        let rows = self.rows(flavour, &table.scan(flavour)).await?;
        Ok(rows.into_iter().map(entry).collect())
    }
}
