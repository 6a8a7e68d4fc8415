//! What a deployment will do, step by step. `larder plan` prints it; the runner walks it; the fault tests break every part of it.

use std::fmt;

use super::step::Step;
use crate::model::{Mode, Phase};

/// The ordered steps of a deployment.
pub struct Plan {
    mode: Mode,
    steps: Vec<Box<dyn Step>>,
}

impl Plan {
    /// A plan for `mode`.
    pub fn new(mode: Mode, steps: Vec<Box<dyn Step>>) -> Plan {
        Plan { mode, steps }
    }

    /// The steps in order.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &dyn Step> {
        self.steps.iter().map(AsRef::as_ref)
    }

    /// The names of the steps in order.
    pub fn names(&self) -> Vec<String> {
        self.steps().map(|step| step.name().to_owned()).collect()
    }

    /// Only the steps of `phases`; none given means all.
    #[must_use]
    pub fn only(mut self, phases: &[Phase]) -> Plan {
        if !phases.is_empty() {
            self.steps.retain(|step| phases.contains(&step.phase()));
        }
        self
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.steps().map(|step| step.name().len()).max().unwrap_or(0);
        for phase in Phase::ALL {
            let mut steps = self.steps().filter(|step| step.phase() == phase).peekable();
            if steps.peek().is_some() {
                writeln!(f, "{phase}")?;
            }
            for step in steps {
                writeln!(f, "  {:width$}  {}", step.name(), step.about())?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("mode", &self.mode).field("steps", &self.names()).finish()
    }
}
