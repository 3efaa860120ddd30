//! Column types of each server, with values to tell them and the smallest step that each knows: what checks are tried
//! with, so that they call nothing different that is alike, and nothing alike that is different.

use serde_json::{Value, json};

/// Answers a number below the one it is given.
pub type Dice<'a> = &'a mut dyn FnMut(u64) -> u64;

/// A type of a column.
pub struct ColumnType {
    /// As the server names it.
    pub sql: &'static str,
    /// A value for it, in one of the spellings it takes.
    pub told: fn(Dice<'_>) -> Value,
    /// The column's value a step further, for the column `c`.
    pub step: &'static str,
}

const fn of(sql: &'static str, told: fn(Dice<'_>) -> Value, step: &'static str) -> ColumnType {
    ColumnType { sql, told, step }
}

/// What MySQL and MariaDB both have.
#[must_use]
pub fn of_mysql() -> Vec<ColumnType> {
    vec![
        of("tinyint(1)", flag, "1 - c"),
        of("smallint", small, INTEGER),
        of("int(8) unsigned zerofill", small, INTEGER),
        of("bigint", large, INTEGER),
        of("bigint unsigned", unsigned, "c - 1"),
        of("decimal(10, 2)", decimal, "c + 0.01"),
        of("decimal(12, 3) unsigned zerofill", positive, "c + 0.001"),
        of("decimal(12, 0)", decimal, "c + 1"),
        of("float", double, "IF(c = 0, 1e-30, c * 1.00000012e0)"),
        of(
            "double",
            double,
            "IF(c = 0, 1e-300, c * 1.0000000000000002e0)",
        ),
        of("double(12, 2)", decimal, "c + 0.01"),
        of("float(7, 3)", small_decimal, "c + 0.001"),
        of("char(8)", text, "CONCAT(LEFT(c, 7), '~')"),
        of(
            "varchar(8)",
            text,
            "IF(CHAR_LENGTH(c) < 8, CONCAT(c, ' '), CONCAT(LEFT(c, 7), '~'))",
        ),
        of(
            "varchar(50) COLLATE utf8mb4_unicode_ci",
            text,
            "IF(BINARY c = BINARY UPPER(c), LOWER(CONCAT(c, 'x')), UPPER(c))",
        ),
        of(
            "varchar(50) CHARACTER SET latin1",
            text,
            "IF(c LIKE '% ', TRIM(c), CONCAT(c, ' '))",
        ),
        of("text", text, "IF(c LIKE '% ', TRIM(c), CONCAT(c, ' '))"),
        of(
            "enum('admin', 'User', 'guest')",
            role,
            "IF(c = 'admin', 'guest', 'admin')",
        ),
        of(
            "enum('a', 'A', 'b') COLLATE utf8mb4_bin",
            letter,
            "IF(c = 'a', 'A', 'a')",
        ),
        of("set('x', 'y', 'z')", set, "IF(c = 'z', '', 'z')"),
        of("datetime", instant, "c + INTERVAL 1 SECOND"),
        of("datetime(3)", instant, "c + INTERVAL 1000 MICROSECOND"),
        of("datetime(6)", instant, "c + INTERVAL 1 MICROSECOND"),
        of("timestamp(6) NULL", recent, "c + INTERVAL 1 MICROSECOND"),
        of("date", day, "c + INTERVAL 1 DAY"),
        of("time", span, "ADDTIME(c, '00:00:01')"),
        of("time(3)", span, "ADDTIME(c, '00:00:00.001')"),
        of("year", year, "IF(c = 2000, 1999, 2000)"),
        of("json", document, "JSON_SET(c, '$.n', 'else')"),
        of("longtext", document, "CONCAT(c, ' ')"),
    ]
}

/// What only MariaDB has.
#[must_use]
pub fn of_mariadb() -> Vec<ColumnType> {
    vec![
        of(
            "uuid",
            uuid,
            "IF(c = '0198c0de-0000-7000-8000-000000000000', '0198c0de-0000-7000-8000-000000000001', '0198c0de-0000-7000-8000-000000000000')",
        ),
        of("inet6", inet6, "IF(c = '::1', '::2', '::1')"),
        of("inet4", inet4, "IF(c = '10.0.0.1', '10.0.0.2', '10.0.0.1')"),
    ]
}

