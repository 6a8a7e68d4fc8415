//! The messages between server and keeper: small postcard frames over a sequenced-packet socket, descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Capabilities, Registration};
use crate::model::{Area, EnvId, Exit, Launch, ProcessId, ProjectId, ReleaseId, Slot};

/// The most bytes of one message.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The most descriptors beside one message: job, report, three standard ones and eight more.
pub const MAX_DESCRIPTORS: usize = 13;
/// The most extra descriptors of a process.
pub const MAX_EXTRA: usize = 8;
/// The largest job, in bytes.
pub const MAX_JOB: u64 = 16 * 1024 * 1024;

/// A message and the number that ties an answer to its question; 0 for what was not asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame<T> {
    /// The question's number.
    pub seq: u64,
    /// The message.
    pub body: T,
}

/// Which descriptors accompany a launch, in this order, after the job.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Given {
    /// The write end of the report pipe.
    pub report: bool,
    /// Descriptor 0.
    pub stdin: bool,
    /// Descriptor 1.
    pub stdout: bool,
    /// Descriptor 2.
    pub stderr: bool,
    /// Descriptors 5 and up.
    pub extra: u8,
}

/// What the server asks. Ids and enums, except in a registration.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Start a process.
    Launch {
        /// What to start.
        launch: Launch,
        /// The descriptors beside this message.
        given: Given,
    },
    /// The first kept process with a number above `after`.
    Supervised {
        /// The one that was told last.
        after: Option<ProcessId>,
    },
    /// Make the directories of a project or an environment.
    Register(Registration),
    /// End and remove an environment or a project.
    Unregister {
        /// The project.
        project: ProjectId,
        /// The environment, or the whole project.
        environment: Option<EnvId>,
    },
    /// Send SIGTERM to a process and all that it started, or end them.
    End {
        /// The process.
        id: ProcessId,
        /// Not SIGTERM, but the end.
        now: bool,
    },
    /// End a kept process for good.
    Stop {
        /// The process.
        id: ProcessId,
        /// Milliseconds between its stop signal and the end of all that it started.
        grace: u32,
    },
    /// Put an area aside, to be deleted in the background, and make an empty one.
    ResetArea {
        /// The environment.
        environment: EnvId,
        /// Which part of it.
        area: Area,
        /// The release, for a tree.
        release: Option<ReleaseId>,
        /// The slot, for a slot.
        slot: Option<Slot>,
    },
    /// What is in force on this machine.
    Capabilities,
    /// Give an installed tree the name of another release, which must have no tree.
    RenameTree {
        /// The environment.
        environment: EnvId,
        /// The name that it has.
        from: ReleaseId,
        /// The name that it gets.
        to: ReleaseId,
    },
    /// Orders to start processes will come soon: time to get ready for them.
    Prewarm,
}

/// What the keeper answers or reports.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done, with nothing to tell.
    Done,
    /// Started; for a kept process the read end of its output comes along.
    Started {
        /// Its number.
        id: ProcessId,
        /// Whether everything at `/app` can be written by it.
        writable: bool,
    },
    /// One kept process, with the read end of its output, or none.
    Supervised(Option<(ProcessId, Launch)>),
    /// What is in force.
    Capabilities(Capabilities),
    /// Refused or failed, and why.
    Refused(String),
    /// Not an answer: something happened.
    Event(Event),
}

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// It and everything that it started have ended.
    Exited {
        /// The process.
        id: ProcessId,
        /// How.
        exit: Exit,
        /// How often it has been started again before.
        restarts: u32,
        /// Whether this was for good; otherwise it is started again after a pause.
        last: bool,
    },
    /// It has been started again.
    Restarted {
        /// The process.
        id: ProcessId,
        /// How often by now.
        restarts: u32,
    },
}

/// Encodes a frame; fails where it exceeds [`MAX_MESSAGE`].
pub fn encode<T: Serialize>(frame: &Frame<T>) -> Result<Vec<u8>, String> {
    let bytes = postcard::to_stdvec(frame).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_MESSAGE {
        return Err(format!("it has {} bytes; at most {MAX_MESSAGE} are allowed", bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a frame; trailing bytes are an error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Frame<T>, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((frame, [])) => Ok(frame),
        Ok((_, rest)) => Err(format!("{} bytes too many", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends one packet without waiting.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("a message was cut")) }
}

/// Receives one packet without waiting; no bytes mean that the other side has gone.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was too large"));
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_refuse_trailing_bytes() {
        let frame = Frame { seq: 7, body: Request::Supervised { after: Some(ProcessId(3)) } };
        let mut bytes = encode(&frame).unwrap();
        let back: Frame<Request> = decode(&bytes).unwrap();
        assert!(back.seq == 7 && matches!(back.body, Request::Supervised { after: Some(ProcessId(3)) }));
        bytes.push(0);
        assert!(decode::<Request>(&bytes).is_err());
    }

    #[test]
    fn any_bytes_decode_or_are_refused() {
        for length in 0..64usize {
            for seed in 0..=255u8 {
                let bytes: Vec<u8> =
                    (0..length).map(|at| seed.wrapping_mul(31).wrapping_add((at as u8).wrapping_mul(seed))).collect();
                let _ = decode::<Request>(&bytes);
            }
        }
    }
}
