//! How mappings are checked against real tables, and how tables are made.
