//! `project`.

use clap::{Subcommand, ValueEnum};

use crate::{
    config::Domain,
    control::{CommandError, ProjectSpec, Request},
    model::{BranchName, EnvironmentName, Mode, ProjectName, Strategy},
};

/// Projects and their environments.
#[derive(Debug, Subcommand)]
pub enum Project {
    /// Create a project, or a further environment of one
    #[command(
        after_help = "Examples:\n  larder project create shop\n  larder project create shop --env staging --branch next --domain staging.example.com"
    )]
    Create {
        /// The project
        name: ProjectName,
        /// How the environment deploys
        #[arg(long, value_enum, default_value_t = ModeWord::Cooking)]
        mode: ModeWord,
        /// The environment's name; a project that exists gets a further one
        #[arg(long, value_name = "NAME", default_value = "production")]
        env: EnvironmentName,
        /// The branch that it deploys; no two environments of a project have the same
        #[arg(long, default_value = "main")]
        branch: BranchName,
        /// A further host name that leads to it; may be repeated
        #[arg(long = "domain", value_name = "HOST")]
        domains: Vec<Domain>,
        /// How a new release takes the place of the old one
        #[arg(long, value_enum, default_value_t = StrategyWord::BlueGreen)]
        strategy: StrategyWord,
        /// Where things lie on the disk
        #[arg(long, value_enum, default_value_t = LayoutWord::Standard)]
        layout: LayoutWord,
    },
    /// List the projects that you may see
    List,
    /// Show the environments of a project: mode, branch, what is live, addresses
    Info {
        /// The project
        name: ProjectName,
    },
    /// End a project and delete everything of it: code, releases, data, records
    Destroy {
        /// The project
        name: ProjectName,
        /// Its name again, to say that you mean it: there is no way back
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
}

/// How an environment deploys.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ModeWord {
    /// Not there yet. Development: the checkout itself runs
    Editable,
    /// Builds here, and serves what it unpacks from its own release archive
    Cooking,
    /// Never builds; serves what a cooking environment made, here or on another server
    Final,
}

/// How a new release takes the place of the old one.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StrategyWord {
    /// It boots beside the old one and takes over when it is healthy
    BlueGreen,
    /// Not there yet. The old one stops first
    InPlace,
}

/// Where things lie on the disk.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LayoutWord {
    /// project, build, releases, deploy, slots, data, ...
    Standard,
}

impl Project {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(match self {
            Project::Create { name, mode, env, branch, domains, strategy, layout: LayoutWord::Standard } => {
                Request::ProjectCreate(ProjectSpec {
                    project: name,
                    environment: env,
                    mode: match mode {
                        ModeWord::Editable => Mode::Editable,
                        ModeWord::Cooking => Mode::Cooking,
                        ModeWord::Final => Mode::Final,
                    },
                    branch,
                    domains: domains.iter().map(|domain| domain.to_string()).collect(),
                    strategy: match strategy {
                        StrategyWord::BlueGreen => Strategy::BlueGreen,
                        StrategyWord::InPlace => Strategy::InPlace,
                    },
                })
            }
            Project::List => Request::ProjectList,
            Project::Info { name } => Request::ProjectInfo { project: name },
            Project::Destroy { name, confirm } => Request::ProjectDestroy { project: name, confirm },
        })
    }
}
