//! What the three example services share. An example of how to use usersync, no part of it.

pub mod database;
pub mod page;
pub mod password;
pub mod replica;
pub mod request;
pub mod server;
pub mod settings;
pub mod unpublished;
