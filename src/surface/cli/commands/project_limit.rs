//! The commands `larder project enlarge` and `larder project trim`, which change the limit of a project's disk space.

use super::super::{
    command::{Command, Shown},
    text,
};
use crate::{
    config::ByteSize,
    control::{CommandError, ProjectEnlarge, ProjectLimit, ProjectTrim},
    model::ProjectName,
};

/// Raise the limit of a project's disk space
///
/// A project without a limit gets the limit SIZE.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  larder project enlarge shop 20G")]
pub struct ProjectEnlargeArgs {
    /// Name of the project
    name: ProjectName,
    /// New limit, such as 500M or 20G
    size: ByteSize,
}

impl Command for ProjectEnlargeArgs {
    type Request = ProjectEnlarge;

    fn request(self) -> Result<ProjectEnlarge, CommandError> {
        Ok(ProjectEnlarge { project: self.name, size: self.size })
    }

    fn show(view: &ProjectLimit) -> Shown {
        Shown::Done(changed(view))
    }
}

/// Lower the limit of a project's disk space
///
/// Without SIZE, the limit becomes the used space and a reserve of a tenth. The limit is never less than the used space.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder project trim shop\n  larder project trim shop 10G")]
pub struct ProjectTrimArgs {
    /// Name of the project
    name: ProjectName,
    /// New limit, such as 500M or 20G
    size: Option<ByteSize>,
}

impl Command for ProjectTrimArgs {
    type Request = ProjectTrim;

    fn request(self) -> Result<ProjectTrim, CommandError> {
        Ok(ProjectTrim { project: self.name, size: self.size })
    }

    fn show(view: &ProjectLimit) -> Shown {
        Shown::Done(changed(view))
    }
}

fn changed(view: &ProjectLimit) -> String {
    let before = view.before.map_or_else(|| String::from("no limit"), text::size);
    format!("{} may use {} (before: {before}) and uses {}", view.project, text::size(view.limit), text::size(view.used))
}
