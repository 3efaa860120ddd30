//! The control plane and the targets at run time.

mod backstop;
mod cli;
mod dead_letters;
mod openapi;
mod repairs;
mod seeding;
mod targets;
mod users;
