//! A plan: the ordered steps of one deployment. `larder plan` prints a plan, `runner.rs` executes it, and tests make each of its steps
//! fail.

use std::fmt;

use super::{registry, step::Step};
use crate::model::{Phase, StepName};

/// The ordered steps of a deployment, each found by its name.
pub struct Plan {
    steps: Vec<Box<dyn Step>>,
}

/// The error for a name that no step has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no step {0}")]
pub struct UnknownStep(pub StepName);

impl Plan {
    /// Returns the plan with the steps of these names, in this order.
    ///
    /// # Errors
    /// [`UnknownStep`] with the first name that no step of this version has.
    pub fn of(names: &[StepName]) -> Result<Plan, UnknownStep> {
        let find = |name: &StepName| registry::step(name.as_str()).ok_or_else(|| UnknownStep(name.clone()));
        Ok(Plan { steps: names.iter().map(find).collect::<Result<_, _>>()? })
    }

    /// Returns the plan with the steps of these names, which the caller took from the registry of this version. Leaves out unknown names.
    pub fn known(names: &[StepName]) -> Plan {
        Plan { steps: names.iter().filter_map(|name| registry::step(name.as_str())).collect() }
    }

    /// Returns the steps in the order in which they run.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &dyn Step> {
        self.steps.iter().map(AsRef::as_ref)
    }

    /// Returns the names of the steps in the order in which they run.
    pub fn names(&self) -> Vec<StepName> {
        self.steps().map(|step| StepName::from(step.name())).collect()
    }

    /// Keeps only the steps of `phases`. Keeps all steps if `phases` is empty.
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
        f.debug_struct("Plan").field("steps", &self.names()).finish()
    }
}
