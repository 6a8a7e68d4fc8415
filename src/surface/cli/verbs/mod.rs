//! The verbs that the server answers. Doc comments are the help.

mod deployments;
mod drift;
mod people;
mod processes;
mod projects;
mod releases;

use clap::Subcommand;

use crate::control::{CommandError, Kind, Request, Target};

/// What the server can be asked.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Who am I, and what may I do?
    Whoami,
    /// Users of this server
    #[command(subcommand)]
    User(people::User),
    /// SSH keys of users
    #[command(subcommand)]
    Key(people::Key),
    /// Projects and their environments
    #[command(subcommand)]
    Project(projects::Project),
    /// Deploy without a push, follow a deployment, or stop it
    Deploy(deployments::Deploy),
    /// Print the steps that a push would take, and take none
    Plan(deployments::Plan),
    /// List the releases of an environment, newest first; the one with a * is live
    Releases(On),
    /// What a release is, how two differ, which to keep
    #[command(subcommand)]
    Release(releases::Release),
    /// Show what was changed by hand in what runs, and keep it
    Drift(drift::Drift),
    /// List processes, or set how many of each there are
    Ps(processes::Ps),
    /// End all processes of an environment and start them again; meanwhile it does not answer
    Restart(On),
    /// Show what processes print
    Logs(processes::Logs),
    /// Run a command in the live release
    Run(processes::Run),
    /// Show what protects projects here, and the state of all environments
    Status,
    /// Look for what is wrong with this machine: disk, sandbox, limits, missing languages
    Doctor,
}

/// Which environment is meant.
#[derive(Debug, clap::Args)]
pub struct On {
    /// The project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Option<Target>,
    /// The same, as an option
    #[arg(long, short = 'a', value_name = "PROJECT", conflicts_with = "target")]
    app: Option<Target>,
}

impl On {
    fn get(self) -> Result<Target, CommandError> {
        let missing =
            || CommandError::new(Kind::Usage, "which project?").hint("name it, as in `larder releases shop`, or `--app shop`");
        self.target.or(self.app).ok_or_else(missing)
    }
}

impl Verb {
    /// What to ask the desk.
    pub fn request(self) -> Result<Request, CommandError> {
        Ok(match self {
            Verb::Whoami => Request::Whoami,
            Verb::User(user) => user.request()?,
            Verb::Key(key) => key.request()?,
            Verb::Project(project) => project.request()?,
            Verb::Deploy(deploy) => deploy.request()?,
            Verb::Plan(plan) => plan.request()?,
            Verb::Releases(on) => Request::Releases { target: on.get()? },
            Verb::Release(release) => release.request()?,
            Verb::Drift(drift) => drift.request()?,
            Verb::Ps(ps) => ps.request()?,
            Verb::Restart(on) => Request::Restart { target: on.get()? },
            Verb::Logs(logs) => logs.request()?,
            Verb::Run(run) => run.request()?,
            Verb::Status => Request::Status,
            Verb::Doctor => Request::Doctor,
        })
    }
}
