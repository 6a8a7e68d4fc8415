//! The arguments of the commands that run on a developer's machine.

use crate::model::{BranchName, EnvironmentName, ProcessType, ProjectName, Target};

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "The command changes nothing that exists: run it again after an error, or in another clone. A git remote of the same name with another address is an error.\n\nExit status: 0 the environment and the git remote exist, 3 refused, 4 no such server.\n\nExamples:\n  larder init shop --to prod\n  larder init shop --to staging --branch next\n  larder init shop --to ssh://larder@HOST:2222"
)]
/// Create a project or an environment on a server, and add its git remote
pub struct InitArgs {
    /// Name of the project [default: the project that --to names]
    #[arg(value_name = "PROJECT")]
    pub project: Option<ProjectName>,
    /// Server: a name of larder-environments.json, a git remote or ~/.config/larder/config.yml, or an ssh address
    #[arg(long, value_name = "NAME")]
    pub to: String,
    /// Name of the environment [default: the environment that --to names; for an address, production]
    #[arg(long, value_name = "NAME")]
    pub env: Option<EnvironmentName>,
    /// Branch that the environment deploys [default: main, or the name of the environment if another environment deploys main]
    #[arg(long, value_name = "BRANCH")]
    pub branch: Option<BranchName>,
    /// Mode of a new environment: cooking builds, final serves what another environment built
    #[arg(long, value_name = "MODE", value_parser = ["cooking", "final"], default_value = "cooking")]
    pub mode: String,
}

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "The command runs `git push` to the branch that the environment deploys. Its output and exit status are those of git. With several hosts, the first failure ends the command, and the remaining hosts are named.\n\nIf the clone of the project's pillar is in the directory that `git config larder.pillar` names, or beside this repository in PROJECT-pillar, its HEAD is pushed first, and one deployment uses both. If the pillar is refused, the code is not pushed.\n\nExamples:\n  larder push staging\n  larder push production --ref v1.4"
)]
/// Push a commit to the branch that an environment deploys, on all its hosts
pub struct PushArgs {
    /// Environment: a name of larder-environments.json, a git remote or ~/.config/larder/config.yml
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Commit, branch or tag to deploy
    #[arg(long = "ref", value_name = "REF", default_value = "HEAD")]
    pub reference: String,
    /// Deploy a commit that does not follow the live commit
    #[arg(long)]
    pub force: bool,
    /// Leave the pillar out
    #[arg(long)]
    pub no_pillar: bool,
}

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "A browser is started with xdg-open if the output is a terminal of a graphical session.\n\nExample: larder open shop/staging"
)]
/// Print the address of an environment, and open it in a browser
pub struct OpenArgs {
    /// Project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    pub target: Option<Target>,
    /// Only print the address
    #[arg(long)]
    pub print: bool,
}

#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "The command needs no server. It builds with the buildpacks of the server, in place, runs one instance of each process, and prints their lines. A saved file starts the build, if the build is made from this file, and restarts the processes that the file concerns. Files that .gitignore or .larderignore ignores do not count. Variables come from the file .env. `larder dev release` runs the release command once.\n\nExit status: 130 after Ctrl-C, 143 after SIGTERM, 3 the port is in use, 4 no such process.\n\nExamples:\n  larder dev\n  larder dev web --port 3000"
)]
/// Run the project of this directory without a server, and restart what a saved file concerns
pub struct DevArgs {
    /// Processes to run [default: all processes of the project]
    #[arg(value_name = "PROCESS")]
    pub processes: Vec<ProcessType>,
    /// Port of the web process [default: the first free port from 5000 on]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Environment of the recipe whose settings apply
    #[arg(long, value_name = "NAME", default_value = "development")]
    pub env: EnvironmentName,
}
