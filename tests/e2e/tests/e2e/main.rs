//! usersync end to end: our own binaries, real servers on free ports, one stack per test.

mod access;
mod breaker;
mod checks;
mod control;
mod database_targets;
mod delivery;
mod http_target;
mod independent_client;
mod ingest;
mod intake;
mod kinds;
mod lost_states;
mod merging;
mod model;
mod monitoring;
mod outbox;
mod permissions;
mod redis_target;
mod refusals;
mod rules;
mod services;
mod settings;
mod support;
mod takeover;
mod watching;
mod workers;
