//! One channel of a connection. The client's input is copied into a pipe, and the output of two pipes is copied to the client. The channel
//! is closed in the order that clients expect.
//!
//! The connection's task must not wait for one channel, because all channels of the connection would wait, too. Input is therefore
//! queued, and a long queue keeps the client's window closed. Output waits for the client's window in tasks of the channel.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use russh::{ChannelWriteHalf, server::Msg};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    exec::{ExecRequest, GitService},
    handler::{ExecCall, ExecHandler, ExecIo, SshIdentity},
    terminal::{CTRL_C, ExecTerminal, TerminalMode},
};
use crate::git::{CommandCounter, PushCommands};

/// The receive window of a channel, in bytes.
pub(super) const WINDOW: u32 = 2 * 1024 * 1024;
/// The size of queued input, in bytes, from which on the window stays closed.
pub(super) const INPUT_HIGH: usize = 1024 * 1024;
/// The maximum size of queued input, in bytes. The queue reaches this size only if a client ignores its window, or if several uploads share
/// a connection with a stuck upload.
pub(super) const MAX_INPUT: usize = 16 * 1024 * 1024;

/// The memory that a queued chunk takes besides its data, in bytes. The size of the queue includes this memory, because a chunk of one byte
/// takes many times its size.
const CHUNK_COST: usize = 64;

const PIPE_SIZE: usize = 1024 * 1024;
const READ_FIRST: usize = 16 * 1024;
const READ_LARGE: usize = 256 * 1024;
/// The time for which output is read after the request has ended, if a remaining process of the request holds the pipe open.
const LINGER: Duration = Duration::from_secs(5);
/// The exit status of a request that panicked, or whose pipes cannot be created.
const STATUS_BUG: u32 = 70;
/// The exit status of a request that cannot be parsed.
pub(super) const STATUS_USAGE: u32 = 2;
/// The exit status of a request that is refused, temporarily or for this key.
pub(super) const STATUS_REFUSED: u32 = 3;
const STDERR: u32 = 1;
const CTRL_D: u8 = 4;

/// The state that the connection's task and the channel's tasks share.
pub(super) struct ChannelState {
    pub(super) input: Input,
    /// The token that is cancelled when the client can no longer receive data.
    pub(super) gone: CancellationToken,
    /// The token that is cancelled when the request should end, because the client disconnected or interrupted the request.
    pub(super) stop: CancellationToken,
    finished: AtomicBool,
}

impl ChannelState {
    pub(super) fn new() -> Arc<Self> {
        let gone = CancellationToken::new();
        Arc::new(Self { input: Input::default(), stop: gone.child_token(), gone, finished: AtomicBool::new(false) })
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::Acquire) || self.gone.is_cancelled()
    }
}

/// The queue between the connection's task and the input pipe.
#[derive(Default)]
pub(super) struct Input {
    queue: Mutex<Queue>,
    arrived: Notify,
    taken: Notify,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// The memory that the chunks take, in bytes.
    cost: usize,
    ended: bool,
    discard: bool,
}

impl Input {
    /// Queues data. Returns false if the queue has too little space for the data.
    pub(super) fn push(&self, data: &[u8]) -> bool {
        let mut queue = self.queue.lock();
        if queue.discard || queue.ended || data.is_empty() {
            return true;
        }
        let cost = queue.cost.saturating_add(cost_of(data));
        if cost > MAX_INPUT {
            return false;
        }
        queue.cost = cost;
        queue.chunks.push_back(Bytes::copy_from_slice(data));
        drop(queue);
        self.arrived.notify_one();
        true
    }

    /// Waits until a chunk was taken from the queue, or the queue was discarded.
    pub(super) async fn space_freed(&self) {
        self.taken.notified().await;
    }

    pub(super) fn is_high(&self) -> bool {
        self.queue.lock().cost >= INPUT_HIGH
    }

    pub(super) fn end(&self) {
        self.queue.lock().ended = true;
        self.arrived.notify_one();
    }

    /// Drops all queued and all further input.
    pub(super) fn discard(&self) {
        let mut queue = self.queue.lock();
        queue.discard = true;
        queue.cost = 0;
        queue.chunks = VecDeque::new();
        drop(queue);
        self.taken.notify_one();
    }

    /// Returns the next chunk, or `None` at the end of the input.
    async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut queue = self.queue.lock();
                if let Some(chunk) = queue.chunks.pop_front() {
                    queue.cost = queue.cost.saturating_sub(cost_of(&chunk));
                    drop(queue);
                    self.taken.notify_one();
                    return Some(chunk);
                }
                if queue.ended {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }
}

fn cost_of(chunk: &[u8]) -> usize {
    chunk.len().saturating_add(CHUNK_COST)
}

