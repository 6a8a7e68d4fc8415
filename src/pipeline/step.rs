//! The smallest unit of work of a deployment, and how it fails.

use std::{error::Error, fmt, future::Future, pin::Pin, time::Duration};

use super::{context::Deployment, runner::seconds};
use crate::model::{Blame, Fault, Phase};

/// A boxed future, as a step returns it.
pub type Work<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// What a step holds while it works, as [`Step::admission`] returns it.
pub type Admission<'a> = Pin<Box<dyn Future<Output = Result<Vec<Box<dyn Send>>, Failure>> + Send + 'a>>;

/// Something a deployment does and can put back.
///
/// Both directions may safely run twice, because a server that was killed cannot know how far a step got. `undo` must not need
/// what `run` failed to make, and must not fail for any reason but a broken machine: if it does, the environment is frozen and a
/// person is called.
pub trait Step: Send + Sync {
    /// `phase.word`; the name in the journal, in `larder plan` and in the fault tests.
    fn name(&self) -> &'static str;

    /// The phase that it belongs to.
    fn phase(&self) -> Phase;

    /// One line for `larder plan`.
    fn about(&self) -> &'static str;

    /// Whether its work outlives a power cut, so that its start has to be on the disk before it begins. What works in scratch
    /// directories and in memory only, or has nothing to do this time, says no: after a power cut there is nothing to put back.
    fn lasts(&self, deployment: &Deployment) -> bool {
        let _ = deployment;
        true
    }

    /// What it has to wait for before it begins, and holds until it has ended. Not counted in its time, and ended by a cancel.
    fn admission<'a>(&'a self, deployment: &'a Deployment) -> Admission<'a> {
        let _ = deployment;
        Box::pin(async { Ok(Vec::new()) })
    }

    /// How long it may take, and how it fails if it takes longer.
    fn limit(&self, deployment: &Deployment) -> (Duration, Failure) {
        let limit = deployment.time_limit(self.phase());
        let late = Failure::pusher(format!("took longer than {}", seconds(limit)));
        (limit, late.hint(format!("`timeouts: {{{}: ...}}` in larder.yml gives it more time", self.phase())))
    }

    /// Whether a cancel ends it in the middle. What is short, and leaves half a state behind if it is cut, says no; a cancel then
    /// counts from the next step on.
    fn interruptible(&self) -> bool {
        true
    }

    /// Does it.
    fn run<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a>;

    /// Puts it back.
    fn undo<'a>(&'a self, deployment: &'a mut Deployment) -> Work<'a> {
        let _ = deployment;
        Box::pin(async { Ok(()) })
    }
}

/// Why a step failed. The step does not know its phase; the runner adds that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Who has to act.
    pub blame: Blame,
    /// One line.
    pub why: String,
    /// What to do next.
    pub hints: Vec<String>,
}

impl Failure {
    /// The project has to change something.
    pub fn pusher(why: impl fmt::Display) -> Failure {
        Failure { blame: Blame::Pusher, why: why.to_string(), hints: Vec::new() }
    }

    /// This machine has to be looked at. The whole chain of causes becomes the one line.
    pub fn host(error: &(dyn Error + 'static)) -> Failure {
        Failure { blame: Blame::Host, why: chain(error), hints: Vec::new() }
    }

    /// Nobody did anything wrong.
    pub fn nobody(why: impl fmt::Display) -> Failure {
        Failure { blame: Blame::Nobody, why: why.to_string(), hints: Vec::new() }
    }

    /// Nothing where all went well, else one failure for all that did not.
    pub fn all(outcomes: impl IntoIterator<Item = Result<(), Failure>>) -> Result<(), Failure> {
        let failures: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        let why = failures.iter().map(|failure| failure.why.as_str()).collect::<Vec<_>>().join("; ");
        failures.into_iter().next().map_or(Ok(()), |first| Err(Failure { why, ..first }))
    }

    /// The same with a further hint.
    #[must_use]
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hints.push(hint.to_string());
        self
    }

    /// With its phase.
    pub fn in_phase(self, phase: Phase) -> Fault {
        Fault { phase, blame: self.blame, why: self.why, hints: self.hints }
    }
}

/// An error and everything behind it, joined with colons.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
