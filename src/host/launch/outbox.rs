//! Messages that wait until the other side of a connection reads them.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
};

use super::wire::{self, LaunchFrame, LaunchReply};

/// The maximum number of answers and events that wait for the server to read them.
const MAX_OUTBOX: usize = 8192;

/// The answers and events of the keeper that wait for the server.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

impl Outbox {
    /// Queues a message. Returns false if too many wait.
    pub fn push(&mut self, seq: u64, body: LaunchReply, descriptor: Option<OwnedFd>) -> bool {
        let bytes = wire::encode(&LaunchFrame { seq, body })
            .or_else(|why| wire::encode(&LaunchFrame { seq, body: LaunchReply::Refused(why) }));
        match bytes {
            Ok(bytes) if self.waiting.len() < MAX_OUTBOX => self.waiting.push_back((bytes, descriptor)),
            _ => return false,
        }
        true
    }

    /// Returns true if no message waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends queued messages until the socket is full.
    pub fn flush(&mut self, socket: &OwnedFd) {
        while let Some((bytes, descriptor)) = self.waiting.front() {
            let beside: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            // A full socket is retried after the next poll. A broken socket means that the process is about to exit.
            if wire::send(socket, bytes, &beside).is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }
}
