//! The command `larder disk`, which shows the disk space of projects.

use super::super::{
    command::{Command, Shown},
    text,
};
use crate::{
    control::{self, CommandError, DiskReport},
    model::ProjectName,
    space::{Forecast, Measured},
};

/// Show what uses the disk: projects, environments and kinds of files
///
/// A file with several names counts once. The column SHARED shows the space that the further names would use.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder disk\n  larder disk shop --json")]
pub struct DiskArgs {
    /// Project; all projects that you may see if absent
    project: Option<ProjectName>,
    /// Project, instead of the argument PROJECT
    #[arg(long, short = 'a', value_name = "PROJECT", conflicts_with = "project")]
    app: Option<ProjectName>,
}

impl Command for DiskArgs {
    type Request = control::DiskShow;

    fn request(self) -> Result<control::DiskShow, CommandError> {
        Ok(control::DiskShow { project: self.project.or(self.app) })
    }

    fn show(report: &DiskReport) -> Shown {
        let mut rows = Vec::new();
        let row = |name: String, kind: &str, space: &Measured| {
            let shared = if space.shared == 0 { String::from("-") } else { text::size(space.shared) };
            vec![name, kind.to_owned(), text::size(space.bytes), space.files.to_string(), shared]
        };
        let mut uncounted = 0;
        for environment in report.projects.iter().flat_map(|project| &project.environments) {
            let mut total = Measured::default();
            for kind in &environment.kinds {
                total.add(kind.space);
                rows.push(row(environment.environment.clone(), kind.kind.title(), &kind.space));
            }
            uncounted += total.uncounted;
            rows.push(row(environment.environment.clone(), "all", &total));
        }
        let mut page = text::table(&["ENVIRONMENT", "KIND", "SPACE", "FILES", "SHARED"], rows);
        page.push('\n');
        for project in &report.projects {
            let limit = project.limit.map(|limit| format!(" of its limit of {}", text::size(limit))).unwrap_or_default();
            page.push_str(&format!("{} uses {}{limit}\n", project.project, text::size(project.bytes)));
        }
        if uncounted > 0 {
            let directories = if uncounted == 1 { "directory is" } else { "directories are" };
            page.push_str(&format!("{uncounted} closed, very deep or very large {directories} not counted\n"));
        }
        page.push_str(&format!(
            "the file system has {}, of which {} are used and {} are free\n",
            text::size(report.total),
            text::size(report.used),
            text::size(report.free)
        ));
        for project in report.projects.iter().filter(|project| project.total.is_some()) {
            let size = |bytes: Option<u64>| text::size(bytes.unwrap_or_default());
            let (total, free) = (size(project.total), size(project.free));
            page.push_str(&match project.counted {
                Some(counted) => format!(
                    "{} has a quota of {total}, of which the kernel counts {} as used and {free} as free\n",
                    project.project,
                    text::size(counted)
                ),
                None => format!(
                    "{} has its own file system ({}) with {total}, of which {free} are free\n",
                    project.project, project.method
                ),
            });
        }
        for (project, why) in report.projects.iter().filter_map(|project| Some((project, project.problem.as_ref()?))) {
            let state = if project.method == "accounting" { "has no quota" } else { "is not available" };
            page.push_str(&format!("{} {state}: {why}\n", project.project));
        }
        page.push_str(&forecast(&report.forecast));
        Shown::Page(page)
    }
}

fn forecast(forecast: &Forecast) -> String {
    match forecast {
        Forecast::Unreadable { why } => format!("no forecast: {why}\n"),
        Forecast::NotEnoughHistory { totals, needed } => {
            format!(
                "no forecast: not enough history yet ({}, expected at least {needed})\n",
                text::count(*totals as u64, "daily total")
            )
        }
        Forecast::NotGrowing { .. } => String::from("the used space did not grow in the last 30 days\n"),
        Forecast::Full { bytes_per_day, days } => format!(
            "at the rate of the last 30 days ({} per day), the file system is full in {}\n",
            text::size(bytes_per_day.unsigned_abs()),
            text::count(*days, "day")
        ),
    }
}
