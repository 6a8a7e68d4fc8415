//! The plan of each mode: which steps, in which order.

mod cooking;

use super::{plan::Plan, step::Step};
use crate::model::{Environment, Mode};

/// The plan for a push to `environment`.
pub fn plan(environment: &Environment) -> Plan {
    let steps: Vec<Box<dyn Step>> = match environment.mode {
        // An environment of another mode cannot be created in this version; if one is found, nothing is done to it.
        Mode::Editable | Mode::Final => Vec::new(),
        Mode::Cooking => cooking::steps(),
    };
    Plan::new(environment.mode, steps)
}
