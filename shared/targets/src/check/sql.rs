//! A table as a side: statements that hash where the rows are, or, where SQL can't write a field's form, rows read and
//! hashed here.

use std::{
    collections::BTreeMap,
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::sync::Mutex;
use usersync_digest::{
    Answer, Cut, Digest, Each, Entry, Extent, Form, Keys, Row, RowHash, Scan, Scanned, Side,
    SideError, Stored, sql,
};

use super::{Field, Holdings, MARK};
use crate::{
    Action, Delivery,
    dialect::Dialect,
    layout::{Ids, Layout, Live},
    mysql::shown_id,
    trouble::Trouble,
};

/// How long one statement, or the next row of a scan, may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long reading all rows may take.
const SCAN: Duration = Duration::from_secs(60 * 60);

/// How far clocks may be apart, and how long a check may take, before versions are looked at that needn't be.
const CLOCKS: Duration = Duration::from_secs(10 * 60);

/// The highest version that can be by the end of a check, in unix microseconds.
fn latest() -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    (now.unwrap_or_default() + CLOCKS).as_micros()
}

/// A table that answers in digests, over one connection of its own.
pub(crate) struct SqlSide<'a, D: Dialect> {
    dialect: &'a D,
    table: sql::Table,
    /// Whether the server makes the hashes.
    pushed_down: bool,
    connection: Mutex<Option<D::Connection>>,
}

impl<'a, D: Dialect> SqlSide<'a, D> {
    pub(crate) fn new(dialect: &'a D, table: sql::Table) -> Self {
        Self {
            dialect,
            pushed_down: table.is_pushed_down(D::FLAVOUR),
            table,
            connection: Mutex::new(None),
        }
    }

    /// Does `work` with the connection; one that broke isn't used again.
    async fn with<T>(
        &self,
        work: impl AsyncFnOnce(&D, &mut D::Connection) -> Result<T, Trouble>,
    ) -> Result<T, SideError> {
        let mut held = self.connection.lock().await;
        let mut connection = match held.take() {
            Some(connection) => connection,
            None => {
                let open = async {
                    let mut connection = self.dialect.connect().await?;
                    let patience = if self.pushed_down { PATIENCE } else { SCAN };
                    self.dialect.allow(&mut connection, patience).await?;
                    Ok(connection)
                };
                in_time(open).await.map_err(refused)?
            }
        };
        let done = work(self.dialect, &mut connection).await;
        if !matches!(&done, Err(trouble) if trouble.lost) {
            *held = Some(connection);
        }
        done.map_err(refused)
    }

    async fn packed(&self, statement: &str) -> Result<(i64, Vec<u8>), SideError> {
        self.with(async |dialect, connection| {
            // The server gives up earlier, and says so.
            in_time(dialect.packed(connection, statement)).await
        })
        .await
    }
}

/// `work`, for as long as a statement may take and some more.
async fn in_time<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let patience = PATIENCE + Duration::from_secs(10);
    let done = tokio::time::timeout(patience, work).await;
    done.unwrap_or_else(|_| Err(Trouble::late()))
}

fn refused(trouble: Trouble) -> SideError {
    SideError::new(trouble.failure.reason)
}

#[async_trait]
impl<D: Dialect> Scan for SqlSide<'_, D> {
    async fn scan(&self, each: Each<'_>) -> Result<u64, SideError> {
        let statement = self.table.scan(D::FLAVOUR);
        let fields = &self.table.fields;
        let (mut row, mut bytes) = (Row::default(), 0);
        let mut take = |texts: &[Option<&str>]| {
            let Some((Some(id), values)) = texts.split_first() else {
                return;
            };
            row.begin(id);
            bytes += id.len() as u64;
            for (value, field) in values.iter().zip(fields) {
                bytes += value.map_or(0, |value| value.len() as u64);
                let value = value.map(|value| field.form.of(value));
                row.field(value.as_deref().map(str::as_bytes));
            }
            each(id, row.hash());
        };
        self.with(async |dialect, connection| {
            dialect
                .texts(connection, &statement, PATIENCE, &mut take)
                .await
        })
        .await?;
        Ok(bytes)
    }
}

#[async_trait]
impl<D: Dialect> Side for SqlSide<'_, D> {
    async fn extent(&self) -> Result<Extent, SideError> {
        if !self.table.integer_ids {
            return Ok(Extent::Texts);
        }
        let statement = self.table.extent(D::FLAVOUR);
        let mut extent = Extent::Empty;
        let mut take = |ends: &[Option<&str>]| {
            let number = |at: usize| ends.get(at).copied().flatten()?.parse().ok();
            if let (Some(least), Some(most)) = (number(0), number(1)) {
                extent = Extent::Numbers(least, most);
            }
        };
        self.with(async |dialect, connection| {
            dialect
                .texts(connection, &statement, PATIENCE, &mut take)
                .await
        })
        .await?;
        Ok(extent)
    }

    fn seeks(&self, cut: &Cut) -> bool {
        self.pushed_down && cut.keys != Keys::Hashes
    }

    async fn digest(
        &self,
        cut: &Cut,
        buckets: &[Range<u64>],
    ) -> Result<Answer<(u64, Digest)>, SideError> {
        if !self.pushed_down {
            return Scanned(self).digest(cut, buckets).await;
        }
        let statement = self.table.digest(D::FLAVOUR, cut, buckets);
        let (count, octets) = self.packed(&statement).await?;
        let first = buckets.first().map_or(0, |range| range.start);
        Ok(Answer {
            items: sql::digests(count, &octets, first)?,
            bytes: octets.len() as u64,
        })
    }

    async fn list(&self, cut: &Cut, buckets: &[Range<u64>]) -> Result<Answer<Entry>, SideError> {
        if !self.pushed_down {
            return Scanned(self).list(cut, buckets).await;
        }
        let statement = self.table.list(D::FLAVOUR, cut, buckets);
        let (count, octets) = self.packed(&statement).await?;
        Ok(Answer {
            items: sql::entries(count, &octets)?,
            bytes: octets.len() as u64,
        })
    }
}

