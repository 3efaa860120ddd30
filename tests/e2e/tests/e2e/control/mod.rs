//! The control plane and the targets at run time.

mod seeding;
mod targets;
