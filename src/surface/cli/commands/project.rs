//! The command `larder project`, which manages projects and their environments.

use clap::{Subcommand, ValueEnum};

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    drift,
    project_limit::{ProjectEnlargeArgs, ProjectTrimArgs},
};
use crate::{
    config::Domain,
    control::{
        CommandError, ProjectCreate, ProjectCreated, ProjectDestroy, ProjectDestroyed, ProjectInfo, ProjectList, ProjectRow,
    },
    model::{BranchName, EnvironmentName, Mode, ProjectName, Strategy},
};

/// Manage projects and their environments
#[derive(Debug, Subcommand)]
pub enum ProjectVerb {
    Create(ProjectCreateArgs),
    List(ProjectListArgs),
    Info(ProjectInfoArgs),
    Enlarge(ProjectEnlargeArgs),
    Trim(ProjectTrimArgs),
    Destroy(ProjectDestroyArgs),
}

impl ProjectVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            ProjectVerb::Create(command) => asking.ask(command).await,
            ProjectVerb::List(command) => asking.ask(command).await,
            ProjectVerb::Info(command) => asking.ask(command).await,
            ProjectVerb::Enlarge(command) => asking.ask(command).await,
            ProjectVerb::Trim(command) => asking.ask(command).await,
            ProjectVerb::Destroy(command) => asking.ask(command).await,
        }
    }
}

/// Create a project, or a further environment of a project
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder project create shop\n  larder project create shop --env staging --branch next --domain staging.example.com"
)]
pub struct ProjectCreateArgs {
    /// Name of the project
    name: ProjectName,
    /// Mode in which the environment deploys
    #[arg(long, value_enum, default_value_t = ModeWord::Cooking)]
    mode: ModeWord,
    /// Name of the environment
    #[arg(long, value_name = "NAME", default_value = "production")]
    env: EnvironmentName,
    /// Branch that the environment deploys; no two environments of a project deploy the same branch
    #[arg(long, default_value = "main")]
    branch: BranchName,
    /// Further host name of the environment; may be repeated
    #[arg(long = "domain", value_name = "HOST")]
    domains: Vec<Domain>,
    /// Way in which a new release replaces the old one
    #[arg(long, value_enum, default_value_t = StrategyWord::BlueGreen)]
    strategy: StrategyWord,
    /// Layout of the environment's directory
    #[arg(long, value_enum, default_value_t = LayoutWord::Standard)]
    layout: LayoutWord,
}

/// The mode of an environment.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ModeWord {
    /// Runs a checkout in which people may work, and builds there, for development
    Editable,
    /// Builds here, packs a release archive, and serves this release
    Cooking,
    /// Never builds; serves releases that a cooking environment built, here or on another server
    Final,
}

/// The strategy of an environment.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StrategyWord {
    /// The new release starts beside the old one and takes over when it is healthy
    BlueGreen,
    /// The old release stops, and the new release starts in the same directory
    InPlace,
}

/// The layout of an environment's directory.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LayoutWord {
    /// project, build, releases, deploy, slots, data, ...
    Standard,
}

impl Command for ProjectCreateArgs {
    type Request = ProjectCreate;

    fn request(self) -> Result<ProjectCreate, CommandError> {
        let LayoutWord::Standard = self.layout;
        Ok(ProjectCreate {
            project: self.name,
            environment: self.env,
            mode: match self.mode {
                ModeWord::Editable => Mode::Editable,
                ModeWord::Cooking => Mode::Cooking,
                ModeWord::Final => Mode::Final,
            },
            branch: self.branch,
            domains: self.domains.iter().map(|domain| domain.to_string()).collect(),
            strategy: match self.strategy {
                StrategyWord::BlueGreen => Strategy::BlueGreen,
                StrategyWord::InPlace => Strategy::InPlace,
            },
        })
    }

    fn show(view: &ProjectCreated) -> Shown {
        let Some(environment) = view.project.environments.last() else { return Shown::Page(String::new()) };
        let (title, project, branch) = (environment.title(), &view.project.name, &environment.branch);
        let mut text = format!("{title} is ready ({}, deploys {branch}).\n\n", environment.mode);
        text.push_str(&format!(
            "  git remote add prod ssh://larder@HOST:{}/{project}\n  git push prod {branch}\n",
            view.ssh_port
        ));
        if let Some(commit) = &view.unset {
            let short = commit.short();
            text.push_str(&format!(
                "\n{branch} was pushed before, with the commit {short}, and was never deployed. Push {branch} again to deploy it.\n"
            ));
        }
        text.push_str(&format!("\nThe address of the environment will be {}\n", view.url));
        Shown::Page(text)
    }
}

/// List the projects that you may see
#[derive(Debug, clap::Args)]
pub struct ProjectListArgs {}

impl Command for ProjectListArgs {
    type Request = ProjectList;

    fn request(self) -> Result<ProjectList, CommandError> {
        Ok(ProjectList)
    }

    fn show(rows: &Vec<ProjectRow>) -> Shown {
        Shown::Page(projects(rows))
    }
}

fn projects(rows: &[ProjectRow]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        let environments = row.project.environments.iter().zip(&row.live).zip(&row.urls).zip(&row.drift);
        for (((environment, live), urls), drift) in environments {
            lines.push(vec![
                environment.title(),
                environment.mode.to_string(),
                environment.branch.to_string(),
                text::live(live.as_ref()),
                urls.join(" "),
                drift::brief(drift.as_ref()),
            ]);
        }
    }
    text::table(&["ENVIRONMENT", "MODE", "BRANCH", "LIVE", "ADDRESS", ""], lines)
}

/// Show the environments of a project: mode, branch, live release, addresses
#[derive(Debug, clap::Args)]
pub struct ProjectInfoArgs {
    /// Name of the project
    name: ProjectName,
}

impl Command for ProjectInfoArgs {
    type Request = ProjectInfo;

    fn request(self) -> Result<ProjectInfo, CommandError> {
        Ok(ProjectInfo { project: self.name })
    }

    fn show(rows: &Vec<ProjectRow>) -> Shown {
        Shown::Page(projects(rows))
    }
}

/// Stop a project and delete everything that belongs to it: code, releases, data, records
#[derive(Debug, clap::Args)]
pub struct ProjectDestroyArgs {
    /// Name of the project
    name: ProjectName,
    /// Name of the project again, as confirmation: this cannot be undone
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

impl Command for ProjectDestroyArgs {
    type Request = ProjectDestroy;

    fn request(self) -> Result<ProjectDestroy, CommandError> {
        Ok(ProjectDestroy { project: self.name, confirm: self.confirm })
    }

    fn show(view: &ProjectDestroyed) -> Shown {
        let left: String = view.left.iter().map(|why| format!("\n{why}")).collect();
        Shown::Done(format!("{} was destroyed{left}", view.project))
    }
}
