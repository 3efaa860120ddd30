//! What every usersync binary shares: the contracts (events, states, subjects, targets) and the
//! plumbing (settings, NATS, telemetry, lifecycle). Knows no driver of any target.

pub mod admin;
pub mod alert;
pub mod auth;
pub mod batch;
pub mod buckets;
pub mod catalogue;
pub mod check;
pub mod common;
pub mod dead_letter;
pub mod egress;
pub mod event;
pub mod feed;
pub mod fields;
pub mod header_text;
pub mod lanes;
pub mod load;
pub mod member;
pub mod nats;
pub mod network;
pub mod pull;
mod refusals;
pub mod registry;
pub mod retry;
pub mod schema;
pub mod secret;
pub mod service;
pub mod settings;
pub mod signature;
pub mod state;
pub mod streams;
pub mod subjects;
pub mod target;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod user_id;
