//! The messages between server and keeper: small postcard frames over a sequenced-packet socket, with descriptors beside them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::types::{Capabilities, Registration};
use crate::model::{Area, EnvId, Exit, Launch, ProcessId, ProjectId, ReleaseId, Slot};

/// Limit of one message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Limit of descriptors beside one message: job, report, three standard ones and eight more.
pub const MAX_DESCRIPTORS: usize = 13;
/// Limit of extra descriptors of a process.
pub const MAX_EXTRA: usize = 8;
/// Limit of a job, in bytes.
pub const MAX_JOB: u64 = 16 * 1024 * 1024;
/// The maximum time between the stop signal of a process and its kill, even if a recipe requests more.
pub const MAX_GRACE: Duration = Duration::from_secs(15 * 60);

/// A message with the number of its request; 0 for an event, and for a request without an answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct LaunchFrame<T> {
    /// The number of the request.
    pub seq: u64,
    /// The message.
    pub body: T,
}

/// The descriptors that accompany a launch, in this order, after the job.
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
    /// The number of descriptors from 5 on.
    pub extra: u8,
}

/// A request of the server. It holds only ids and enums, except in a registration.
#[derive(Debug, Serialize, Deserialize)]
pub enum LaunchRequest {
    /// Start a process.
    Launch {
        /// The process to start.
        launch: Launch,
        /// The descriptors beside this message.
        given: Given,
    },
    /// Return the first supervised process with a number above `after`.
    Supervised {
        /// The process of the previous answer.
        after: Option<ProcessId>,
    },
    /// Create the directories of a project or an environment.
    Register(Registration),
    /// Kill the processes of an environment or a project and remove its directories.
    Unregister {
        /// The project.
        project: ProjectId,
        /// The environment; `None` for the whole project.
        environment: Option<EnvId>,
    },
    /// Send SIGTERM to a process and its descendants, or kill them.
    End {
        /// The process.
        id: ProcessId,
        /// True to kill the process.
        now: bool,
    },
    /// Stop a supervised process permanently.
    Stop {
        /// The process.
        id: ProcessId,
        /// Milliseconds between the stop signal and the kill of the remaining processes; at most [`MAX_GRACE`].
        grace: u32,
    },
    /// Discard an area, to be deleted in the background, and create an empty one.
    ResetArea {
        /// The environment.
        environment: EnvId,
        /// The part of the environment.
        area: Area,
        /// The release, for a tree.
        release: Option<ReleaseId>,
        /// The slot, for a slot.
        slot: Option<Slot>,
    },
    /// Report which isolation and limits are in force.
    Capabilities,
    /// Give an installed tree the name of another release, which must have no tree.
    RenameTree {
        /// The environment.
        environment: EnvId,
        /// The release that the tree is named after now.
        from: ReleaseId,
        /// The release that the tree is named after the renaming.
        to: ReleaseId,
    },
    /// Prepare for launches that follow soon.
    Prewarm,
}

/// An answer or an event of the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum LaunchReply {
    /// The request succeeded and has no result.
    Done,
    /// The process was started. For a supervised process, the read end of its output accompanies the message.
    Started {
        /// Its number.
        id: ProcessId,
        /// True if the process can write every file at `/app`.
        writable: bool,
    },
    /// A supervised process, with the read end of its output; `None` after the last one.
    Supervised(Option<Supervised>),
    /// The isolation and the limits that are in force.
    Capabilities(Capabilities),
    /// The request was refused or failed, with the reason.
    Refused(String),
    /// Processes use the area; the request can be repeated.
    Busy {
        /// A process that uses it.
        why: String,
        /// Milliseconds until the last of these processes is killed, if all of them are being stopped.
        left: Option<u32>,
    },
    /// An event that belongs to no request.
    Event(ProcessEvent),
}

/// A supervised process, as the keeper reports it to a server that has just started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Supervised {
    /// Its number.
    pub id: ProcessId,
    /// The request that launched it.
    pub launch: Launch,
    /// True if the process is being stopped and has not exited yet.
    pub stopping: bool,
}

/// A change in the life of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEvent {
    /// The process and all its descendants have exited.
    Exited {
        /// The process.
        id: ProcessId,
        /// The exit status.
        exit: Exit,
        /// The number of restarts so far.
        restarts: u32,
        /// True if the process is not restarted; otherwise it is restarted after a pause.
        last: bool,
    },
    /// The process was restarted.
    Restarted {
        /// The process.
        id: ProcessId,
        /// The number of restarts so far.
        restarts: u32,
    },
}

/// Encodes a frame; fails if it exceeds [`MAX_MESSAGE`].
pub fn encode<T: Serialize>(frame: &LaunchFrame<T>) -> Result<Vec<u8>, String> {
    let bytes = postcard::to_stdvec(frame).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_MESSAGE {
        return Err(format!("the message has {} bytes (limit {MAX_MESSAGE})", bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a frame; trailing bytes are an error.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<LaunchFrame<T>, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((frame, [])) => Ok(frame),
        Ok((_, rest)) => Err(format!("{} trailing bytes", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends one packet without blocking.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the message was truncated")) }
}

/// Receives one packet without blocking; zero bytes mean that the other side has closed the connection.
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
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too large"));
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_round_trips_and_trailing_bytes_are_refused() {
        let frame = LaunchFrame { seq: 7, body: LaunchRequest::Supervised { after: Some(ProcessId(3)) } };
        let mut bytes = encode(&frame).unwrap();
        let back: LaunchFrame<LaunchRequest> = decode(&bytes).unwrap();
        assert!(back.seq == 7 && matches!(back.body, LaunchRequest::Supervised { after: Some(ProcessId(3)) }));
        bytes.push(0);
        assert!(decode::<LaunchRequest>(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_decode_or_are_refused() {
        for length in 0..64usize {
            for seed in 0..=255u8 {
                let bytes: Vec<u8> =
                    (0..length).map(|at| seed.wrapping_mul(31).wrapping_add((at as u8).wrapping_mul(seed))).collect();
                let _ = decode::<LaunchRequest>(&bytes);
            }
        }
    }
}
