//! Forms: what a field's values look like in the encoding, so that types that hold the same value agree.
//!
//! A form follows from the target's column: it is the value as that column keeps it. Two values are alike if and only
//! if they have one form, whoever asks: what is expected, what is digested and what is compared are all written here.

mod name;
mod number;
mod time;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::json;

pub(crate) use self::{number::decimal, time::TO_2000};

/// How a field is written, whatever the side keeps it as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// As it is; without the spaces at its end where one side can't keep them.
    Text {
        /// Whether spaces at the end don't count.
        trimmed: bool,
        /// Characters that are kept, where that is limited: servers cut off spaces behind them without a word.
        most: Option<u32>,
    },
    /// A whole number in decimal; true and false are 1 and 0.
    Integer,
    /// A number in decimal, without needless zeros.
    Decimal {
        /// Digits behind the point, rounded half away from zero; none: as many as there are. Below zero, before it.
        scale: Option<i32>,
    },
    /// A floating-point number: `x` and its bits in hex (IEEE 754), so that neighbours differ. Minus zero is zero.
    Float {
        /// 32 bits instead of 64.
        single: bool,
        /// Digits behind the point, where the column rounds to some (`DOUBLE(10, 2)`): in decimal then.
        scale: Option<u32>,
    },
    /// Whole units since 1970 in UTC, where a unit is a second divided by 10^`digits`.
    Instant {
        /// Digits of the fraction of a second, 0 to 6.
        digits: u32,
        /// What becomes of what is finer.
        rounding: Rounding,
    },
    /// `YYYY-MM-DD`.
    Day,
    /// Whole units since midnight; with the zone's offset in seconds behind `@`, where there is one.
    Clock {
        /// Digits of the fraction of a second, 0 to 6.
        digits: u32,
        /// What becomes of what is finer.
        rounding: Rounding,
        /// Which sort of time it is.
        clock: Clock,
    },
    /// Months, days and microseconds of a PostgreSQL interval, which are three numbers there.
    Interval {
        /// Digits of the fraction of a second, 0 to 6.
        digits: u32,
    },
    /// A text in which neither the case of ASCII letters nor spaces at the end count: labels of MySQL's enumerations.
    Folded,
    /// Labels of a set, each once, in the order of their octets, with commas between.
    Labels {
        /// Whether the case of ASCII letters doesn't count.
        folded: bool,
    },
    /// A UUID in lower case with four hyphens.
    Uuid,
    /// An IP address in hex, and the length of its network: `0a000001/32`.
    Address {
        /// How it may be spelled.
        address: Address,
    },
    /// A MAC address in lower case with colons.
    Mac {
        /// Of eight octets; six are told with `ff:fe` in their middle.
        long: bool,
    },
    /// JSON: see [`canonical`](crate::canonical).
    Json,
}

/// What a server does with a fraction of a second that is finer than a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// It is cut off, towards the past: MariaDB.
    Cut,
    /// Halves go to the later time: MySQL.
    Later,
    /// Halves go away from 2000, where PostgreSQL counts from.
    Apart,
}

/// A sort of time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// MySQL's `TIME`, which may be negative and more than a day.
    Span,
    /// PostgreSQL's `time`.
    Day,
    /// PostgreSQL's `timetz`.
    Zoned,
}

/// How an address may be spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Address {
    /// Either family, with or without the length of its network: PostgreSQL's `inet`.
    Any,
    /// A network, whose octets at the end may be left out: PostgreSQL's `cidr`.
    Network,
    /// IPv6 alone: MariaDB's `INET6`, where IPv4 is told as `::ffff:10.0.0.1`.
    V6,
}

