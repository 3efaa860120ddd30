//! What the scheduler is told: flags, environment, file.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
};

use clap::{Args, Parser, Subcommand};
use url::Url;
use usersync_core::{
    alert,
    common::{Common, CommonFlags},
    member::Member,
    settings::{Problems, Reader},
};
use usersync_source::{SourceConfig, SourceName};

use crate::{command::Check, scheduler::Sources};

/// Keeps the main database, the states in NATS and the targets the same.
///
/// Without a command it checks every target as its entry's `check` says (every hour by default), the states against the
/// main databases as theirs say, and whatever is asked for on user.check.<target>; what differs is delivered again by the workers. Several may run: each check is done by
/// one of them. `outbox` makes a main database tell of every change, `load` brings in the users that are there already.
/// Exit status: 0 stopped or done, 1 failed, 64 bad configuration.
#[derive(Debug, Parser)]
#[command(
    name = "usersync-scheduler",
    version,
    after_help = "\
Examples:
  usersync-scheduler --nats-url nats://nats:4222
  usersync-scheduler check --target redis-cache --once --dry-run
  usersync-scheduler --config usersync.toml check --target gateway
  usersync-scheduler outbox install --url mysql://app@db/app --secret env:DB_PASSWORD --column phone=data.phone
  usersync-scheduler outbox install --url sqlite:/var/lib/app/app.db --table people --id uid --print
  usersync-scheduler --config usersync.toml load --source main --rate 5000
  usersync-scheduler --config usersync.toml --check"
)]
pub struct Flags {
    /// What the gateway and the workers have too.
    #[command(flatten)]
    pub common: CommonFlags,
    /// What to do instead of checking all the time.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of checking all the time.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check one target now, and show what was found
    Check(Check),
    /// The outbox of a main database: a table and triggers that tell of every change of a user
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Publish every user of a main database as state, skipping what is equal
    ///
    /// May run beside live events and be repeated: a newer event is never overwritten, and what an
    /// interrupted load has done is equal the next time. Users that are in NATS only are counted, not touched.
    Load(LoadFlags),
}

