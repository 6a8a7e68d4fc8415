//! The queue of the keeper's messages to the server.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, OwnedFd},
};

use super::wire::{self, LaunchFrame, LaunchReply};

/// The maximum number of queued messages.
const MAX_OUTBOX: usize = 8192;

/// The answers and events of the keeper that wait until the server reads them.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

impl Outbox {
    /// Queues a message. Returns false if the queue is full, or if the message cannot be encoded.
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
            // If the socket is full, the message is sent after the next poll. If the socket is broken, the server is about to exit.
            if wire::send(socket, bytes, &beside).is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }
}
