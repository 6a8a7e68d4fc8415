//! The command `larder db`: creates, lists, opens, dumps, loads and drops the databases of an environment.

use clap::{Subcommand, ValueEnum};

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    arguments::{On, OnTarget},
};
use crate::{
    control::{
        CommandError, DatabaseCreate, DatabaseDestroy, DatabaseDump, DatabaseList, DatabaseLoad, DatabaseShell, DatabaseView,
    },
    model::DatabaseEngine,
};

/// Create, list, open, dump, load and drop databases
#[derive(Debug, Subcommand)]
#[command(
    after_help = "The databases of an environment are those that `databases:` in larder.yml declares, or else those in the variables DATABASE_URL and REDIS_URL of the live release, and SQLite files of `data:`. Their dumps belong to each restore point."
)]
pub enum DatabaseVerb {
    Create(DatabaseCreateArgs),
    List(DatabaseListArgs),
    Shell(DatabaseShellArgs),
    Dump(DatabaseDumpArgs),
    Load(DatabaseLoadArgs),
    Destroy(DatabaseDestroyArgs),
}

impl DatabaseVerb {
    /// Returns true if the command may ask for a confirmation on a terminal.
    pub(super) fn may_ask(&self) -> bool {
        matches!(self, DatabaseVerb::Destroy(command) if command.confirm.is_none())
    }

    /// Returns true if the command runs a program that people use at a terminal.
    pub(super) fn is_interactive(&self) -> bool {
        matches!(self, DatabaseVerb::Shell(_))
    }

    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            DatabaseVerb::Create(command) => asking.ask(command).await,
            DatabaseVerb::List(command) => asking.ask(command).await,
            DatabaseVerb::Shell(command) => asking.ask(command).await,
            DatabaseVerb::Dump(command) => asking.ask(command).await,
            DatabaseVerb::Load(command) => asking.ask(command).await,
            DatabaseVerb::Destroy(command) => asking.ask(command).await,
        }
    }
}

/// An engine of which larder can create databases.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ServerEngine {
    /// PostgreSQL
    #[value(alias = "postgresql")]
    Postgres,
    /// MariaDB or MySQL
    #[value(alias = "mysql")]
    Mariadb,
}

/// Create a database, its user and a random password, and set DATABASE_URL
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The database is created on the server that the operator has named with `databases:` in the server file. From the next deployment on, the processes of the environment get DATABASE_URL, unless the project sets this variable itself. The password is stored in a file that only larder can read, and is never printed.\n\nExample: larder db create shop postgres"
)]
pub struct DatabaseCreateArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Database server
    #[arg(value_name = "ENGINE")]
    engine: ServerEngine,
}

impl Command for DatabaseCreateArgs {
    type Request = DatabaseCreate;

    fn request(self) -> Result<DatabaseCreate, CommandError> {
        let engine = match self.engine {
            ServerEngine::Postgres => DatabaseEngine::Postgres,
            ServerEngine::Mariadb => DatabaseEngine::Mysql,
        };
        Ok(DatabaseCreate { target: self.on.target, engine })
    }

    fn show(view: &DatabaseView) -> Shown {
        Shown::Done(format!(
            "{} has the new {} database {}; its processes get DATABASE_URL from the next deployment on",
            view.environment,
            view.engine.title(),
            view.location,
        ))
    }
}

/// List the databases of an environment
#[derive(Debug, clap::Args)]
pub struct DatabaseListArgs {
    #[command(flatten)]
    on: On,
}

impl Command for DatabaseListArgs {
    type Request = DatabaseList;

    fn request(self) -> Result<DatabaseList, CommandError> {
        Ok(DatabaseList { target: self.on.target()? })
    }

