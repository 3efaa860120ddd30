//! What MySQL and MariaDB are told: triggers, queries, names.

use crate::{
    Column, Kind, Layout, TableName,
    document::{Blank, filled},
    layout::ABOUT,
};

/// The triggers that note changes.
pub(crate) const TRIGGERS: [&str; 3] = [
    "user_outbox_insert",
    "user_outbox_update",
    "user_outbox_delete",
];
/// What came later: without them the outbox is one of an older version.
pub(crate) const LATER: [&str; 1] = ["user_outbox_before"];
/// All that an outbox has.
pub(super) const ALL: [&str; 4] = [
    "user_outbox_before",
    "user_outbox_insert",
    "user_outbox_update",
    "user_outbox_delete",
];
/// What the names of triggers end with that stand in while others are made anew.
pub(super) const STANDIN: &str = "_new";
/// The procedure that writes notes in MariaDB.
pub(super) const NOTE: &str = "user_outbox_note";
/// The table that takes ids which sessions have asked for.
pub(super) const SPENT: &str = "user_outbox_spent";
/// The function that tells how triggers are.
pub(super) const WATCH: &str = "user_outbox_trigger";

const TEMPLATE: &str = include_str!("outbox.sql");
const NOTE_TEMPLATE: &str = include_str!("note.sql");
const TRIGGER_TEMPLATE: &str = include_str!("triggers.sql");
const WATCH_TEMPLATE: &str = include_str!("watch.sql");

/// Which of the two servers it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    MySql,
    MariaDb,
}

impl Flavour {
    /// By what the server says of its version.
    pub(super) fn of(version: &str) -> Self {
        match version.contains("MariaDB") {
            true => Self::MariaDb,
            false => Self::MySql,
        }
    }

    /// The label in every trigger, which says how it was made; a comment would be left out by some clients.
    pub(super) fn version(self) -> &'static str {
        match self {
            Self::MySql => "usersync_5",
            Self::MariaDb => "usersync_5_call",
        }
    }
}

/// The outbox of `layout`, for the server's own client too; `epoch` is an expression that makes a random text.
pub(crate) fn script(layout: &Layout, epoch: &str, flavour: Flavour) -> String {
    let table = &layout.table;
    let (server, note) = match flavour {
        Flavour::MySql => ("MySQL 8", String::new()),
        Flavour::MariaDb => (
            "MariaDB 10.6 or newer",
            format!("{}\n", note_script(layout)),
        ),
    };
    let drop = |suffix: &str| -> String {
        let names = ALL.map(|name| quoted(&table.beside(&format!("{name}{suffix}"))));
        let drops = names.map(|name| format!("DROP TRIGGER IF EXISTS {name} //\n"));
        drops.concat()
    };
    let places = [
        ("server", server.to_owned()),
        ("note_script", note),
        ("table_shown", table.to_string()),
        ("table", quoted(table)),
        ("outbox", quoted(&layout.outbox())),
        (
            "outbox_quoted",
            quoted(&layout.outbox()).replace('\'', "''"),
        ),
        ("about", quoted(&table.beside(ABOUT))),
        ("spent", quoted(&table.beside(SPENT))),
        ("schema", schema(table)),
        ("epoch", epoch.to_owned()),
        ("drop_standins", drop(STANDIN)),
        ("standins", triggers(layout, STANDIN, flavour)),
        ("drop_triggers", drop("")),
        ("triggers", triggers(layout, "", flavour)),
    ];
    filled(TEMPLATE, &places)
}

/// The script that makes the procedure of notes.
fn note_script(layout: &Layout) -> String {
    let places = [
        ("note", quoted(&layout.table.beside(NOTE))),
        ("version", Flavour::MariaDb.version().to_owned()),
        ("own_ids", own_ids(&layout.table)),
        ("outbox", quoted(&layout.outbox())),
    ];
    filled(NOTE_TEMPLATE, &places)
}

/// What uses up the id that a session has asked for (`SET insert_id`), which was meant for the application's table, elsewhere.
fn own_ids(table: &TableName) -> String {
    let spent = quoted(&table.beside(SPENT));
    format!(
        "IF @@insert_id > 0 THEN\n      INSERT IGNORE INTO {spent} () VALUES ();\n      \
         DELETE FROM {spent} WHERE id = LAST_INSERT_ID();\n    END IF;"
    )
}

