//! The faults, by what they break.

pub(crate) mod broker;
pub(crate) mod cluster;
pub(crate) mod crash;
pub(crate) mod database;
pub(crate) mod http;
pub(crate) mod input;
pub(crate) mod main;