/// What an SQL column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Text of any length.
    Text {
        /// Of a fixed length, filled with spaces or bereft of them.
        padded: bool,
        /// In the connection's character set, or a part of it.
        unicode: bool,
        /// Characters that it has room for, where that is limited.
        most: Option<u32>,
    },
    /// Whole numbers.
    Integer,
    /// True and false.
    Boolean,
    /// Exact numbers.
    Decimal {
        /// Digits behind the point, where they are fixed.
        scale: Option<i32>,
    },
    /// Floating-point numbers.
    Float {
        /// Of 32 bits.
        single: bool,
        /// Digits behind the point, where they are fixed.
        scale: Option<u32>,
    },
    /// Date and time.
    Instant {
        /// Digits of the fraction of a second that are kept.
        digits: u32,
        /// What the server does with what is finer.
        rounding: Rounding,
    },
    /// Dates.
    Day,
    /// Times of day.
    Clock {
        /// Digits of the fraction of a second that are kept.
        digits: u32,
        /// What the server does with what is finer.
        rounding: Rounding,
        /// Which sort of time it is.
        clock: Clock,
    },
    /// PostgreSQL's intervals.
    Interval {
        /// Digits of the fraction of a second that are kept.
        digits: u32,
    },
    /// One label of an enumeration of MySQL.
    Label {
        /// Whether all labels are ASCII.
        ascii: bool,
    },
    /// Some labels of a set of MySQL.
    Labels {
        /// Whether the case of ASCII letters doesn't count.
        folded: bool,
    },
    /// UUIDs.
    Uuid,
    /// IP addresses.
    Address(Address),
    /// MAC addresses.
    Mac {
        /// Of eight octets.
        long: bool,
    },
    /// JSON, as a type or as a text.
    Json,
    /// Anything else that has a text.
    Other,
}

impl Stored {
    /// The form of values that are kept like this.
    pub const fn form(self) -> Form {
        match self {
            Self::Text { padded, most, .. } => Form::Text {
                trimmed: padded,
                most: if padded { None } else { most },
            },
            Self::Integer | Self::Boolean => Form::Integer,
            Self::Decimal { scale } => Form::Decimal { scale },
            Self::Float { single, scale } => Form::Float { single, scale },
            Self::Instant { digits, rounding } => Form::Instant { digits, rounding },
            Self::Day => Form::Day,
            Self::Clock {
                digits,
                rounding,
                clock,
            } => Form::Clock {
                digits,
                rounding,
                clock,
            },
            Self::Interval { digits } => Form::Interval { digits },
            Self::Label { .. } => Form::Folded,
            Self::Labels { folded } => Form::Labels { folded },
            Self::Uuid => Form::Uuid,
            Self::Address(address) => Form::Address { address },
            Self::Mac { long } => Form::Mac { long },
            Self::Json => Form::Json,
            Self::Other => Form::TEXT,
        }
    }
}

impl Form {
    /// A text as it is.
    pub const TEXT: Self = Self::Text {
        trimmed: false,
        most: None,
    };

