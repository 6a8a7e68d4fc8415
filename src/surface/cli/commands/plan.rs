//! The command `larder plan`, which prints the steps of a push.

use super::{
    super::command::{Command, Shown},
    arguments::On,
};
use crate::{
    control::{self, CommandError, PlanView},
    model::Phase,
};

/// Print the steps of a push without running them
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    #[command(flatten)]
    on: On,
    /// Branch, tag or commit, which must have been pushed
    #[arg(value_name = "REF")]
    reference: Option<String>,
    /// Print only these phases, separated by commas, such as build,deploy
    #[arg(long, value_name = "PHASE", value_delimiter = ',')]
    only: Vec<Phase>,
}

impl Command for PlanArgs {
    type Request = control::PlanShow;

    fn request(self) -> Result<control::PlanShow, CommandError> {
        Ok(control::PlanShow { target: self.on.target()?, reference: self.reference, only: self.only })
    }

    fn show(view: &PlanView) -> Shown {
        Shown::Page(view.plan.iter().chain(&view.upgrade).map(|line| format!("{line}\n")).collect())
    }
}
