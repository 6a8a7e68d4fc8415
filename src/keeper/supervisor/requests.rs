//! Performs and answers the requests of the server.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use super::{
    super::{
        lifecycle::{LifecycleEvent, LifecycleState},
        table::Notice,
    },
    Supervisor,
};
use crate::host::launch::{
    RequestReceived,
    wire::{LaunchFrame, LaunchReply, LaunchRequest, MAX_GRACE},
};

/// The time limit for the exit of a server that has closed its connection.
const CLOSED_GRACE: Duration = Duration::from_secs(5);
/// The maximum number of requests that are performed before other events are handled.
const REQUESTS_AT_ONCE: usize = 64;

impl Supervisor {
    /// Performs at most [`REQUESTS_AT_ONCE`] requests.
    pub(super) fn on_requests(&mut self) {
        for _ in 0..REQUESTS_AT_ONCE {
            match self.server.as_ref().map(|server| server.connection.receive()) {
                Some(Ok(RequestReceived::Request(frame, descriptors))) => {
                    self.served = true;
                    self.transition(LifecycleEvent::Request, Duration::ZERO);
                    self.perform(frame, descriptors);
                }
                None | Some(Ok(RequestReceived::Empty)) => return,
                // The server closes its descriptors before it exits, and may write a last line to the log in between.
                Some(Ok(RequestReceived::Closed)) => {
                    self.server.iter_mut().for_each(|server| server.closed = true);
                    return self.kill_server = self.kill_server.or(Some(Instant::now() + CLOSED_GRACE));
                }
                Some(Err(why)) => {
                    tracing::error!(why, "cannot decode a request of the server; killing the server");
                    return self.server.iter().for_each(|server| server.process.kill());
                }
            }
        }
    }

    fn perform(&mut self, LaunchFrame { seq, body }: LaunchFrame<LaunchRequest>, descriptors: Vec<OwnedFd>) {
        if self.state == LifecycleState::Stopping && matches!(body, LaunchRequest::Register(_)) {
            return self.reply(seq, LaunchReply::Refused("larder is stopping".into()), None);
        }
        let done = |result: Result<(), String>| result.map_or_else(LaunchReply::Refused, |()| LaunchReply::Done);
        let reply = match body {
            LaunchRequest::Launch { launch, given } => return self.table.launch(seq, launch, given, descriptors),
            LaunchRequest::Supervised { after } => match self.table.supervised(after) {
                Some((process, output)) => return self.reply(seq, LaunchReply::Supervised(Some(process)), Some(output)),
                None => LaunchReply::Supervised(None),
            },
            LaunchRequest::Register(registration) => self.table.register(&registration).unwrap_or_else(LaunchReply::Refused),
            LaunchRequest::Unregister { project, environment } => done(self.table.unregister(project, environment)),
            LaunchRequest::End { id, now } => done(self.table.end(id, now)),
            LaunchRequest::Stop { id, grace } => done(self.table.stop(id, Duration::from_millis(grace.into()).min(MAX_GRACE))),
            LaunchRequest::ResetArea { environment, area, release, slot } => {
                self.table.reset_area(environment, area, release, slot).unwrap_or_else(LaunchReply::Refused)
            }
            LaunchRequest::QuotaUsage { project } => self.table.quota_usage(project).unwrap_or_else(LaunchReply::Refused),
            LaunchRequest::MoveTree { environment, from, to } => done(self.table.move_tree(environment, from, to)),
            LaunchRequest::Prewarm => return self.table.prewarm(),
            LaunchRequest::Capabilities => LaunchReply::Capabilities(self.table.capabilities()),
        };
        // The number 0 marks a request that expects no answer.
        if seq != 0 {
            self.reply(seq, reply, None);
        }
    }

    fn reply(&mut self, seq: u64, body: LaunchReply, descriptor: Option<OwnedFd>) {
        if let Some(server) = &mut self.server {
            server.send(seq, body, descriptor);
        }
    }

    /// Sends answers and events, as far as the server reads them.
    pub(super) fn flush(&mut self) {
        while let Some(notice) = self.table.next_notice() {
            match notice {
                Notice::Started { seq, id, writable, output } => self.reply(seq, LaunchReply::Started { id, writable }, output),
                Notice::Failed { seq, why } => self.reply(seq, LaunchReply::Refused(why), None),
                Notice::Event(event) => self.reply(0, LaunchReply::Event(event), None),
            }
        }
        if let Some(server) = &mut self.server {
            server.connection.flush();
        }
    }
}