/// What PostgreSQL has. [`PREPARE_POSTGRES`] makes some of them.
#[must_use]
pub fn of_postgres() -> Vec<ColumnType> {
    vec![
        of("boolean", flag, "NOT c"),
        of("smallint", small, INTEGER),
        of("integer", small, INTEGER),
        of("bigint", large, INTEGER),
        of(
            "numeric",
            double,
            "c + 0.0000000000000000000000000000000000000001",
        ),
        of("numeric(10, 2)", decimal, "c + 0.01"),
        of("cents", decimal, "c + 0.01"),
        of("numeric(12, 0)", decimal, "c + 1"),
        of(
            "real",
            double,
            "CASE WHEN c = 0 THEN 1e-30 ELSE c * 1.00000012 END",
        ),
        of(
            "double precision",
            double,
            "CASE WHEN c = 0 THEN 1e-300 ELSE c * 1.0000000000000002 END",
        ),
        of(
            "text",
            text,
            "CASE WHEN c LIKE '% ' THEN rtrim(c) ELSE c || ' ' END",
        ),
        of("char(8)", text, "left(c, 7) || '~'"),
        of(
            "varchar(8)",
            text,
            "CASE WHEN length(c) < 8 THEN c || ' ' ELSE left(c, 7) || '~' END",
        ),
        of(
            "short",
            text,
            "CASE WHEN length(c) < 8 THEN c || ' ' ELSE left(c, 7) || '~' END",
        ),
        of(
            "letter",
            letter,
            "CASE c WHEN 'a' THEN 'A'::letter ELSE 'a'::letter END",
        ),
        of("timestamp(0)", instant, "c + interval '1 second'"),
        of("timestamptz(3)", instant, "c + interval '1 millisecond'"),
        of("timestamp", instant, "c + interval '1 microsecond'"),
        of("timestamptz", instant, "c - interval '1 microsecond'"),
        of("date", day, "c + 1"),
        of("time", clock, "c + interval '1 microsecond'"),
        of("time(0)", clock, "c + interval '1 second'"),
        of("timetz", zoned, "c + interval '1 microsecond'"),
        of("interval", interval, "c + interval '1 microsecond'"),
        of("interval(0)", interval, "c + interval '1 second'"),
        of(
            "uuid",
            uuid,
            "CASE c WHEN '0198c0de-0000-7000-8000-000000000000' THEN '0198c0de-0000-7000-8000-000000000001'::uuid \
             ELSE '0198c0de-0000-7000-8000-000000000000'::uuid END",
        ),
        of("inet", inet, "set_masklen(c, 31)"),
        of(
            "cidr",
            cidr,
            "CASE c WHEN '10.0.0.0/9' THEN '10.0.0.0/10'::cidr ELSE '10.0.0.0/9'::cidr END",
        ),
        of(
            "macaddr",
            mac,
            "c & 'ff:ff:ff:ff:ff:fe'::macaddr | (~c & '00:00:00:00:00:01'::macaddr)",
        ),
        of(
            "macaddr8",
            mac,
            "c & 'ff:ff:ff:ff:ff:ff:ff:fe'::macaddr8 | (~c & '00:00:00:00:00:00:00:01'::macaddr8)",
        ),
        of("json", document, "(c::jsonb || '{\"n\": \"else\"}')::json"),
        of("jsonb", document, "c || '{\"n\": \"else\"}'"),
    ]
}

/// What makes the types of [`of_postgres`] that a server doesn't bring.
pub const PREPARE_POSTGRES: &str = "CREATE TYPE letter AS ENUM ('a', 'A', 'b'); \
    CREATE DOMAIN cents AS numeric(10, 2); CREATE DOMAIN short AS varchar(8)";

const INTEGER: &str = "c + 1";

fn one_of(dice: Dice<'_>, all: &[&str]) -> Value {
    json!(all[dice(all.len() as u64) as usize])
}

fn flag(dice: Dice<'_>) -> Value {
    json!(dice(2) == 1)
}

fn small(dice: Dice<'_>) -> Value {
    match dice(3) {
        0 => json!(dice(30_000)),
        1 => json!(format!("{:05}", dice(30_000))),
        _ => json!(7),
    }
}

