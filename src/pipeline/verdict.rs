//! The verdict: the last lines of a deployment's transcript, and the reason in git's line about the ref.

use super::{context::Deployment, transcript::Transcript};
use crate::model::{Fault, Live, Origin, Outcome};

/// The beginning of the hint of a deployment whose upgrade changed the data, and whose unwinding did not restore the data.
pub const UNRESTORED: &str = "the data is not restored, because visitors may have written since";

/// Returns the hint that names the command that restores the data, if a failed deployment did not restore the data.
pub fn unrestored(outcome: &Outcome) -> Option<&str> {
    let (Outcome::RolledBack { fault } | Outcome::Refused { fault } | Outcome::Stuck { fault, .. }) = outcome else {
        return None;
    };
    fault.hints.iter().map(String::as_str).find(|hint| hint.starts_with(UNRESTORED))
}

/// Returns the reason in git's line, `! [remote rejected] main -> main (reason)`; `None` for a success.
pub fn reason(outcome: &Outcome, previous: Option<&Live>) -> Option<String> {
    let still = match previous {
        Some(live) => format!("{} still live", live.number),
        None => String::from("nothing is live yet"),
    };
    match outcome {
        Outcome::Live { .. } => None,
        Outcome::Tried => Some(format!("the deployment was a dry run; {still}")),
        Outcome::Refused { fault } | Outcome::RolledBack { fault } => {
            let data = unrestored(outcome).map_or("", |_| "; the data is not restored");
            Some(format!("{fault}; {still}{data}"))
        }
        Outcome::Stuck { fault, undo } => Some(format!("{fault}; reverting failed, the environment is frozen: {undo}")),
    }
}

/// Prints the reason of a failure with its hints.
pub(super) fn print_fault(transcript: &Transcript, why: &str, fault: &Fault) {
    transcript.error(why);
    for hint in &fault.hints {
        transcript.error(&format!("hint: {hint}"));
    }
}

/// Prints the last lines of a transcript.
pub fn print(deployment: &Deployment, outcome: &Outcome) {
    let spec = &deployment.spec;
    let transcript = &deployment.transcript;
    let services = &deployment.services;
    match outcome {
        Outcome::Live { number, .. } => {
            let host = deployment.environment.hosts(services.config.domain.as_str()).into_iter().next().unwrap_or_default();
            transcript.title(&format!("{number} is live: {}", services.config.http.url(&host, services.http.port())));
            if let Some(configuration) = &spec.configuration {
                let pillar = spec.pillar.as_ref().map(|commit| format!(", pillar {}", commit.short())).unwrap_or_default();
                transcript.detail(&format!("with configuration {}{pillar}", configuration.number));
            }
            if let Some(previous) = &spec.previous {
                let target = deployment.environment.target();
                transcript.detail(&format!("to go back to {0}: larder rollback {target} {0}", previous.number));
            }
        }
        Outcome::Tried => {
            let still = spec.previous.as_ref().map_or(String::from("nothing is"), |live| format!("{} is still", live.number));
            let phases = spec.dry_run_phases().unwrap_or_default();
            transcript.title(&format!("dry run of {phases} succeeded; all changes were reverted: {still} live"));
        }
        Outcome::Refused { .. } | Outcome::RolledBack { .. } => {
            let unrestored = unrestored(outcome);
            let changed = match outcome {
                Outcome::Refused { .. } => "Nothing was changed",
                _ if unrestored.is_some() => "The code was reverted, but not the data",
                _ => "All changes were reverted",
            };
            match &spec.previous {
                Some(live) => transcript.error(&format!("{changed}. {} is still live.", live.number)),
                None => transcript.error(&format!("{changed}. Nothing is live in {} yet.", deployment.environment.title())),
            }
            if let Some(unrestored) = unrestored {
                transcript.error(&format!("hint: {unrestored}"));
            }
            // A changed configuration is tried again by the command or the push that changed it.
            if spec.dry_run_phases().is_none() && spec.origin != Origin::Configuration {
                transcript.error(&format!(
                    "To try the same commit again: push again, or `larder deploy {} --retry`.",
                    deployment.environment.target()
                ));
            }
        }
        Outcome::Stuck { undo, .. } => {
            transcript.error(&format!("{} is frozen: {undo}", deployment.environment.title()));
            transcript.error(&format!(
                "Ask an operator of this server to correct the problem, then to run `larder deploy {} --unfreeze`.",
                deployment.environment.target()
            ));
        }
    }
}