/// A request, with the data that its handler needs.
pub(super) struct Job {
    pub(super) handler: Arc<dyn ExecHandler>,
    pub(super) identity: SshIdentity,
    pub(super) request: ExecRequest,
    pub(super) git_protocol: Option<String>,
    pub(super) terminal: Option<ExecTerminal>,
    pub(super) colours: bool,
    pub(super) source: std::net::IpAddr,
}

/// Carries out a request and closes the channel.
pub(super) async fn run(write: ChannelWriteHalf<Msg>, shared: Arc<ChannelState>, job: Job) {
    let bulk = matches!(job.request, ExecRequest::Git { .. });
    let pipes = Pipes::open(bulk);
    let (pipes, stdin, stdout, stderr) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => {
            tracing::error!(%error, "cannot make pipes for a request");
            let text = format!("larder: cannot create pipes for the request: {error}; try again\n");
            return refuse(&write, &shared, &text, STATUS_BUG).await;
        }
    };
    // Git's bytes are passed on unchanged; text for a terminal in raw mode needs carriage returns.
    let mode = job.terminal.as_ref().filter(|_| !bulk).map(|terminal| terminal.mode.subscribe());
    let commands = PushCommands::default();
    let pushes = matches!(job.request, ExecRequest::Git { service: GitService::ReceivePack, .. });
    let counter = pushes.then(|| CommandCounter::new(commands.clone()));
    let call = ExecCall {
        identity: job.identity,
        request: job.request,
        git_protocol: job.git_protocol,
        terminal: job.terminal,
        colours: job.colours,
        source: job.source,
        io: ExecIo { stdin, stdout, stderr, gone: shared.stop.clone(), commands },
    };
    let handler = job.handler;
    // The request runs in its own task, so that a panic ends only this task and the request continues if the client disconnects.
    let work = tokio::spawn(async move { handler.exec(call).await });
    let feeding = tokio::spawn(feed(pipes.stdin, Arc::clone(&shared), mode.clone(), counter));
    let ended = CancellationToken::new();
    let status = async {
        let status = work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request panicked");
            STATUS_BUG
        });
        ended.cancel();
        status
    };
    let output = forward(pipes.stdout, &write, None, &shared, &ended, mode.as_ref());
    let errors = forward(pipes.stderr, &write, Some(STDERR), &shared, &ended, mode.as_ref());
    let (status, (), ()) = tokio::join!(status, output, errors);
    feeding.abort();
    shared.input.discard();
    finish(&write, &shared, status).await;
}

/// Sends the answer to a refused request.
pub(super) async fn refuse_request(write: ChannelWriteHalf<Msg>, shared: Arc<ChannelState>, text: String, status: u32) {
    shared.input.discard();
    refuse(&write, &shared, &text, status).await;
}

async fn refuse(write: &ChannelWriteHalf<Msg>, shared: &ChannelState, text: &str, status: u32) {
    let told = write.extended_data_bytes(STDERR, Bytes::copy_from_slice(text.as_bytes()));
    tokio::select! {
        _ = told => {}
        () = shared.gone.cancelled() => {}
    }
    finish(write, shared, status).await;
}

/// Sends exit status, end of data and close. Clients rely on this order.
async fn finish(write: &ChannelWriteHalf<Msg>, shared: &ChannelState, status: u32) {
    let goodbye = async {
        write.exit_status(status).await?;
        write.eof().await?;
        write.close().await
    };
    tokio::select! {
        // An error means that the connection has ended.
        _ = goodbye => {}
        () = shared.gone.cancelled() => {}
    }
    shared.finished.store(true, Ordering::Release);
}

