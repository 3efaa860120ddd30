//! The unique keys of a table in PostgreSQL, exclusion constraints among them, and who has what a row is to have.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{errors::trouble, quote, quoted};
use crate::{
    dialect::Against,
    layout::{Layout, Row},
    trouble::Trouble,
    unique::{Claim, KeyColumn, KeyPart, Keys, UniqueKey},
};

/// A part of a key per row. A part is compared as its index does: by the operator of its class or of its constraint, and in
/// the collation of the index.
const PARTS: &str = "SELECT c.relname::text, pg_get_indexdef(i.indexrelid, k.n, false), \
     'OPERATOR(' || quote_ident(n.nspname) || '.' || o.oprname || ')', \
     'COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(co.collname), \
     pg_get_expr(i.indpred, i.indrelid), COALESCE((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) \
     FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
     CROSS JOIN LATERAL generate_series(1, i.indnkeyatts::int) AS k(n) \
     JOIN pg_opclass oc ON oc.oid = i.indclass[k.n - 1] \
     LEFT JOIN pg_constraint x ON x.conindid = i.indexrelid AND x.conrelid = i.indrelid \
          AND x.conexclop IS NOT NULL \
     LEFT JOIN pg_amop a ON a.amopfamily = oc.opcfamily AND a.amoplefttype = oc.opcintype \
          AND a.amoprighttype = oc.opcintype AND a.amopstrategy = 3 AND i.indisunique \
     JOIN pg_operator o ON o.oid = COALESCE(x.conexclop[k.n], a.amopopr) JOIN pg_namespace n ON n.oid = o.oprnamespace \
     LEFT JOIN pg_collation co ON co.oid = i.indcollation[k.n - 1] LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace \
     WHERE i.indrelid = to_regclass($1) AND (i.indisunique OR i.indisexclusion) ORDER BY c.relname, k.n";

/// What a column rounds is compared as it is rounded. Defaults that count on are no value that anybody has already.
const COLUMNS: &str = "SELECT a.attname::text, \
     CASE WHEN n.nspname = 'pg_catalog' AND t.typname IN ('numeric', 'timestamp', 'timestamptz', 'time', 'timetz') \
          THEN format_type(t.oid, a.atttypmod) \
          ELSE quote_ident(n.nspname) || '.' || quote_ident(t.typname) END, \
     'COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(co.collname), \
     CASE WHEN a.attgenerated = '' AND pg_get_expr(d.adbin, d.adrelid) NOT LIKE '%nextval(%' \
          THEN pg_get_expr(d.adbin, d.adrelid) END, \
     CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END, NOT a.attnotnull, \
     ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid) \
     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace \
     LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
     LEFT JOIN pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace \
     WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// The unique keys of the table.
pub(super) async fn read(connection: &mut PgConnection, name: &str) -> Result<Keys, Trouble> {
    let mut found = Keys::default();
    let parts = sqlx::query(PARTS).persistent(false).bind(quoted(name));
    for row in parts.fetch_all(&mut *connection).await.map_err(trouble)? {
        let name: String = row.try_get(0).map_err(trouble)?;
        let (expression, operator): (String, String) = (
            row.try_get(1).map_err(trouble)?,
            row.try_get(2).map_err(trouble)?,
        );
        let collation: Option<String> = row.try_get(3).map_err(trouble)?;
        let part = KeyPart {
            expression: format!("({expression}) {}", collation.unwrap_or_default()),
            operator,
        };
        match found.keys.last_mut().filter(|key| key.name == name) {
            Some(key) => key.parts.push(part),
            None => found.keys.push(UniqueKey {
                name,
                parts: vec![part],
                predicate: row.try_get(4).map_err(trouble)?,
                nulls_equal: row.try_get(5).map_err(trouble)?,
            }),
        }
    }
    let columns = sqlx::query(COLUMNS).persistent(false).bind(quoted(name));
    for row in columns.fetch_all(connection).await.map_err(trouble)? {
        let collation: Option<String> = row.try_get(2).map_err(trouble)?;
        let kind: String = row.try_get(1).map_err(trouble)?;
        found.columns.push(KeyColumn {
            name: row.try_get(0).map_err(trouble)?,
            largest: match kind.as_str() {
                "pg_catalog.int2" => i16::MAX.into(),
                "pg_catalog.int4" => i32::MAX.into(),
                _ => i64::MAX,
            },
            kind,
            collation: collation.unwrap_or_default(),
            default: row.try_get(3).map_err(trouble)?,
            generated: row.try_get(4).map_err(trouble)?,
            nullable: row.try_get(5).map_err(trouble)?,
            labels: row.try_get(6).map_err(trouble)?,
        });
    }
    Ok(found)
}