/// What a target's table holds.
pub(crate) struct SqlHoldings<'a, D: Dialect> {
    side: SqlSide<'a, D>,
    layout: Arc<Layout>,
    /// Places of the columns that are hashed: those the target is told of.
    hashed: Vec<usize>,
    fields: Vec<Field>,
}

impl<'a, D: Dialect> SqlHoldings<'a, D> {
    /// The columns of `layout` whose members the target is `told`.
    pub(crate) fn new(dialect: &'a D, layout: Arc<Layout>, told: impl Fn(&str) -> bool) -> Self {
        let (mut hashed, mut fields, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        for (place, column) in layout.columns.iter().enumerate() {
            if !told(&column.path) {
                continue;
            }
            let form = column.stored.form();
            hashed.push(place);
            columns.push(sql::Field {
                column: Some(match (D::FLAVOUR.quoted(&column.name), column.zerofill) {
                    (name, true) => format!("({name} + 0)"),
                    (name, false) => name,
                }),
                stored: column.stored,
                form,
            });
            fields.push(Field {
                path: column.path.clone(),
                form,
            });
        }
        let quoted = |name: &str| D::FLAVOUR.quoted(name);
        // Nobody is told this: a row that is marked, or claims a version of days to come, is none that is meant to be.
        let (deleted, version) = (&layout.table.deleted, &layout.table.version);
        fields.push(Field {
            path: MARK.to_owned(),
            form: Form::Integer,
        });
        columns.push(sql::Field {
            column: Some(format!(
                "CASE WHEN COALESCE({}, TRUE) OR {} > {} THEN 1 END",
                quoted(deleted),
                quoted(version),
                latest()
            )),
            stored: Stored::Integer,
            form: Form::Integer,
        });
        // Of a deleted user nothing is left. A row that has something all the same counts, so it is looked at.
        let left = hashed.iter().map(|place| &layout.columns[*place]);
        let left = left.filter(|column| column.nullable);
        let left = left.map(|column| format!(" OR {} IS NOT NULL", quoted(&column.name)));
        let table = sql::Table {
            name: quoted(&layout.name),
            id: shown_id(layout.ids, &quoted(&layout.table.id)),
            integer_ids: matches!(layout.ids, Ids::Numbers { .. }),
            counts: Some(format!(
                "NOT COALESCE({}, TRUE){}",
                quoted(&layout.table.deleted),
                left.collect::<String>()
            )),
            fields: columns,
        };
        Self {
            side: SqlSide::new(dialect, table),
            layout,
            hashed,
            fields,
        }
    }
}

impl<D: Dialect> Holdings for SqlHoldings<'_, D> {
    fn side(&self) -> &dyn Side {
        &self.side
    }

    fn expected(&self, delivery: &Delivery) -> Option<RowHash> {
        if delivery.action != Action::Upsert {
            return None;
        }
        // Whom the table can't take isn't there.
        let written = self.layout.row(0, delivery).ok()?;
        let mut row = Row::new(&written.id);
        for (place, field) in self.hashed.iter().zip(&self.fields) {
            let text = written.cells[*place].as_ref().and_then(Option::as_deref);
            let text = text.map(|text| field.form.of(text));
            row.field(text.as_deref().map(str::as_bytes));
        }
        row.field(None);
        Some(row.hash())
    }

    fn fields(&self) -> Option<&[Field]> {
        Some(&self.fields)
    }
}

/// A table that isn't a target, with `columns` (column → member) that hold what `fields` ask for.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn table<D: Dialect>(
    live: &Live,
    name: &str,
    id: &str,
    deleted: Option<&str>,
    columns: &BTreeMap<String, String>,
    fields: &[Field],
) -> Result<sql::Table, String> {
    let find = |name: &str| {
        let column = live.columns.iter().find(|column| column.name == name);
        column.ok_or_else(|| format!("it has no column `{name}`"))
    };
    let quoted = |name: &str| D::FLAVOUR.quoted(name);
    let field = |field: &Field| {
        if field.path == MARK {
            return Ok(sql::Field {
                column: None,
                stored: Stored::Integer,
                form: field.form,
            });
        }
        let column = columns.iter().find(|(_, path)| **path == field.path);
        let (column, _) = column.ok_or_else(|| format!("no column holds `{}`", field.path))?;
        Ok(sql::Field {
            column: Some(quoted(column)),
            stored: find(column)?.stored,
            form: field.form,
        })
    };
    let fields = fields.iter().map(field).collect::<Result<_, String>>()?;
    let counts = match deleted {
        None => None,
        Some(name) => Some(match find(name)?.stored {
            Stored::Boolean | Stored::Integer => {
                format!("NOT COALESCE({}, FALSE)", quoted(name))
            }
            // When somebody was deleted, as a rule.
            _ => format!("{} IS NULL", quoted(name)),
        }),
    };
    Ok(sql::Table {
        name: quoted(name),
        id: quoted(id),
        integer_ids: find(id)?.stored == Stored::Integer,
        counts,
        fields,
    })
}
