//! How two copies of the users are compared with few bytes: row hashes, digests of buckets, and the drill-down.
//!
//! Pure: it knows no driver and no NATS. docs/DIGEST.md is what other programs read. What a copy is, and how it
//! is asked, is a [`Side`]; [`Walk`] finds where two sides differ.

mod cut;
mod digest;
mod document;
mod form;
pub mod http;
mod json;
mod row;
mod scan;
mod side;
pub mod sql;
mod walk;

pub use cut::{Cut, Extent, Keys};
pub use digest::Digest;
pub use document::document;
pub use form::{Address, Clock, Form, Rounding, Stored};
pub use json::canonical;
pub use row::{Key, Row, RowHash};
pub use scan::{Each, Scan, Scanned, Tally};
pub use side::{Answer, Entry, Side, SideError};
pub use walk::{Difference, Place, Read, Walk};