/// The statements that make the triggers, under names that end with `suffix`.
fn triggers(layout: &Layout, suffix: &str, flavour: Flavour) -> String {
    let table = &layout.table;
    let id = name_quoted(&layout.id.name);
    let outbox = quoted(&layout.outbox());
    let trigger = |name: &str| quoted(&table.beside(&format!("{name}{suffix}")));
    // Some types are kept as other bytes than they show.
    let kept = |of: &str| match layout.id.kind {
        Kind::Verbatim => format!("CAST({of}.{id} AS CHAR)"),
        // In one character set, whatever the column's is.
        Kind::Text => format!("CONVERT({of}.{id} USING utf8mb4)"),
        _ => format!("{of}.{id}"),
    };
    let id_stays = match layout.id.kind {
        Kind::Integer => format!("OLD.{id} = NEW.{id}"),
        // Byte by byte, whatever the column's collation takes for equal.
        _ => format!("CAST(OLD.{id} AS BINARY) = CAST(NEW.{id} AS BINARY)"),
    };
    let note = quoted(&table.beside(NOTE));
    let noted = |event: &str, of: &str| {
        let id = kept(of);
        match flavour {
            Flavour::MySql => {
                format!("INSERT INTO {outbox} (user_id, event) VALUES ({id}, '{event}');")
            }
            Flavour::MariaDb => format!("CALL {note}({id}, '{event}', NULL);"),
        }
    };
    let noted_in_row = |event: &str, of: &str| {
        let id = kept(of);
        match flavour {
            Flavour::MySql => format!(
                "INSERT INTO {outbox} (user_id, event, tx) VALUES ({id}, '{event}', @usersync_row);"
            ),
            Flavour::MariaDb => format!("CALL {note}({id}, '{event}', @usersync_row);"),
        }
    };
    let (own_ids, unnoted) = match flavour {
        Flavour::MySql => (format!("\n    {}", own_ids(table)), "1054"),
        // The procedure does it. A dump may leave it out.
        Flavour::MariaDb => (String::new(), "1054, 1305"),
    };
    let places = [
        ("table", quoted(table)),
        ("before_trigger", trigger(ALL[0])),
        ("insert_trigger", trigger(ALL[1])),
        ("update_trigger", trigger(ALL[2])),
        ("delete_trigger", trigger(ALL[3])),
        ("version", flavour.version().to_owned()),
        ("own_ids", own_ids),
        ("unnoted", unnoted.to_owned()),
        // Who writes to another table, whose triggers write to this one, is not meant.
        (
            "blind",
            text(&format!("blind {}", table.name.to_lowercase())),
        ),
        ("noted_insert", noted_in_row("I", "NEW")),
        ("noted_old", noted("D", "OLD")),
        ("noted_new", noted("I", "NEW")),
        ("noted_update", noted("U", "NEW")),
        ("noted_delete", noted_in_row("D", "OLD")),
        ("id_stays", id_stays),
        ("id", id.clone()),
    ];
    filled(TRIGGER_TEMPLATE, &places)
}

/// The script that lets those who may execute one function see how the triggers are.
pub(crate) fn watch_script(table: &TableName) -> String {
    let places = [("watch", watch(table)), ("schema", schema(table))];
    filled(WATCH_TEMPLATE, &places)
}

/// The name of that function.
pub(super) fn watch(table: &TableName) -> String {
    quoted(&table.beside(WATCH))
}

fn schema(table: &TableName) -> String {
    let schema = table.schema.as_ref();
    schema.map_or_else(|| "DATABASE()".to_owned(), |schema| text(schema))
}

/// A random text, in the words of both servers: MariaDB 10.6 has no RANDOM_BYTES(). Whoever can make one better does.
pub(crate) const RANDOM: &str =
    "LEFT(SHA2(CONCAT_WS('.', UUID(), RAND(), RAND(), RAND(), NOW(6), CONNECTION_ID()), 256), 32)";