    /// Whether two values have one form; NULL is alike to NULL alone.
    pub fn is_alike(self, one: Option<&str>, other: Option<&str>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => one == other || self.of(one) == self.of(other),
            (one, other) => one == other,
        }
    }

    /// `text`, as a server shows the value or reads it, in this form; as it is where it has another.
    pub fn of(self, text: &str) -> Cow<'_, str> {
        let written: Option<Cow<'_, str>> = match self {
            Self::Text { trimmed: true, .. } => Some(text.trim_end_matches(' ').into()),
            Self::Text {
                most: Some(most), ..
            } => name::cut(text, most as usize).map(Cow::Owned),
            Self::Text { most: None, .. } => None,
            Self::Integer => number::integer(text).map(Cow::Owned),
            Self::Decimal { scale } => decimal(text, scale).map(Cow::Owned),
            Self::Float { single, scale } => number::float(text, single, scale).map(Cow::Owned),
            Self::Instant { digits, rounding } => {
                time::instant(text, digits, rounding).map(Cow::Owned)
            }
            Self::Day => time::day(text).map(|day| day.to_string().into()),
            Self::Clock {
                digits,
                rounding,
                clock,
            } => time::clock(text, digits, rounding, clock).map(Cow::Owned),
            Self::Interval { digits } => time::interval(text, digits).map(Cow::Owned),
            Self::Folded => Some(name::folded(text).into()),
            Self::Labels { folded } => Some(name::labels(text, folded).into()),
            Self::Uuid => name::uuid(text).map(Cow::Owned),
            Self::Address { address } => name::address(text, address).map(Cow::Owned),
            Self::Mac { long } => name::mac(text, long).map(Cow::Owned),
            Self::Json => {
                let value = json::read(text);
                value.map(|value| json::canonical(&value).into())
            }
        };
        written.unwrap_or(Cow::Borrowed(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_form() {
        let padded = Form::Text {
            trimmed: true,
            most: None,
        };
        let short = Form::Text {
            trimmed: false,
            most: Some(3),
        };
        let thousands = Form::Decimal { scale: Some(-3) };
        let cents = Form::Decimal { scale: Some(2) };
        let any = Form::Decimal { scale: None };
        let seconds = |rounding| Form::Instant {
            digits: 0,
            rounding,
        };
        let micros = Form::Instant {
            digits: 6,
            rounding: Rounding::Apart,
        };
        let float = |single| Form::Float {
            single,
            scale: None,
        };
        let tiny = format!("0.{}1", "0".repeat(499));
        let rows = [
            (Form::TEXT, "ann ", "ann "),
            (short, "ann  ", "ann"),
            (short, "a  ", "a  "),
            (short, "anna b ", "anna b"),
            (padded, "ann ", "ann"),
            (Form::Integer, "true", "1"),
            (Form::Integer, "f", "0"),
            (Form::Integer, "007", "7"),
            (
                Form::Integer,
                "18446744073709551615",
                "18446744073709551615",
            ),
            (any, "1.50", "1.5"),
            (any, "1.5e3", "1500"),
            (any, "-0.0", "0"),
            (any, "12e-3", "0.012"),
            (any, "000.100", "0.1"),
            (cents, "1.755", "1.76"),
            (cents, "1.754999", "1.75"),
            (cents, "9.995", "10"),
            (cents, "-9.995", "-10"),
            (cents, "0.004", "0"),
            (cents, "NaN", "NaN"),
            (thousands, "1500", "2000"),
            (thousands, "-499.9", "0"),
            (thousands, "99999", "100000"),
            (any, "1e-500", &tiny),
            (float(true), "1.2345678", "x3f9e0651"),
            (float(false), "0.1", "x3fb999999999999a"),
            (float(false), "0.10000000000000002", "x3fb999999999999b"),
            (float(false), "-0.0", "x0000000000000000"),
            (
                Form::Float {
                    single: false,
                    scale: Some(2),
                },
                "1.005",
                "1",
            ),
            (
                Form::Float {
                    single: true,
                    scale: Some(2),
                },
                "1.2300000190734863",
                "1.23",
            ),
            (micros, "2026-01-31T12:00:00.5+01:00", "1769857200500000"),
            (micros, "2026-01-31 11:00:00.5+00", "1769857200500000"),
            (micros, "2026-01-31 11:00:00.500000", "1769857200500000"),
            (micros, "1969-12-31 23:59:59.999999", "-1"),
            (
                seconds(Rounding::Cut),
                "2026-01-31 11:00:00.999999",
                "1769857200",
            ),
            (
                seconds(Rounding::Later),
                "9999-12-31 23:59:59",
                "253402300799",
            ),
            (
                seconds(Rounding::Later),
                "2026-01-31 11:00:00.5",
                "1769857201",
            ),
            (
                seconds(Rounding::Apart),
                "2026-01-31 11:00:00.5",
                "1769857201",
            ),
            (seconds(Rounding::Cut), "1969-12-31 23:59:59.5", "-1"),
            (seconds(Rounding::Later), "1969-12-31 23:59:59.5", "0"),
            (seconds(Rounding::Apart), "1969-12-31 23:59:59.5", "-1"),
            (seconds(Rounding::Apart), "1969-12-31 23:59:59.6", "0"),
            (
                seconds(Rounding::Later),
                "0000-00-00 00:00:00",
                "0000-00-00 00:00:00",
            ),
            (Form::Day, "2026-01-31", "2026-01-31"),
            (Form::Day, "2026-01-31T23:30:00-02:00", "2026-02-01"),
            (Form::Folded, "ADMIN ", "admin"),
            (Form::Labels { folded: true }, "b,A,b", "a,b"),
            (Form::Labels { folded: false }, "b,A,b ", "A,b"),
            (
                Form::Uuid,
                "{0198C0DE00007000800000000000ABCD}",
                "0198c0de-0000-7000-8000-00000000abcd",
            ),
            (Form::Uuid, "none", "none"),
            (
                Form::Mac { long: false },
                "0800.2B01.0203",
                "08:00:2b:01:02:03",
            ),
            (
                Form::Mac { long: true },
                "08002b010203",
                "08:00:2b:ff:fe:01:02:03",
            ),
            (
                Form::Json,
                "{\"b\": 1.0, \"a\": [1]}",
                "{\"a\":[1],\"b\":1}",
            ),
            (Form::Json, "broken", "broken"),
        ];
        for (form, text, expected) in rows {
            assert_eq!(form.of(text), expected, "{form:?} {text}");
        }
    }

    #[test]
    fn addresses_have_one_form() {
        let (any, network, v6) = (Address::Any, Address::Network, Address::V6);
        let rows = [
            (any, "10.0.0.1", "10.0.0.1/32", true),
            (any, "10.0.0.1", "10.0.0.1/8", false),
            (any, "::ffff:10.0.0.1", "0:0:0:0:0:FFFF:a00:1/128", true),
            (any, "::ffff:10.0.0.1", "10.0.0.1", false),
            (v6, "::ffff:10.0.0.1", "10.0.0.1", true),
            (any, "2001:DB8::0", "2001:db8:0::", true),
            (any, "2001:db8::1", "2001:db8::2", false),
            (network, "192.168", "192.168.0.0/24", true),
            (network, "10", "10.0.0.0/8", true),
            (network, "10.1.2", "10.1.2.0/24", true),
            (network, "10.1/16", "10.1.0.0/16", true),
        ];
        for (address, one, other, alike) in rows {
            let form = Form::Address { address };
            let found = form.is_alike(Some(one), Some(other));
            assert_eq!(found, alike, "{address:?} {one} {other}");
        }
    }

    #[test]
    fn times_of_day_have_one_form() {
        let form = |digits, clock| Form::Clock {
            digits,
            rounding: Rounding::Apart,
            clock,
        };
        let (day, span, zoned) = (
            form(6, Clock::Day),
            form(0, Clock::Span),
            form(6, Clock::Zoned),
        );
        let rows = [
            (day, "08:00", "08:00:00", true),
            (day, "0800", "T08:00:00.000000", true),
            (day, "8:00 PM", "20:00:00", true),
            (day, "12:30 am", "00:30", true),
            (day, "24:00", "00:00", false),
            (day, "08:00:00.000001", "08:00:00", false),
            (day, "08:00:00+02", "08:00", true),
            (form(3, Clock::Day), "08:00:00.0005", "08:00:00.001", true),
            (span, "0800", "00:08:00", true),
            (span, "-1 02:00", "-26:00:00", true),
            (span, "-00:00:00.5", "-00:00:01", true),
            (span, "838:59:59", "838:59:58", false),
            (zoned, "08:00+02:00", "08:00:00+02", true),
            (zoned, "08:00", "08:00:00Z", true),
            (zoned, "08:00+02", "06:00+00", false),
            (zoned, "08:00+0530", "08:00+05:30", true),
        ];
        for (form, one, other, alike) in rows {
            let found = form.is_alike(Some(one), Some(other));
            assert_eq!(
                found,
                alike,
                "{form:?} {one} {other}: {} {}",
                form.of(one),
                form.of(other)
            );
        }
    }

    #[test]
    fn intervals_have_one_form() {
        let form = Form::Interval { digits: 6 };
        let rows = [
            ("26 hours", "26:00:00", true),
            ("26 hours", "1 day 02:00:00", false),
            (
                "1 year 2 mons -3 days +04:05:06.7",
                "P1Y2M-3DT4H5M6.7S",
                true,
            ),
            ("@ 1 day 2 hours ago", "-1 days -02:00:00", true),
            ("2w", "14 days", true),
            ("1.5 days", "1 day 12:00:00", false),
        ];
        for (one, other, alike) in rows {
            let found = form.is_alike(Some(one), Some(other));
            assert_eq!(
                found,
                alike,
                "{one} {other}: {} {}",
                form.of(one),
                form.of(other)
            );
        }
        // As it is asked for in SQL.
        assert_eq!(form.of("14 -3 14706700000"), "14 -3 14706700000");
    }

    #[test]
    fn null_is_alike_to_null_alone() {
        assert!(Form::TEXT.is_alike(None, None));
        for (one, other) in [(None, Some("")), (Some(""), None), (Some("null"), None)] {
            assert!(!Form::TEXT.is_alike(one, other) && !Form::Json.is_alike(one, other));
        }
    }
}
