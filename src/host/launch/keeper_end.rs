//! The keeper's end of the connection to a server. [`KeeperEnd`] receives requests, and queues messages until the server reads the
//! messages.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::wire::{self, LaunchFrame, LaunchReply, LaunchRequest, MAX_MESSAGE};

/// The maximum number of messages in the queue.
const MAX_WAITING: usize = 8192;

/// The keeper's end of the connection to a server.
#[derive(Debug)]
pub struct KeeperEnd {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

/// The result of one read of the connection.
#[derive(Debug)]
pub enum RequestReceived {
    /// A request and the descriptors of its message.
    Request(LaunchFrame<LaunchRequest>, Vec<OwnedFd>),
    /// No request has arrived yet.
    Empty,
    /// The server has closed its end of the connection, usually because the server exits.
    Closed,
}

impl KeeperEnd {
    /// Takes over a sequenced-packet socket whose other end belongs to a server.
    pub fn over(socket: OwnedFd) -> KeeperEnd {
        KeeperEnd { socket, waiting: VecDeque::new() }
    }

    /// Returns the socket. The keeper polls the socket for readability, and for writability while messages are queued.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Receives the next request without blocking.
    pub fn receive(&self) -> Result<RequestReceived, String> {
        let mut buffer = vec![0; MAX_MESSAGE];
        match wire::receive(&self.socket, &mut buffer) {
            Ok((0, _)) => Ok(RequestReceived::Closed),
            Ok((length, descriptors)) => {
                let frame = wire::decode(buffer.get(..length).unwrap_or_default())?;
                Ok(RequestReceived::Request(frame, descriptors))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(RequestReceived::Empty),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(RequestReceived::Closed),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Queues a message. A message that cannot be encoded is replaced by a refusal with the reason. Returns false if the queue is full.
    pub fn send(&mut self, seq: u64, body: LaunchReply, descriptor: Option<OwnedFd>) -> bool {
        let bytes = wire::encode(&LaunchFrame { seq, body })
            .or_else(|why| wire::encode(&LaunchFrame { seq, body: LaunchReply::Refused(why) }));
        match bytes {
            Ok(bytes) if self.waiting.len() < MAX_WAITING => self.waiting.push_back((bytes, descriptor)),
            _ => return false,
        }
        true
    }

    /// Returns true if the queue contains messages.
    pub fn has_unsent(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends queued messages until the socket is full.
    pub fn flush(&mut self) {
        while let Some((bytes, descriptor)) = self.waiting.front() {
            let beside: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            // If the socket is full, the next flush sends the message. If the connection is closed, the message has no reader.
            if wire::send(&self.socket, bytes, &beside).is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }
}