/// As a literal.
pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Asks for the columns themselves, told as texts, the id first; they fill in the document. A server's JSON functions
/// have limits and their own types, which differ between MySQL and MariaDB.
pub(super) fn select(layout: &Layout) -> (String, Blank) {
    let (blank, columns) = Blank::of(layout, false);
    let mut told = match layout.id.kind {
        Kind::Text => format!("u.{}", name_quoted(&layout.id.name)),
        _ => format!("CAST(u.{} AS CHAR)", name_quoted(&layout.id.name)),
    };
    for column in columns {
        told.push_str(", ");
        told.push_str(&value(column));
    }
    (
        format!(
            "SELECT {told} FROM {} u WHERE {}",
            quoted(&layout.table),
            is_row(layout)
        ),
        blank,
    )
}

/// Whether a row is one of the application's.
fn is_row(layout: &Layout) -> String {
    layout.deleted.as_ref().map_or("TRUE".to_owned(), |mark| {
        format!("COALESCE(u.{} + 0, 0) = 0", name_quoted(&mark.name))
    })
}

/// A column as a text. The session's time zone is UTC.
fn value(column: &Column) -> String {
    let value = format!("u.{}", name_quoted(&column.name));
    let number = format!("{value} + 0");
    match column.kind {
        // As they are: a function would have a limit.
        Kind::Text | Kind::Json => value,
        // By itself the server shows six digits of a FLOAT. What MySQL computes it shows in 22 characters, which is enough
        // for a FLOAT, and not for every DOUBLE.
        Kind::Single => format!("CAST(CAST({value} AS DOUBLE) AS CHAR)"),
        Kind::Boolean if !column.member.is_text() => format!(
            "CASE {number} WHEN 0 THEN 'false' WHEN 1 THEN 'true' ELSE CAST({value} AS CHAR) END"
        ),
        // As a text, bits are bytes.
        _ if is_bits(&column.shown) => format!("CAST({number} AS CHAR)"),
        _ => format!("CAST({value} AS CHAR)"),
    }
}

/// Whether a column's type is BIT.
pub(super) fn is_bits(shown: &str) -> bool {
    shown.starts_with("bit")
}

/// The statements of a script, as the server's own client would send them.
pub(super) fn statements(script: &str) -> Vec<String> {
    let (mut delimiter, mut statement) = (";".to_owned(), String::new());
    let mut found = Vec::new();
    for line in script.lines() {
        if let Some(next) = line.strip_prefix("DELIMITER ") {
            delimiter = next.trim().to_owned();
            continue;
        }
        if statement.is_empty() && (line.is_empty() || line.starts_with("--")) {
            continue;
        }
        match line.trim_end().strip_suffix(delimiter.as_str()) {
            Some(last) => {
                statement.push_str(last.trim_end());
                found.push(std::mem::take(&mut statement));
            }
            None => {
                statement.push_str(line);
                statement.push('\n');
            }
        }
    }
    found
}

/// Ids as ranges without a gap: what lies between two of them may be a row that isn't published yet.
pub(super) fn ranges(ids: &[i64]) -> Vec<(i64, i64)> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => ranges.push((id, id)),
        }
    }
    ranges
}

pub(super) fn quoted(table: &TableName) -> String {
    match &table.schema {
        Some(schema) => format!("{}.{}", name_quoted(schema), name_quoted(&table.name)),
        None => name_quoted(&table.name),
    }
}

pub(super) fn name_quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_marked_in_ranges_that_hold_nothing_else() {
        assert_eq!(ranges(&[5, 3, 4, 9, 7]), [(3, 5), (7, 7), (9, 9)]);
        assert_eq!(ranges(&[]), []);
    }

    #[test]
    fn a_script_is_split_as_the_client_does() {
        let script = "-- one\n\nSET a = 1;\nDELIMITER //\nCREATE x\nBEGIN\n  y;\nEND //\nDELIMITER ;\nz\n  w;\n";
        assert_eq!(
            statements(script),
            ["SET a = 1", "CREATE x\nBEGIN\n  y;\nEND", "z\n  w"]
        );
    }
}
