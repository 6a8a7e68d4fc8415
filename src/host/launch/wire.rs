//! The messages between server and keeper. Each message is a small frame in the postcard format, sent over a sequenced-packet socket. Some
//! messages carry descriptors.

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
use crate::model::{Area, EnvId, Exit, Launch, ProcessId, ProjectId, ReleaseId, Slot, TreeName};

/// The maximum size of a message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The maximum number of descriptors of a message: the job, the report pipe, three standard descriptors and [`MAX_EXTRA`] extra
/// descriptors.
pub const MAX_DESCRIPTORS: usize = 13;
/// The maximum number of extra descriptors of a process.
pub const MAX_EXTRA: usize = 8;
/// The maximum size of a job, in bytes.
pub const MAX_JOB: u64 = 16 * 1024 * 1024;
/// The maximum time between the stop signal and the kill of a process. The limit also applies if a recipe requests a longer time.
pub const MAX_GRACE: Duration = Duration::from_secs(15 * 60);

/// A message with the number of its request.
#[derive(Debug, Serialize, Deserialize)]
pub struct LaunchFrame<T> {
    /// The number of the request. The number is 0 for an event and for a request that has no answer.
    pub seq: u64,
    /// The message.
    pub body: T,
}

/// The optional descriptors of a launch request. The message contains the descriptor of the job first, and then the optional descriptors in
/// the order of these fields.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Given {
    /// True if the write end of the report pipe is sent.
    pub report: bool,
    /// True if descriptor 0 of the process is sent.
    pub stdin: bool,
    /// True if descriptor 1 of the process is sent.
    pub stdout: bool,
    /// True if descriptor 2 of the process is sent.
    pub stderr: bool,
    /// The number of extra descriptors, which become descriptors 5 and higher.
    pub extra: u8,
}

/// A request of the server. Only [`LaunchRequest::Register`] contains names; the other requests contain ids, enums and labels.
#[derive(Debug, Serialize, Deserialize)]
pub enum LaunchRequest {
    /// Start a process.
    Launch {
        /// The process to start.
        launch: Launch,
        /// The descriptors that are sent with this message.
        given: Given,
    },
    /// Return the supervised process with the lowest number above `after`, or with the lowest number if `after` is `None`.
    Supervised {
        /// The process in the previous answer.
        after: Option<ProcessId>,
    },
    /// Create the directories of a project or an environment, and prepare the file system of the project.
    Register(Registration),
    /// Kill the processes of an environment or a project, and remove the directories of the environment or project.
    Unregister {
        /// The project.
        project: ProjectId,
        /// The environment; `None` for the whole project.
        environment: Option<EnvId>,
    },
    /// Send SIGTERM or SIGKILL to a process and its descendants.
    End {
        /// The process.
        id: ProcessId,
        /// True to send SIGKILL; false to send SIGTERM.
        now: bool,
    },
    /// Stop a supervised process permanently.
    Stop {
        /// The process.
        id: ProcessId,
        /// Milliseconds between the stop signal and the kill of the remaining processes; at most [`MAX_GRACE`].
        grace: u32,
    },
    /// Replace an area by an empty directory, and delete the old content in the background.
    ResetArea {
        /// The environment.
        environment: EnvId,
        /// The area to reset.
        area: Area,
        /// The release, for [`Area::Tree`].
        release: Option<ReleaseId>,
        /// The slot, for [`Area::Slot`].
        slot: Option<Slot>,
    },
    /// Report the isolation and the limits that the keeper can enforce.
    Capabilities,
    /// Report the space that the kernel counts for a project with a quota.
    QuotaUsage {
        /// The project.
        project: ProjectId,
    },
    /// Move a tree. The name `to` must be free.
    MoveTree {
        /// The environment.
        environment: EnvId,
        /// The name of the tree before the request.
        from: TreeName,
        /// The name of the tree after the request.
        to: TreeName,
    },
    /// Prepare for launches that follow soon.
    Prewarm,
}

/// An answer or an event of the keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum LaunchReply {
    /// The request succeeded and has no result.
    Done,
    /// The process was started. For a supervised process, the read end of its output pipe is sent with the message.
    Started {
        /// The number of the process.
        id: ProcessId,
        /// True if the process can write every file at `/app`.
        writable: bool,
    },
    /// A supervised process, with the read end of its output pipe; `None` after the last process.
    Supervised(Option<Supervised>),
    /// The isolation and the limits that the keeper can enforce.
    Capabilities(Capabilities),
    /// The bytes that the kernel counts for a project with a quota.
    QuotaUsage(u64),
    /// The reason why the request was refused or failed.
    Refused(String),
    /// The area was not reset because processes use the area, or a file system is being prepared. The request can be repeated.
    Busy {
        /// The reason, such as one process that uses the area.
        why: String,
        /// If all processes that use the area are being stopped: milliseconds until the last of these processes is killed. `None` if a
        /// process that is not being stopped uses the area.
        left: Option<u32>,
    },
    /// An event, which is not the answer to a request.
    Event(ProcessEvent),
}

/// The keeper's report of a supervised process to a server that has just started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Supervised {
    /// The number of the process.
    pub id: ProcessId,
    /// The request that launched the process.
    pub launch: Launch,
    /// True if the process is being stopped and has not exited yet.
    pub stopping: bool,
}

/// An exit or a restart of a process.
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
        /// True if the process is not restarted. False if the keeper restarts the process after a backoff.
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

/// Encodes a frame. Fails if the result has more than [`MAX_MESSAGE`] bytes.
pub fn encode<T: Serialize>(frame: &LaunchFrame<T>) -> Result<Vec<u8>, String> {
    let bytes = postcard::to_stdvec(frame).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_MESSAGE {
        return Err(format!("the message has {} bytes (limit {MAX_MESSAGE})", bytes.len()));
    }
    Ok(bytes)
}

/// Decodes a frame. Fails if bytes follow the frame.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<LaunchFrame<T>, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((frame, [])) => Ok(frame),
        Ok((_, rest)) => Err(format!("{} bytes follow the message", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends one packet without blocking.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message has too many descriptors"));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the message was truncated")) }
}

/// Receives one packet without blocking, and returns its length and descriptors. Length 0 means that the peer has closed the connection.
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
    fn frame_with_trailing_byte_is_refused() {
        let frame = LaunchFrame { seq: 7, body: LaunchRequest::Supervised { after: Some(ProcessId(3)) } };
        let mut bytes = encode(&frame).unwrap();
        let back: LaunchFrame<LaunchRequest> = decode(&bytes).unwrap();
        assert!(back.seq == 7 && matches!(back.body, LaunchRequest::Supervised { after: Some(ProcessId(3)) }));
        bytes.push(0);
        assert!(decode::<LaunchRequest>(&bytes).is_err());
    }

    #[test]
    fn decode_of_arbitrary_bytes_does_not_panic() {
        for length in 0..64usize {
            for seed in 0..=255u8 {
                let bytes: Vec<u8> =
                    (0..length).map(|at| seed.wrapping_mul(31).wrapping_add((at as u8).wrapping_mul(seed))).collect();
                let _ = decode::<LaunchRequest>(&bytes);
            }
        }
    }
}
