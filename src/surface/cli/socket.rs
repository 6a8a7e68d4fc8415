//! The control socket: the local program sends the words of a command with its three standard descriptors, and receives the exit status.
//!
//! A request consists of a length and a message. The length has four bytes, in big endian. The message is a [`Call`] as JSON. The
//! descriptors are sent together with the length. The answer is one byte, the exit status. If the client has sent a terminal and the
//! command runs in a pseudo-terminal, a byte with the descriptor of the master precedes the answer. The socket's file mode and the peer's uid decide
//! who may connect.

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
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
    sync::{Semaphore, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    paint::Colours,
    session::{self, Io, LocalTerminal, Screen},
};
use crate::{
    control::{Caller, CommandError, Control, ErrorKind},
    model::ClientTerminal,
};

/// The maximum size of a message in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// The maximum number of clients that are served at the same time.
const MAX_CLIENTS: usize = 64;
/// The maximum number of rejected clients to which errors are sent at the same time. Further clients are disconnected without an error.
const MAX_REJECTIONS: usize = 16;
/// The time that a client may take to send its message.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The message of a client.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    /// The words of the command line, without the program's name.
    words: Vec<String>,
    /// The streams of the client whose text has colours.
    #[serde(default)]
    colours: Colours,
    /// The terminal of the client, if the command may run in a pseudo-terminal.
    #[serde(default)]
    terminal: Option<ClientTerminal>,
}

/// The standard descriptors of a client.
struct Descriptors {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Opens the control socket at `path`. After this call, clients can connect, and wait until [`serve`] answers.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Serves clients until `shutdown` is cancelled. Only root and the account that larder runs as are served.
pub async fn serve(listener: UnixListener, control: Control, shutdown: CancellationToken) {
    let (clients, rejections) = (Arc::new(Semaphore::new(MAX_CLIENTS)), Arc::new(Semaphore::new(MAX_REJECTIONS)));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| peer.uid()).unwrap_or(u32::MAX);
        let own = rustix::process::geteuid().as_raw();
        if uid != own && uid != 0 {
            tracing::warn!(uid, "refused a client of the control socket with another uid");
            continue;
        }
        let Ok(permit) = clients.clone().try_acquire_owned() else {
            tracing::warn!("too many clients of the control socket");
            if let Ok(permit) = rejections.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(REQUEST_TIMEOUT, reject(stream)).await;
                    drop(permit);
                });
            }
            continue;
        };
        let control = control.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, control).await {
                tracing::debug!(%error, "a client of the control socket disconnected");
            }
            drop(permit);
        });
    }
}

async fn answer(mut stream: UnixStream, control: Control) -> io::Result<()> {
    let (call, descriptors) = tokio::time::timeout(REQUEST_TIMEOUT, receive(&mut stream)).await??;
    let Descriptors { stdin, stdout, stderr } = descriptors;
    let call = match call {
        Ok(call) => call,
        Err(error) => {
            let code = Screen::new(stdout, stderr, Colours::default())?.refuse(&error).await?;
            return stream.write_all(&[code]).await;
        }
    };
    let gone = CancellationToken::new();
    let (master, mut opened) = oneshot::channel();
    let local_terminal = call.terminal.map(|given| {
        let terminal = ClientTerminal::new(given.term(), given.size, given.modes.clone());
        LocalTerminal { terminal, master }
    });
    let io = Io { stdin, stdout, stderr, terminal: None, local_terminal, colours: call.colours, gone: gone.clone() };
    let mut end = [0_u8; 1];
    let running = session::run(&control, &Caller::Operator, &call.words, io);
    tokio::pin!(running);
    let mut is_waiting = true;
    let code = loop {
        tokio::select! {
            code = &mut running => break code,
            master = &mut opened, if is_waiting => {
                is_waiting = false;
                if let Ok(master) = master {
                    pass(&stream, &master).await?;
                }
            }
            // A client sends nothing after its message. If this read returns, the client has disconnected.
            _ = stream.read(&mut end) => {
                gone.cancel();
                break running.await;
            }
        }
    };
    stream.write_all(&[code]).await
}