    fn show(list: &Vec<DatabaseView>) -> Shown {
        let line = |view: &DatabaseView| {
            let by = if view.created { "larder db create" } else { "the project" };
            vec![view.name.clone(), view.engine.title().to_owned(), view.location.clone(), by.to_owned()]
        };
        Shown::Page(text::table(&["NAME", "ENGINE", "LOCATION", "CONFIGURED BY"], list.iter().map(line).collect()))
    }
}

/// Open the interactive client of a database: psql, mariadb, redis-cli or sqlite3
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The client runs on the server, beside the processes of the live release, and reads statements from the standard input. On a terminal, the client has a terminal of its own, with line editing and its pager.\n\nExamples:\n  larder db shell shop\n  echo 'select count(*) from orders' | larder db shell shop main"
)]
pub struct DatabaseShellArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Database [default: the only database of the environment]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Command for DatabaseShellArgs {
    type Request = DatabaseShell;

    fn request(self) -> Result<DatabaseShell, CommandError> {
        Ok(DatabaseShell { target: self.on.target, name: self.name })
    }

    // The answer is always the output of the client.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}

/// Write a consistent dump of a database to the standard output
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The application keeps running. The dump has the format of restore points: that of `pg_dump --format=custom` for PostgreSQL, an SQL script for MySQL and MariaDB, a database file for SQLite, and larder's own format for Redis.\n\nExample: larder db dump shop > shop.dump"
)]
pub struct DatabaseDumpArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Database [default: the only database of the environment]
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Command for DatabaseDumpArgs {
    type Request = DatabaseDump;

    fn request(self) -> Result<DatabaseDump, CommandError> {
        Ok(DatabaseDump { target: self.on.target, name: self.name })
    }

    // The answer is always the dump.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}

/// Replace a database with a dump from the standard input
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The dump is one of `larder db dump`. A restore point is taken first. The database is replaced as a whole: an error or a kill leaves the old database. The application keeps running, so stop the processes that write before, for example with `larder ps shop --scale worker=0`.\n\nExample: larder db load shop --confirm shop < shop.dump"
)]
pub struct DatabaseLoadArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Database [default: the only database of the environment]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Name of the project, as confirmation
    #[arg(long, value_name = "PROJECT")]
    confirm: Option<String>,
}

impl Command for DatabaseLoadArgs {
    type Request = DatabaseLoad;

    fn request(self) -> Result<DatabaseLoad, CommandError> {
        Ok(DatabaseLoad { target: self.on.target, name: self.name, confirm: self.confirm })
    }

    // The worker reports the result on the standard error.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}

/// Drop the database that `larder db create` created, and its user
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A restore point with a dump of the database is taken first. The command asks for the name of the project on a terminal.\n\nExit status: 0 the database was dropped, 3 nothing was changed, 4 there is no such database.\n\nExample: larder db destroy shop --confirm shop"
)]
pub struct DatabaseDestroyArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Name of the project, as confirmation without a terminal
    #[arg(long, value_name = "PROJECT")]
    confirm: Option<String>,
}

impl Command for DatabaseDestroyArgs {
    type Request = DatabaseDestroy;

    fn request(self) -> Result<DatabaseDestroy, CommandError> {
        Ok(DatabaseDestroy { target: self.on.target, confirm: self.confirm })
    }

    fn show(view: &DatabaseView) -> Shown {
        let DatabaseView { environment, location, .. } = view;
        match &view.restore_point {
            Some(point) => Shown::Done(format!(
                "the database {location} of {environment} was dropped; restore point {point} has its dump\n\
                 the variable DATABASE_URL is missing from the next deployment on"
            )),
            None => {
                let project = environment.split('/').next().unwrap_or(environment);
                Shown::Page(format!(
                    "the database {location} of {environment} would be dropped, after a restore point was taken\n\
                     nothing was changed so far; without a terminal, confirm with --confirm {project}\n"
                ))
            }
        }
    }

    fn exit_code(view: &DatabaseView) -> u8 {
        if view.restore_point.is_some() { 0 } else { 3 }
    }
}