fn large(dice: Dice<'_>) -> Value {
    match dice(3) {
        0 => json!(-(dice(1 << 60) as i64)),
        1 => json!((1_u64 << 53) + dice(1 << 20)),
        _ => json!(format!(" {} ", dice(1 << 60))),
    }
}

fn unsigned(dice: Dice<'_>) -> Value {
    json!(u64::MAX - dice(1 << 40))
}

/// Up to five digits behind the point, and halves where it is rounded.
fn decimal(dice: Dice<'_>) -> Value {
    let sign = if dice(2) == 0 { "-" } else { "" };
    let whole = dice(100_000);
    match dice(5) {
        0 => json!(
            format!("{sign}{whole}.{:05}", dice(100_000))
                .parse::<f64>()
                .unwrap_or(0.5)
        ),
        1 => json!(format!("{sign}{whole}.{:05}", dice(100_000))),
        2 => json!(format!("{sign}{whole}.{:02}5", dice(100))),
        3 => json!(format!("{sign}{}e-3", dice(10_000_000))),
        _ => json!(whole),
    }
}

fn positive(dice: Dice<'_>) -> Value {
    json!(format!("{}.{:04}", dice(100_000), dice(10_000)))
}

fn small_decimal(dice: Dice<'_>) -> Value {
    json!(dice(900_000) as f64 / 1000.0 + 0.0004)
}

fn double(dice: Dice<'_>) -> Value {
    let mantissa = dice(1 << 52) as f64 / (1_u64 << 52) as f64 + 1.0;
    match dice(4) {
        0 => json!(mantissa),
        1 => json!(-mantissa * 10_f64.powi(dice(30) as i32)),
        2 => json!(mantissa / 10_f64.powi(dice(30) as i32)),
        _ => json!(dice(1000)),
    }
}

/// Eight characters at most, and spaces at the end.
fn text(dice: Dice<'_>) -> Value {
    let letters = ["a", "B", "é", "z", "0", " ", "ß", "'"];
    let mut text: String = (0..1 + dice(8))
        .map(|_| letters[dice(letters.len() as u64) as usize])
        .collect();
    if text.trim().is_empty() {
        text = "Ann".to_owned();
    }
    json!(text + &" ".repeat(dice(4) as usize))
}

fn role(dice: Dice<'_>) -> Value {
    one_of(dice, &["admin", "ADMIN", "user", "User", "guest "])
}

fn letter(dice: Dice<'_>) -> Value {
    one_of(dice, &["a", "A", "b"])
}

fn set(dice: Dice<'_>) -> Value {
    one_of(dice, &["x", "y,x", "X,y,x", "", "x,y,z"])
}

fn instant(dice: Dice<'_>) -> Value {
    let year = 1930 + dice(120);
    at(dice, year)
}

fn recent(dice: Dice<'_>) -> Value {
    let year = 1990 + dice(40);
    at(dice, year)
}

fn at(dice: Dice<'_>, year: u64) -> Value {
    let (month, day, hour, minute, second) =
        (1 + dice(12), 1 + dice(28), dice(24), dice(60), dice(60));
    let fraction = match dice(5) {
        0 => String::new(),
        1 => ".5".to_owned(),
        2 => format!(".{:03}", dice(1000)),
        3 => format!(".{:03}5", dice(1000)),
        _ => format!(".{:06}", dice(1_000_000)),
    };
    let zones = ["Z", "+00:00", "+05:30", "-08:00"];
    let zone = zones[dice(4) as usize];
    json!(format!(
        "{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}"
    ))
}

fn day(dice: Dice<'_>) -> Value {
    json!(format!(
        "{}-{:02}-{:02}",
        1800 + dice(300),
        1 + dice(12),
        1 + dice(28)
    ))
}

fn clock(dice: Dice<'_>) -> Value {
    let (hour, minute, second) = (dice(24), dice(60), dice(59));
    match dice(5) {
        0 => json!(format!("{hour:02}:{minute:02}")),
        1 => json!(format!("{hour}:{minute:02}:{second:02}.5")),
        2 => json!(format!("{hour:02}{minute:02}{second:02}")),
        3 => json!(format!("{}:{minute:02} PM", 1 + dice(12))),
        _ => json!(format!(
            "{hour:02}:{minute:02}:{second:02}.{:06}",
            dice(999_999)
        )),
    }
}

