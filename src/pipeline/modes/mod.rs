//! The plan of each mode: which steps, in which order.

mod cooking;
mod delivering;
mod recalling;

use super::{plan::Plan, step::Step};
use crate::model::{Mode, Origin};

/// The plan for a release that comes from `origin` to an environment with this mode.
pub fn plan(mode: Mode, origin: &Origin) -> Plan {
    let steps: Vec<Box<dyn Step>> = match (mode, origin) {
        // An environment of this mode cannot be created in this version; if one is found, nothing is done to it.
        (Mode::Editable, _) => Vec::new(),
        (Mode::Cooking, Origin::Commit) => cooking::steps(),
        // Whatever asks for it: production does not build.
        (Mode::Final, Origin::Commit) | (_, Origin::Store | Origin::Environment(_) | Origin::Remote(_)) => delivering::steps(),
        (_, Origin::Past) => recalling::steps(),
    };
    Plan::new(mode, steps)
}

/// Where what is pushed to an environment of this mode comes from.
pub fn usual_origin(mode: Mode) -> Origin {
    match mode {
        Mode::Editable | Mode::Cooking => Origin::Commit,
        Mode::Final => Origin::Store,
    }
}