/// Passes the master of a pseudo-terminal to the client, with a byte that has no meaning.
async fn pass(stream: &UnixStream, master: &OwnedFd) -> io::Result<()> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [master.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        Ok(sendmsg(stream.as_fd(), &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    };
    stream.async_io(Interest::WRITABLE, send).await.map(drop)
}

async fn reject(mut stream: UnixStream) -> io::Result<()> {
    let (_, Descriptors { stdout, stderr, .. }) = receive(&mut stream).await?;
    let why = format!("cannot run the command: the server runs {MAX_CLIENTS} commands already (the limit)");
    let error = CommandError::new(ErrorKind::Refused, why).hint("end a command such as `larder logs --follow`, and try again");
    let code = Screen::new(stdout, stderr, Colours::default())?.refuse(&error).await?;
    stream.write_all(&[code]).await
}

/// Receives a client's descriptors and message. The outer error ends the connection; the inner error is an answer for the client.
async fn receive(stream: &mut UnixStream) -> io::Result<(Result<Call, CommandError>, Descriptors)> {
    let mut prefix = [0_u8; 4];
    let (received, descriptors) = receive_descriptors(stream, &mut prefix).await?;
    let mut descriptors = descriptors.into_iter();
    let (Some(stdin), Some(stdout), Some(stderr)) = (descriptors.next(), descriptors.next(), descriptors.next()) else {
        return Err(io::Error::other("a client must send its three standard descriptors"));
    };
    let descriptors = Descriptors { stdin, stdout, stderr };
    stream.read_exact(prefix.get_mut(received..).unwrap_or_default()).await?;
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_MESSAGE {
        let error = CommandError::new(
            ErrorKind::Usage,
            format!("{}, or the program and the server have different versions", too_long(length)),
        );
        return Ok((Err(error), descriptors));
    }
    let mut message = Vec::new();
    stream.take(length as u64).read_to_end(&mut message).await?;
    if message.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((Ok(serde_json::from_slice(&message).map_err(io::Error::other)?), descriptors))
}

/// Receives bytes into `buffer`, with the descriptors that were sent together with the bytes. Returns the number of bytes.
async fn receive_descriptors(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let receive = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(buffer)];
        let got = recvmsg(stream.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        Ok((got.bytes, descriptors))
    };
    stream.async_io(Interest::READABLE, receive).await
}

fn too_long(length: usize) -> String {
    format!("the command has {length} bytes; at most {MAX_MESSAGE} are accepted")
}

/// The reason why the client got no exit status from the server.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server cannot be reached, or stopped before it answered.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The command is longer than the server accepts.
    #[error("{}", too_long(*.0))]
    TooLong(usize),
}

/// Connects to the server at `path`.
pub fn connect(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(path)
}

/// Sends a command to a connected server. If the command runs in a pseudo-terminal, calls `show` with the master. Returns the exit status.
pub fn call(
    mut stream: std::os::unix::net::UnixStream,
    words: Vec<String>,
    colours: Colours,
    descriptors: [BorrowedFd<'_>; 3],
    terminal: Option<ClientTerminal>,
    show: impl FnOnce(OwnedFd) -> io::Result<()>,
) -> Result<u8, CallError> {
    let message = serde_json::to_vec(&Call { words, colours, terminal }).map_err(io::Error::other)?;
    let length = u32::try_from(message.len()).ok().filter(|length| *length as usize <= MAX_MESSAGE);
    let prefix = length.ok_or(CallError::TooLong(message.len()))?.to_be_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(&stream, &[IoSlice::new(&prefix)], &mut ancillary, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
    stream.write_all(prefix.get(sent..).unwrap_or_default())?;
    stream.write_all(&message)?;
    let mut code = [0_u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut code)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let received = received.map_err(io::Error::from)?.bytes;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    match descriptors.next().and_then(|mut rights| rights.next()) {
        Some(master) => {
            show(master)?;
            stream.read_exact(&mut code)?;
        }
        None if received == 0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        None => {}
    }
    let [code] = code;
    Ok(code)
}