fn zoned(dice: Dice<'_>) -> Value {
    let zones = ["", "Z", "+02", "-08:30", "+0530"];
    json!(format!(
        "{:02}:{:02}{}",
        dice(24),
        dice(60),
        zones[dice(5) as usize]
    ))
}

fn span(dice: Dice<'_>) -> Value {
    let (hour, minute, second) = (dice(800), dice(60), dice(59));
    match dice(6) {
        0 => json!(format!("{:02}:{minute:02}", hour % 24)),
        1 => json!(format!("-{hour}:{minute:02}:{second:02}")),
        2 => json!(format!("{}:{minute:02}:{second:02}.0005", hour % 24)),
        3 => json!(format!("{:02}{minute:02}{second:02}", hour % 24)),
        4 => json!(format!("-{} {:02}:{minute:02}", dice(30), hour % 24)),
        _ => json!(format!(
            "{hour:02}:{minute:02}:{second:02}.{:06}",
            dice(999_999)
        )),
    }
}

fn interval(dice: Dice<'_>) -> Value {
    let (days, hours, minutes) = (dice(40), dice(100), dice(60));
    match dice(5) {
        0 => json!(format!("{hours} hours")),
        1 => json!(format!(
            "1 year 2 mons {days} days {hours:02}:{minutes:02}:01.5"
        )),
        2 => json!(format!("P1Y2M{days}DT{hours}H{minutes}M6.25S")),
        3 => json!(format!("{days} days {minutes} minutes ago")),
        _ => json!(format!("-{hours}:{minutes:02}")),
    }
}

fn year(dice: Dice<'_>) -> Value {
    json!(format!("{}", 1901 + dice(250)))
}

fn document(dice: Dice<'_>) -> Value {
    json!({"n": dice(1000), "b": {"y": 1.0, "x": dice(1 << 53) as f64 / 7.0}, "a": [true, null, "é"], "s": 1e30})
}

fn uuid(dice: Dice<'_>) -> Value {
    let low = format!("{:012x}", 1 + dice(1 << 40));
    match dice(4) {
        0 => json!(format!("0198c0de-0000-7000-8000-{low}")),
        1 => json!(format!("0198C0DE-0000-7000-8000-{}", low.to_uppercase())),
        2 => json!(format!("0198c0de000070008000{low}")),
        _ => json!(format!("0198c0de-0000-7000-8000-{low}")),
    }
}

fn inet6(dice: Dice<'_>) -> Value {
    match dice(4) {
        0 => json!(format!("2001:DB8:0:0:0:0:0:{:X}", dice(1 << 16))),
        1 => json!(format!("2001:db8::{:x}:0:0:1", 1 + dice(1000))),
        2 => json!(format!("::ffff:10.0.{}.1", dice(256))),
        _ => json!(format!("0:0:0:0:0:0:0:{:x}", 3 + dice(1000))),
    }
}

fn inet4(dice: Dice<'_>) -> Value {
    json!(format!("192.168.{}.{}", dice(256), dice(256)))
}

fn inet(dice: Dice<'_>) -> Value {
    match dice(4) {
        0 => inet6(dice),
        1 => json!(format!("10.1.{}.7/24", dice(256))),
        2 => json!(format!("10.1.2.{}/32", dice(256))),
        _ => inet4(dice),
    }
}

fn cidr(dice: Dice<'_>) -> Value {
    match dice(5) {
        0 => json!(format!("2001:DB8:{:x}::/48", dice(1 << 16))),
        1 => json!(format!("192.168.{}", dice(256))),
        2 => json!(format!("10.{}", dice(256))),
        3 => json!(format!("172.16.{}.0/24", dice(256))),
        _ => json!(format!("10.1.2.{}", dice(256))),
    }
}

fn mac(dice: Dice<'_>) -> Value {
    let (high, low) = (dice(256), dice(256));
    match dice(4) {
        0 => json!(format!("08:00:2b:01:{high:02x}:{low:02x}")),
        1 => json!(format!("08-00-2B-01-{high:02X}-{low:02X}")),
        2 => json!(format!("0800.2b01.{high:02x}{low:02x}")),
        _ => json!(format!("08002b01{high:02x}{low:02x}")),
    }
}
