//! The control socket: the local way to the desk.
//!
//! A client sends one message with its words and its own standard descriptors; the verb's output goes straight to them. It gets
//! back one byte, the exit code. Who may connect is a matter of the socket's file mode and of the peer's uid.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{
    screen::Screen,
    session::{self, Io},
};
use crate::control::{Caller, CommandError, Control, Kind};

/// The most bytes of one command.
const MESSAGE_MAX: usize = 64 * 1024;
/// The most clients at the same time.
const CLIENTS: usize = 64;
/// How many more are told that there are too many.
const TURNED_AWAY: usize = 16;
/// How long a client may take to say what it wants.
const QUESTION: Duration = Duration::from_secs(5);

/// What a client says.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// The words of the command line, without the program.
    pub words: Vec<String>,
}

/// Opens the control socket at `path`: from then on clients can call, and wait until [`serve`] answers.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers clients until `shutdown`. Root and the account that larder runs as may call.
pub async fn serve(listener: UnixListener, control: Control, shutdown: CancellationToken) {
    let (room, porch) = (Arc::new(Semaphore::new(CLIENTS)), Arc::new(Semaphore::new(TURNED_AWAY)));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket could not accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| peer.uid()).unwrap_or(u32::MAX);
        let own = rustix::process::geteuid().as_raw();
        if uid != own && uid != 0 {
            tracing::warn!(uid, "a stranger called the control socket");
            continue;
        }
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!("too many clients at the control socket");
            if let Ok(permit) = porch.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(QUESTION, turn_away(stream)).await;
                    drop(permit);
                });
            }
            continue;
        };
        let control = control.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, control).await {
                tracing::debug!(%error, "a client of the control socket went away");
            }
            drop(permit);
        });
    }
}

async fn answer(mut stream: UnixStream, control: Control) -> io::Result<()> {
    let (call, descriptors) = tokio::time::timeout(QUESTION, receive(&stream)).await??;
    let mut descriptors = descriptors.into_iter();
    let (Some(stdin), Some(stdout), Some(stderr)) = (descriptors.next(), descriptors.next(), descriptors.next()) else {
        return Err(io::Error::other("a client must hand over its three standard descriptors"));
    };
    let gone = CancellationToken::new();
    let io = Io { stdin, stdout, stderr, terminal: false, gone: gone.clone() };
    let mut end = [0_u8; 1];
    let code = {
        let verb = session::run(&control, &Caller::Operator, &call.words, io);
        tokio::pin!(verb);
        tokio::select! {
            code = &mut verb => code,
            // A client says nothing more; anything that arrives, the end above all, means that it is gone.
            _ = stream.read(&mut end) => {
                gone.cancel();
                verb.await
            }
        }
    };
    stream.write_all(&[code]).await
}

async fn turn_away(mut stream: UnixStream) -> io::Result<()> {
    let (_, descriptors) = receive(&stream).await?;
    let mut descriptors = descriptors.into_iter().skip(1);
    let (Some(stdout), Some(stderr)) = (descriptors.next(), descriptors.next()) else { return Ok(()) };
    let error = CommandError::new(Kind::Refused, format!("the server answers {CLIENTS} commands at the same time, and no more"))
        .hint("end one of them, such as `larder logs --follow`, and try again");
    Screen::new(stdout, stderr)?.err(&session::error_text(&error)).await?;
    stream.write_all(&[error.kind.exit_code()]).await
}

async fn receive(stream: &UnixStream) -> io::Result<(Call, Vec<OwnedFd>)> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (length, descriptors) = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let got = recvmsg(stream.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            let mut descriptors = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            Ok((got.bytes, descriptors))
        })
        .await?;
    let call = serde_json::from_slice(buffer.get(..length).unwrap_or_default()).map_err(io::Error::other)?;
    Ok((call, descriptors))
}

/// The client's side: sends the words and the descriptors, and waits for the exit code.
pub fn call(path: &Path, words: Vec<String>, descriptors: [BorrowedFd<'_>; 3]) -> io::Result<u8> {
    let mut stream = std::os::unix::net::UnixStream::connect(path)?;
    let message = serde_json::to_vec(&Call { words }).map_err(io::Error::other)?;
    if message.len() > MESSAGE_MAX {
        return Err(io::Error::other("the command is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&stream, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut code = [0_u8; 1];
    io::Read::read_exact(&mut stream, &mut code)?;
    let [code] = code;
    Ok(code)
}