struct Pipes {
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Pipes {
    /// Creates three pipes. Returns the server's ends of the pipes, then the request's ends: input, output, errors.
    fn open(bulk: bool) -> io::Result<(Self, OwnedFd, OwnedFd, OwnedFd)> {
        let (stdin, to_stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        if bulk {
            for end in [&to_stdin, &from_stdout] {
                // The kernel refuses a larger pipe if the user has many pipes already. The default size works, too.
                let _ = fcntl_setpipe_size(end, PIPE_SIZE);
            }
        }
        let ours = Self {
            stdin: pipe::Sender::from_owned_fd(to_stdin)?,
            stdout: pipe::Receiver::from_owned_fd(from_stdout)?,
            stderr: pipe::Receiver::from_owned_fd(from_stderr)?,
        };
        Ok((ours, stdin, stdout, stderr))
    }
}

/// Returns true if the channel processes lines of a terminal. The handler drops the sender of a mode that it does not decide.
fn has_lines(mode: Option<&watch::Receiver<TerminalMode>>) -> bool {
    mode.is_some_and(|mode| *mode.borrow() != TerminalMode::Raw)
}

/// Moves queued input into the pipe. With a terminal, the input waits until its mode is decided.
async fn feed(
    mut pipe: pipe::Sender,
    shared: Arc<ChannelState>,
    mut mode: Option<watch::Receiver<TerminalMode>>,
    mut counter: Option<CommandCounter>,
) {
    let moving = async {
        if let Some(mode) = &mut mode {
            // An error means that the request ended before it decided.
            let _ = mode.wait_for(|mode| *mode != TerminalMode::Undecided).await;
        }
        while let Some(mut chunk) = shared.input.next().await {
            // Commands are counted before git receives the bytes, so that the number is complete when git exits.
            if let Some(counter) = &mut counter {
                counter.feed(&chunk);
            }
            let mut last = false;
            if has_lines(mode.as_ref())
                && let Some(at) = chunk.iter().position(|c| matches!(*c, CTRL_C | CTRL_D))
            {
                if chunk.get(at) == Some(&CTRL_C) {
                    shared.stop.cancel();
                }
                chunk.truncate(at);
                last = true;
            }
            if pipe.write_all(&chunk).await.is_err() || last {
                break;
            }
        }
    };
    tokio::select! {
        () = moving => {}
        () = shared.gone.cancelled() => {}
    }
    // The input of the request ends here. Further input of the client is dropped.
    shared.input.discard();
}

/// Sends the bytes of a pipe to the client until all writers have closed the pipe, or until [`LINGER`] after the end of the request.
async fn forward(
    mut pipe: pipe::Receiver,
    write: &ChannelWriteHalf<Msg>,
    stream: Option<u32>,
    shared: &ChannelState,
    ended: &CancellationToken,
    mode: Option<&watch::Receiver<TerminalMode>>,
) {
    let mut buffer = BytesMut::new();
    let mut size = READ_FIRST;
    let mut after_return = false;
    // The limit applies to all reads together. With a limit for each read, a process that writes to the pipe could keep the channel open
    // forever.
    let given_up = async {
        ended.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::pin!(given_up);
    let (mut is_over, mut late) = (false, 0_usize);
    loop {
        buffer.reserve(size);
        let count = tokio::select! {
            biased;
            () = shared.gone.cancelled() => return,
            // The output that the request itself left in the pipe is sent, even if the client reads the output slowly.
            () = &mut given_up, if !is_over => {
                is_over = true;
                continue;
            }
            count = pipe.read_buf(&mut buffer) => count,
            () = std::future::ready(()), if is_over => return,
        };
        if is_over {
            late = late.saturating_add(*count.as_ref().unwrap_or(&0));
            if late > PIPE_SIZE {
                return;
            }
        }
        match count {
            Ok(0) => return,
            Ok(count) if count >= READ_FIRST => size = READ_LARGE,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot read a request's output");
                return;
            }
        }
        let mut data = buffer.split().freeze();
        if has_lines(mode) {
            data = with_returns(&data, &mut after_return);
        }
        let sent = async {
            match stream {
                None => write.data_bytes(data).await,
                Some(stream) => write.extended_data_bytes(stream, data).await,
            }
        };
        tokio::select! {
            sent = sent => if sent.is_err() {
                // The connection has ended.
                shared.gone.cancel();
                return;
            },
            () = shared.gone.cancelled() => return,
        }
    }
}

/// Replaces `\n` by `\r\n`, but keeps every `\r\n`. `after_return` is true if the previous byte of the stream was `\r`.
fn with_returns(data: &[u8], after_return: &mut bool) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len().saturating_add(64));
    for &byte in data {
        if byte == b'\n' && !*after_return {
            out.extend_from_slice(b"\r");
        }
        out.extend_from_slice(&[byte]);
        *after_return = byte == b'\r';
    }
    out.freeze()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn newline_gets_one_carriage_return() {
        let mut state = false;
        assert_eq!(&with_returns(b"a\nb\r\nc\r", &mut state)[..], b"a\r\nb\r\nc\r");
        assert_eq!(&with_returns(b"\n\n", &mut state)[..], b"\n\r\n");
    }

    #[tokio::test]
    async fn input_queue_is_bounded_and_ends() {
        let input = Input::default();
        let chunk = vec![1; 1024 * 1024 - CHUNK_COST];
        for _ in 0..16 {
            assert!(input.push(&chunk));
        }
        assert!(!input.push(b"x") && input.is_high());
        assert_eq!(input.next().await.unwrap().len(), chunk.len());
        assert!(input.push(b"x"));
        input.discard();
        assert!(input.push(&chunk) && !input.is_high());
        input.end();
        assert_eq!(input.next().await, None);
    }

    #[test]
    fn tiny_chunks_count_with_their_overhead() {
        let input = Input::default();
        for _ in 0..1_000_000 {
            assert!(input.push(b""));
        }
        assert!(input.queue.lock().chunks.is_empty());
        let taken = (0..).take_while(|_| input.push(b"x")).count();
        assert_eq!(taken, MAX_INPUT / (CHUNK_COST + 1));
    }
}
