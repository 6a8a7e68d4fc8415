//! The verbs that the server answers. Doc comments are the help.

mod deployments;
mod drift;
mod people;
mod processes;
mod projects;
mod releases;
mod remotes;

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
    /// SSH keys of users, this server's own keys, and the keys whose deliverables are accepted
    #[command(subcommand)]
    Key(people::Key),
    /// Projects and their environments
    #[command(subcommand)]
    Project(projects::Project),
    /// Deploy without a push, follow a deployment, or stop it
    Deploy(deployments::Deploy),
    /// Go back to an older release
    Rollback(deployments::Rollback),
    /// Bring a deliverable from staging and make it live
    Pull(deployments::Pull),
    /// Have another server or environment serve what was cooked here
    Promote(deployments::Promote),
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
    /// Other servers and shared places that deliverables are pulled from or published to
    #[command(subcommand)]
    Remote(remotes::Remote),
    /// What other servers pull: releases with their files
    #[command(subcommand, hide = true)]
    Deliverable(remotes::Deliverable),
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

/// Which environment is meant, and which release of it.
#[derive(Debug, clap::Args)]
pub struct OnRelease {
    /// The project, or PROJECT/ENVIRONMENT; then v41, the id of a release, its tag, or the first digits of its commit
    #[arg(value_names = ["PROJECT", "RELEASE"], num_args = 0..=2)]
    words: Vec<String>,
    /// The project, as an option
    #[arg(long, short = 'a', value_name = "PROJECT")]
    app: Option<Target>,
}

impl OnRelease {
    fn get(self) -> Result<(Target, Option<String>), CommandError> {
        let mut words = self.words.into_iter();
        let target = match self.app {
            Some(app) => Some(app),
            None => {
                let parse = |word: String| word.parse().map_err(|error| CommandError::new(Kind::Usage, format!("{error}")));
                words.next().map(parse).transpose()?
            }
        };
        let release = words.next();
        if let Some(more) = words.next() {
            return Err(CommandError::new(Kind::Usage, format!("{more:?} is one word too many after --app")));
        }
        Ok((On { target, app: None }.get()?, release))
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
            Verb::Rollback(rollback) => rollback.request()?,
            Verb::Pull(pull) => pull.request()?,
            Verb::Promote(promote) => promote.request()?,
            Verb::Plan(plan) => plan.request()?,
            Verb::Releases(on) => Request::Releases { target: on.get()? },
            Verb::Release(release) => release.request()?,
            Verb::Drift(drift) => drift.request()?,
            Verb::Ps(ps) => ps.request()?,
            Verb::Restart(on) => Request::Restart { target: on.get()? },
            Verb::Logs(logs) => logs.request()?,
            Verb::Run(run) => run.request()?,
            Verb::Remote(remote) => remote.request()?,
            Verb::Deliverable(deliverable) => deliverable.request()?,
            Verb::Status => Request::Status,
            Verb::Doctor => Request::Doctor,
        })
    }
}