/// Who has what `rows` are to have.
pub(super) async fn claims(
    connection: &mut PgConnection,
    layout: &Layout,
    rows: &[Row],
    against: Against,
) -> Result<Vec<Claim>, Trouble> {
    if rows.is_empty() || layout.keys.keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = sqlx::query(AssertSqlSafe(statement(layout, against)))
        .persistent(false)
        .bind(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.deleted).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.version).collect::<Vec<_>>());
    for at in 0..layout.columns.len() {
        let cells = rows.iter().map(|row| row.cells[at].as_ref());
        query = query.bind(cells.clone().map(|cell| cell.is_some()).collect::<Vec<_>>());
        let cells = cells.map(|cell| cell.and_then(Option::as_deref));
        query = query.bind(cells.collect::<Vec<Option<&str>>>());
    }
    let mut claims = Vec::new();
    for row in query.fetch_all(connection).await.map_err(trouble)? {
        let key: i32 = row.try_get(2).map_err(trouble)?;
        claims.push(Claim {
            by: row.try_get(0).map_err(trouble)?,
            of: row.try_get(1).map_err(trouble)?,
            key: usize::try_from(key).unwrap_or_default(),
        });
    }
    claims.sort();
    claims.dedup();
    Ok(claims)
}

fn statement(layout: &Layout, against: Against) -> String {
    let id = quote(&layout.table.id);
    let sides = layout.keys.keys.iter().enumerate().map(|(number, key)| {
        let parts = key.parts.iter().enumerate();
        let values: String = parts
            .clone()
            .map(|(at, part)| format!(", {} AS usersync_k{at}", part.expression))
            .collect();
        let predicate = key.predicate.as_deref().unwrap_or("true");
        let told = format!(
            "SELECT usersync_i{values} FROM usersync_told WHERE {predicate}"
        );
        let held = match against {
            Against::Table => format!(
                "SELECT {id}::text AS usersync_i{values} FROM {} WHERE {predicate}",
                quoted(&layout.name)
            ),
            Against::Rows => told.clone(),
        };
        let equal = parts.map(|(at, part)| {
            let (told, held) = (format!("told.usersync_k{at}"), format!("held.usersync_k{at}"));
            let equal = format!("{held} {} {told}", part.operator);
            match key.nulls_equal {
                true => format!(" AND ({equal} OR ({held} IS NULL AND {told} IS NULL))"),
                false => format!(" AND {equal}"),
            }
        });
        format!(
            "SELECT told.usersync_i, held.usersync_i, {number} FROM ({told}) AS told JOIN ({held}) AS held \
             ON held.usersync_i <> told.usersync_i{}",
            equal.collect::<String>()
        )
    });
    let sides: Vec<String> = sides.collect();
    format!(
        "WITH usersync_told AS MATERIALIZED ({}) {}",
        told(layout),
        sides.join(" UNION ALL ")
    )
}

/// The rows as they are to be: what they aren't told is as it is held, or as the table makes it.
fn told(layout: &Layout) -> String {
    let table = &layout.table;
    let (mut columns, mut computed) = (String::new(), String::new());
    for column in &layout.keys.columns {
        let name = quote(&column.name);
        if let Some(made) = &column.generated {
            computed += &format!(", ({made}) AS {name}");
            continue;
        }
        let kept = match &column.default {
            Some(default) => format!(
                "CASE WHEN old.{} IS NULL THEN ({default})::{} ELSE old.{name} END",
                quote(&table.id),
                column.kind
            ),
            None => format!("old.{name}"),
        };
        let mapped = layout
            .columns
            .iter()
            .position(|mapped| mapped.name == column.name);
        let value = match mapped {
            _ if column.name == table.id => format!("told.i::{}", layout.id_cast),
            _ if column.name == table.deleted => "told.d".to_owned(),
            _ if column.name == table.version => "told.v".to_owned(),
            Some(at) => format!(
                "CASE WHEN told.t{at} THEN told.c{at}::{} {} ELSE {kept} END",
                column.kind, column.collation
            ),
            None => kept,
        };
        columns += &format!(", {value} AS {name}");
    }
    let (mut parameters, mut aliases) = (String::new(), String::new());
    for at in 0..layout.columns.len() {
        parameters += &format!(", ${}::bool[], ${}::text[]", 2 * at + 4, 2 * at + 5);
        aliases += &format!(", t{at}, c{at}");
    }
    format!(
        "SELECT whole.*{computed} FROM (SELECT told.i AS usersync_i{columns} \
         FROM unnest($1::text[], $2::bool[], $3::int8[]{parameters}) AS told(i, d, v{aliases}) \
         LEFT JOIN {} AS old ON old.{} = told.i::{}) AS whole",
        quoted(&layout.name),
        quote(&table.id),
        layout.id_cast
    )
}
