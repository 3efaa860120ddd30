//! The project's own commands, run as `cargo xtask COMMAND`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to the person in front of it"
)]

mod bench;
mod certs;
mod ci;
mod demo;
mod faults;
mod run;
mod sbom;
mod setup;
mod terminal;
mod test;
mod up;

use std::process::ExitCode;

use clap::Parser;

/// usersync: try it, run it, test it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Command {
    Demo(demo::Demo),
    Up(up::Up),
    Test(test::Test),
    Ci(ci::Ci),
    Bench(bench::Bench),
    Faults(faults::Faults),
    Sbom(sbom::Sbom),
    Certs(certs::Certs),
    Setup(setup::Setup),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Demo(command) => command.run(),
        Command::Up(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Ci(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Faults(command) => command.run(),
        Command::Sbom(command) => command.run(),
        Command::Certs(command) => command.run(),
        Command::Setup(command) => command.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", terminal::stderr().red("error:"));
            ExitCode::FAILURE
        }
    }
}
