//! What a deployment's end says: to the pusher's screen, and in git's own line about the ref.

use super::{
    context::Deployment,
    history::Summary,
    lane::{Pending, Ticket},
    step::Failure,
};
use crate::model::{Fault, Live, Outcome, Phase};

/// The reason in git's line, `! [remote rejected] main -> main (reason)`; nothing for a success.
pub fn reason(outcome: &Outcome, previous: Option<&Live>) -> Option<String> {
    let still = match previous {
        Some(live) => format!("{} still live", live.number),
        None => String::from("nothing is live yet"),
    };
    match outcome {
        Outcome::Live { .. } => None,
        Outcome::Tried => Some(format!("it was only a trial; {still}")),
        Outcome::Refused { fault } | Outcome::RolledBack { fault } => Some(format!("{fault}; {still}")),
        Outcome::Stuck { fault, undo } => Some(format!("{fault}; putting back failed, the environment is frozen: {undo}")),
    }
}

/// What could not be put back in a stuck deployment.
pub fn stuck_reason(summary: &Summary) -> String {
    match &summary.outcome {
        Some(Outcome::Stuck { undo, .. }) => undo.clone(),
        _ => String::from("unknown"),
    }
}

/// The last lines of a transcript.
pub fn print(deployment: &Deployment, outcome: &Outcome) {
    let order = &deployment.order;
    let transcript = &deployment.transcript;
    let services = &deployment.services;
    match outcome {
        Outcome::Live { number, .. } => {
            let host = order.environment.hosts(services.config.domain.as_str()).into_iter().next().unwrap_or_default();
            transcript.title(&format!("{number} is live: {}", services.config.http.url(&host, services.http.port())));
            if let Some(previous) = &order.previous {
                let target = order.environment.target();
                transcript.detail(&format!("to go back to {0}: larder rollback {target} {0}", previous.number));
            }
        }
        Outcome::Tried => {
            let still = order.previous.as_ref().map_or(String::from("nothing is"), |live| format!("{} is still", live.number));
            let phases = order.trial().unwrap_or_default();
            transcript.title(&format!("{phases} went well. It was a trial, and was put back: {still} live."));
        }
        Outcome::Refused { .. } | Outcome::RolledBack { .. } => {
            let changed =
                if matches!(outcome, Outcome::Refused { .. }) { "Nothing was changed" } else { "Everything was put back" };
            match &order.previous {
                Some(live) => transcript.error(&format!("{changed}. {} is still live.", live.number)),
                None => transcript.error(&format!("{changed}. Nothing is live in {} yet.", order.environment.title())),
            }
            if order.trial().is_none() {
                transcript.error(&format!(
                    "To try the same commit again: push again, or `larder deploy {} --retry`.",
                    order.environment.target()
                ));
            }
        }
        Outcome::Stuck { undo, .. } => {
            transcript.error(&format!("{} is frozen: {undo}", order.environment.title()));
            transcript.error("Somebody who operates this server has to look at it; `larder status` says more.");
        }
    }
}

/// Tells a deployment that waited that a newer one took its place.
pub(super) fn superseded(old: &Pending, by: &Ticket) {
    let why = format!("superseded by the newer push of {}", by.request.commit.short());
    old.ticket.transcript.error(&why);
    old.ticket.transcript.close();
    let fault: Fault = Failure::nobody(why).in_phase(Phase::Gather);
    old.verdict.send_replace(Some(Outcome::Refused { fault }));
}