/// What to do with an outbox.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Make table and triggers, or renew the triggers
    Install {
        /// Which database and table.
        #[command(flatten)]
        source: SourceFlags,
        /// Take every other column too, as data.<column>, but none that looks like a password
        #[arg(long)]
        all_columns: bool,
        /// Make it another outbox, whose notes count anew: after the database was put back to an earlier time
        #[arg(long)]
        new_epoch: bool,
        /// Print the SQL instead of running it
        #[arg(long, visible_alias = "dry-run")]
        print: bool,
    },
    /// Remove table and triggers
    Uninstall {
        /// Which database and table.
        #[command(flatten)]
        source: SourceFlags,
        /// Also when rows aren't published yet
        #[arg(long)]
        force: bool,
        /// Print the SQL instead of running it
        #[arg(long, visible_alias = "dry-run")]
        print: bool,
    },
    /// Have deletions passed on that the relay holds back because there are so many
    ///
    /// It is about what is in the outbox now; later ones count anew.
    Approve {
        /// Which database and table.
        #[command(flatten)]
        source: SourceFlags,
    },
    /// Show whether it is there, what waits, and what could not be published
    Status {
        /// Which database and table.
        #[command(flatten)]
        source: SourceFlags,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which main database: one of the settings, or one given here.
#[derive(Clone, Debug, Default, Args)]
pub struct SourceFlags {
    /// A source of the settings ([sources.NAME]); may be left out when there is only one
    #[arg(long, value_name = "NAME")]
    pub source: Option<SourceName>,
    /// mysql://USER@HOST/DATABASE, postgres://USER@HOST/DATABASE or sqlite:PATH, without a password
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Where the password is: env:NAME or file:PATH
    // Text, because clap would repeat what doesn't parse, and that may be the secret itself.
    #[arg(long, value_name = "REF")]
    pub secret: Option<String>,
    /// The table with the users, or SCHEMA.TABLE [default: users]
    #[arg(long, value_name = "TABLE")]
    pub table: Option<String>,
    /// Its column with the id [default: id]
    #[arg(long, value_name = "COLUMN")]
    pub id: Option<String>,
    /// What a column holds: username, email, status, data or data.<path>; may be given several times
    ///
    /// Columns named username, email and status are taken besides; `--column email=` leaves one out.
    #[arg(long = "column", value_name = "COLUMN=MEMBER")]
    pub columns: Vec<String>,
}

/// How to load.
#[derive(Clone, Debug, Args)]
pub struct LoadFlags {
    /// Which database and table.
    #[command(flatten)]
    pub source: SourceFlags,
    /// The most users per second
    #[arg(long, value_name = "N")]
    pub rate: Option<NonZeroU32>,
    /// Remove a member that left the mapping from every user of the table; may be given several times
    #[arg(long, value_name = "MEMBER")]
    pub forget: Vec<Member>,
    /// Only count what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What to do, with everything it takes.
#[derive(Clone, Debug)]
pub enum Work {
    /// Something with an outbox.
    Outbox(OutboxWork),
    /// A load.
    Load(LoadWork),
    /// A check.
    Check(Check),
}

/// Something with an outbox.
#[derive(Clone, Debug)]
pub enum OutboxWork {
    /// Make or renew it.
    Install {
        /// Where.
        source: SourceConfig,
        /// Whether to take columns that nobody named.
        all: bool,
        /// Whether it is to be another outbox.
        new_epoch: bool,
        /// Whether only to print.
        print: bool,
    },
    /// Remove it.
    Uninstall {
        /// Where.
        source: SourceConfig,
        /// Whether unpublished rows may be lost.
        force: bool,
        /// Whether only to print.
        print: bool,
    },
    /// Approve the deletions in it.
    Approve {
        /// Where.
        source: SourceConfig,
    },
    /// Show how it stands.
    Status {
        /// Where.
        source: SourceConfig,
        /// Whether as JSON.
        json: bool,
    },
}

/// A load.
#[derive(Clone, Debug)]
pub struct LoadWork {
    /// The source's name.
    pub name: SourceName,
    /// The source.
    pub source: SourceConfig,
    /// The most users per second.
    pub rate: Option<NonZeroU32>,
    /// Members that are to leave the states.
    pub forget: Vec<Member>,
    /// Whether only to count.
    pub dry_run: bool,
    /// Whether to report as JSON.
    pub json: bool,
}

/// The scheduler's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the gateway and the workers have too.
    pub common: Common,
    /// The main databases.
    pub sources: Sources,
    /// What to do instead of checking all the time.
    pub work: Option<Work>,
}

impl Settings {
    /// Reads file, environment and flags.
    ///
    /// # Errors
    /// Every problem found.
    pub fn read(flags: &Flags) -> Result<Self, Problems> {
        let mut reader = Reader::new(flags.common.config.as_deref());
        let common = Common::read(
            &mut reader,
            &flags.common,
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        );
        let sources = usersync_source::read(&mut reader);
        reader.leave(&["target", "streams", "intake", "http", "traces"]);
        reader.leave(alert::SETTINGS);
        let work = flags
            .command
            .as_ref()
            .map(|command| work(command, &sources, &mut reader));
        reader.finish()?;
        Ok(Self {
            common,
            sources,
            work: work.flatten(),
        })
    }
}

/// `None` when there is a problem, which is reported.
fn work(command: &Command, sources: &Sources, reader: &mut Reader) -> Option<Work> {
    Some(match command {
        Command::Check(check) => Work::Check(check.clone()),
        Command::Outbox(OutboxCommand::Install {
            source,
            all_columns,
            new_epoch,
            print,
        }) => {
            let source = source.read(sources, reader)?;
            Work::Outbox(OutboxWork::Install {
                source,
                all: *all_columns,
                new_epoch: *new_epoch,
                print: *print,
            })
        }
        Command::Outbox(OutboxCommand::Uninstall {
            source,
            force,
            print,
        }) => {
            let source = source.read(sources, reader)?;
            Work::Outbox(OutboxWork::Uninstall {
                source,
                force: *force,
                print: *print,
            })
        }
        Command::Outbox(OutboxCommand::Approve { source }) => {
            let source = source.read(sources, reader)?;
            Work::Outbox(OutboxWork::Approve { source })
        }
        Command::Outbox(OutboxCommand::Status { source, json }) => {
            let source = source.read(sources, reader)?;
            Work::Outbox(OutboxWork::Status {
                source,
                json: *json,
            })
        }
        Command::Load(flags) => {
            let source = flags.source.read(sources, reader)?;
            let only = || sources.keys().next().filter(|_| flags.source.url.is_none());
            let Some(name) = flags.source.source.as_ref().or_else(only) else {
                reader.report(
                    "--source: expected a name, which the states will carry as their source",
                );
                return None;
            };
            Work::Load(LoadWork {
                name: name.clone(),
                source,
                rate: flags.rate,
                forget: flags.forget.clone(),
                dry_run: flags.dry_run,
                json: flags.json,
            })
        }
    })
}

impl SourceFlags {
    /// The source meant; `None` when there is a problem, which is reported.
    fn read(&self, sources: &Sources, reader: &mut Reader) -> Option<SourceConfig> {
        let known = self.source.as_ref().and_then(|name| sources.get(name));
        let only = || {
            sources
                .values()
                .next()
                .filter(|_| sources.len() == 1 && self.source.is_none())
        };
        let url = self.url.as_ref().map(|url| url.parse::<Url>());
        let mut problems = Vec::new();
        let mut config = match (url, known.or_else(only)) {
            (Some(Err(_)), _) => {
                reader.report(
                    "--url: expected mysql://USER@HOST/DATABASE, postgres://… or sqlite:PATH",
                );
                return None;
            }
            (Some(Ok(url)), None) => SourceConfig::at(url),
            (Some(Ok(url)), Some(config)) => SourceConfig {
                url,
                ..config.clone()
            },
            (None, Some(config)) => config.clone(),
            (None, None) => {
                let names: Vec<_> = sources.keys().map(ToString::to_string).collect();
                reader.report(match names.is_empty() {
                    true => "--url: expected the main database's URL, or a settings file with [sources.NAME] (--config)".to_owned(),
                    false => format!("--source: expected one of {}", names.join(", ")),
                });
                return None;
            }
        };
        if let Some(secret) = &self.secret {
            match secret.parse() {
                Ok(secret) => config.secret = Some(secret),
                Err(error) => problems.push(format!("--secret: {error}")),
            }
        }
        if let Some(table) = &self.table {
            match table.parse() {
                Ok(table) => config.table = table,
                Err(expected) => problems.push(format!("--table: expected {expected}")),
            }
        }
        if let Some(id) = &self.id {
            config.id.clone_from(id);
        }
        for column in &self.columns {
            match column.rsplit_once('=') {
                Some((column, "")) if !column.is_empty() => {
                    config.columns.remove(column);
                    config.without.insert(column.to_owned());
                }
                Some((column, member)) if !column.is_empty() => match member.parse::<Member>() {
                    Ok(member) => {
                        config.without.remove(column);
                        config.columns.insert(column.to_owned(), member);
                    }
                    Err(error) => problems.push(format!("--column {column}: `{member}` {error}")),
                },
                _ => problems.push(format!(
                    "--column: expected COLUMN=MEMBER, such as phone=data.phone, not `{column}`"
                )),
            }
        }
        if let Err(error) = config.server() {
            problems.push(format!("--{error}"));
        }
        if let Some(Err(error)) = config
            .secret
            .as_ref()
            .map(usersync_core::secret::SecretRef::resolve)
        {
            problems.push(format!("--secret: {error}"));
        }
        let good = problems.is_empty();
        problems
            .into_iter()
            .for_each(|problem| reader.report(problem));
        good.then_some(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &str) -> Result<Settings, String> {
        let arguments = ["usersync-scheduler"]
            .into_iter()
            .chain(arguments.split(' '));
        Settings::read(&Flags::parse_from(arguments)).map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_flags_are_well_formed() {
        <Flags as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_source_may_be_given_by_flags_alone() {
        let settings =
            read("outbox install --url mysql://app@db/app --table people --column tel=data.phone");
        let Some(Work::Outbox(OutboxWork::Install { source, .. })) = settings.unwrap().work else {
            panic!("another work");
        };
        assert_eq!(source.table.to_string(), "people");
        assert_eq!(source.columns["tel"].to_string(), "data.phone");
    }

    #[test]
    fn every_problem_is_told_and_no_password() {
        let rows = [
            ("outbox status", "--url: expected the main database's URL"),
            ("outbox status --url http://x", "--url: expected mysql://"),
            (
                "outbox status --url mysql://u:hunter2@h/d",
                "--url: a password in it is refused",
            ),
            (
                "outbox status --url sqlite:x --secret hunter2",
                "--secret: expected a reference",
            ),
            (
                "outbox install --url sqlite:x --column tel",
                "--column: expected COLUMN=MEMBER",
            ),
            (
                "outbox install --url sqlite:x --column tel=phone",
                "--column tel: `phone` is no member",
            ),
            ("load --url sqlite:x", "--source: expected a name"),
        ];
        for (arguments, expected) in rows {
            let problems = read(arguments).unwrap_err();
            assert!(problems.contains(expected), "{arguments}: {problems}");
            assert!(!problems.contains("hunter2"), "{problems}");
        }
    }

    #[test]
    fn the_settings_file_that_ships_serves_the_scheduler_too() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/usersync.toml");
        let settings = read(&format!("--config {file} --check")).unwrap();
        assert!(settings.sources.is_empty() && settings.work.is_none());
    }
}
