//! The failure of a step, before the runner adds the phase.

use std::{error::Error, fmt};

use super::util::chain;
use crate::model::{Blame, Fault, Phase};

/// The reason why a step failed. The runner adds the phase of the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The party that has to act.
    pub blame: Blame,
    /// The reason in one line.
    pub why: String,
    /// Next steps, one per line.
    pub hints: Vec<String>,
}

impl Failure {
    /// Creates a failure that the project must fix.
    pub fn pusher(why: impl fmt::Display) -> Failure {
        Failure { blame: Blame::Pusher, why: why.to_string(), hints: Vec::new() }
    }

    /// Creates a failure of this machine. The reason is the whole chain of causes in one line.
    pub fn host(error: &(dyn Error + 'static)) -> Failure {
        Failure { blame: Blame::Host, why: chain(error), hints: Vec::new() }
    }

    /// Creates a failure that is a defect of larder itself.
    pub fn internal(why: impl fmt::Display) -> Failure {
        Failure { blame: Blame::Bug, why: why.to_string(), hints: Vec::new() }
    }

    /// Creates a failure without a party at fault, such as a cancel.
    pub fn blameless(why: impl fmt::Display) -> Failure {
        Failure { blame: Blame::Nobody, why: why.to_string(), hints: Vec::new() }
    }

    /// Combines several outcomes: `Ok` if all succeeded, else one failure with every reason, and with the blame and the hints of the first
    /// failure.
    pub fn all(outcomes: impl IntoIterator<Item = Result<(), Failure>>) -> Result<(), Failure> {
        let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        let why = failures.iter().map(|failure| failure.why.as_str()).collect::<Vec<_>>().join("; ");
        failures.into_iter().next().map_or(Ok(()), |first| Err(Failure { why, ..first }))
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hints.push(hint.to_string());
        self
    }

    /// Applies `redacted` to all texts.
    #[must_use]
    pub fn redacted(self, redacted: impl Fn(&str) -> String) -> Failure {
        let hints = self.hints.iter().map(|hint| redacted(hint)).collect();
        Failure { why: redacted(&self.why), hints, ..self }
    }

    /// Converts the failure into a fault of `phase`.
    pub fn in_phase(self, phase: Phase) -> Fault {
        Fault { phase, blame: self.blame, why: self.why, hints: self.hints }
    }
}
