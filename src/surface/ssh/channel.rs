//! One channel: bytes from the client into a pipe, bytes from two pipes to the client, and the end in the right order.
//!
//! The connection's own task must never wait for one channel, or all channels of the connection would wait with it. So input is
//! queued here, and a full queue closes the client's window; output waits for the client's window in this channel's own tasks.

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
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::{Desk, ExecCall, ExecIo, ExecRequest, Identity, Tty};

/// The receive window of a channel, in bytes.
pub(super) const WINDOW: u32 = 2 * 1024 * 1024;
/// Queued input from which the window is not opened again.
pub(super) const INPUT_HIGH: usize = 1024 * 1024;
/// Queued input that only a client which disregards its window, or several uploads over one connection beside a stuck one, reach.
pub(super) const INPUT_MAX: usize = 16 * 1024 * 1024;

/// What a chunk costs besides its bytes: it lies on the heap by itself. Else chunks of one byte would take many times what is counted.
const CHUNK_COST: usize = 64;

const PIPE_SIZE: usize = 1024 * 1024;
const READ_FIRST: usize = 16 * 1024;
const READ_LARGE: usize = 256 * 1024;
/// How long output is waited for after the request has ended, when something it left behind still holds the pipe.
const LINGER: Duration = Duration::from_secs(5);
/// The exit status of a request that panicked.
const STATUS_BUG: u32 = 70;
/// The exit status of what could not be understood.
pub(super) const STATUS_USAGE: u32 = 2;
/// The exit status of what is not done, for now or for this key.
pub(super) const STATUS_REFUSED: u32 = 3;
const STDERR: u32 = 1;
const CTRL_C: u8 = 3;
const CTRL_D: u8 = 4;

/// What the connection's task and the channel's tasks share.
pub(super) struct Shared {
    pub(super) input: Input,
    /// The client cannot receive any more.
    pub(super) gone: CancellationToken,
    /// The request should end: gone, or interrupted.
    pub(super) stop: CancellationToken,
    finished: AtomicBool,
}

impl Shared {
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
    /// What the chunks cost, in bytes.
    cost: usize,
    ended: bool,
    discard: bool,
}

impl Input {
    /// Adds what arrived; false if it does not fit.
    pub(super) fn push(&self, data: &[u8]) -> bool {
        let mut queue = self.queue.lock();
        if queue.discard || queue.ended || data.is_empty() {
            return true;
        }
        let cost = queue.cost.saturating_add(cost_of(data));
        if cost > INPUT_MAX {
            return false;
        }
        queue.cost = cost;
        queue.chunks.push_back(Bytes::copy_from_slice(data));
        drop(queue);
        self.arrived.notify_one();
        true
    }

    /// Waits until something was taken out.
    pub(super) async fn room(&self) {
        self.taken.notified().await;
    }

    pub(super) fn is_high(&self) -> bool {
        self.queue.lock().cost >= INPUT_HIGH
    }

    pub(super) fn end(&self) {
        self.queue.lock().ended = true;
        self.arrived.notify_one();
    }

    /// Nobody reads any more: what comes is dropped.
    pub(super) fn discard(&self) {
        let mut queue = self.queue.lock();
        queue.discard = true;
        queue.cost = 0;
        queue.chunks = VecDeque::new();
        drop(queue);
        self.taken.notify_one();
    }

    /// The next chunk, none at the end.
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

/// What a channel needs to carry out a request.
pub(super) struct Job {
    pub(super) desk: Arc<dyn Desk>,
    pub(super) identity: Identity,
    pub(super) request: ExecRequest,
    pub(super) git_protocol: Option<String>,
    pub(super) tty: Option<Tty>,
    pub(super) source: std::net::IpAddr,
}

/// Carries out a request and closes the channel.
pub(super) async fn run(write: ChannelWriteHalf<Msg>, shared: Arc<Shared>, job: Job) {
    let bulk = matches!(job.request, ExecRequest::Git { .. });
    let pipes = Pipes::open(bulk);
    let (pipes, stdin, stdout, stderr) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => {
            tracing::error!(%error, "cannot make pipes for a request");
            let text = format!("larder: the server cannot start the request now ({error}); try again\n");
            return refuse(&write, &shared, &text, STATUS_BUG).await;
        }
    };
    // Git's bytes are never touched; text for a terminal in raw mode needs carriage returns.
    let terminal = job.tty.is_some() && !bulk;
    let call = ExecCall {
        identity: job.identity,
        request: job.request,
        git_protocol: job.git_protocol,
        tty: job.tty,
        source: job.source,
        io: ExecIo { stdin, stdout, stderr, gone: shared.stop.clone() },
    };
    let desk = job.desk;
    // A task of its own: its panic is not ours, and it goes on when the client is gone.
    let work = tokio::spawn(async move { desk.exec(call).await });
    let feeding = tokio::spawn(feed(pipes.stdin, Arc::clone(&shared), terminal));
    let ended = CancellationToken::new();
    let status = async {
        let status = work.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request panicked");
            STATUS_BUG
        });
        ended.cancel();
        status
    };
    let output = forward(pipes.stdout, &write, None, &shared, &ended, terminal);
    let errors = forward(pipes.stderr, &write, Some(STDERR), &shared, &ended, terminal);
    let (status, (), ()) = tokio::join!(status, output, errors);
    feeding.abort();
    shared.input.discard();
    finish(&write, &shared, status).await;
}

/// Answers a request that is not carried out.
pub(super) async fn refuse_request(write: ChannelWriteHalf<Msg>, shared: Arc<Shared>, text: String, status: u32) {
    shared.input.discard();
    refuse(&write, &shared, &text, status).await;
}

async fn refuse(write: &ChannelWriteHalf<Msg>, shared: &Shared, text: &str, status: u32) {
    let told = write.extended_data_bytes(STDERR, Bytes::copy_from_slice(text.as_bytes()));
    tokio::select! {
        _ = told => {}
        () = shared.gone.cancelled() => {}
    }
    finish(write, shared, status).await;
}

/// Exit status, end of data, close: clients rely on this order.
async fn finish(write: &ChannelWriteHalf<Msg>, shared: &Shared, status: u32) {
    let goodbye = async {
        write.exit_status(status).await?;
        write.eof().await?;
        write.close().await
    };
    tokio::select! {
        // An error means that the connection has ended; then there is nobody to tell.
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
    /// Our ends, and the request's ends: input, output, errors.
    fn open(bulk: bool) -> io::Result<(Self, OwnedFd, OwnedFd, OwnedFd)> {
        let (stdin, to_stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from_stdout, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (from_stderr, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        if bulk {
            for end in [&to_stdin, &from_stdout] {
                // Refused when the user has many pipes already; the default size works too.
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

/// Moves queued input into the pipe.
async fn feed(mut pipe: pipe::Sender, shared: Arc<Shared>, terminal: bool) {
    let moving = async {
        while let Some(mut chunk) = shared.input.next().await {
            let mut last = false;
            if terminal && let Some(at) = chunk.iter().position(|c| matches!(*c, CTRL_C | CTRL_D)) {
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
    // The request reads its end of input now; should the client send more, nobody wants it.
    shared.input.discard();
}

/// Moves output to the client until all of it was taken.
async fn forward(
    mut pipe: pipe::Receiver,
    write: &ChannelWriteHalf<Msg>,
    stream: Option<u32>,
    shared: &Shared,
    ended: &CancellationToken,
    terminal: bool,
) {
    let mut buffer = BytesMut::new();
    let mut size = READ_FIRST;
    let mut after_return = false;
    // Once for all output: else whatever still holds the pipe would only have to say a word now and then.
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
            // What the request itself has left in the pipe is for the client, however slowly it takes it.
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
        if terminal {
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

/// `\n` as `\r\n`, unless it is that already.
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
    fn terminals_get_carriage_returns_once() {
        let mut state = false;
        assert_eq!(&with_returns(b"a\nb\r\nc\r", &mut state)[..], b"a\r\nb\r\nc\r");
        assert_eq!(&with_returns(b"\n\n", &mut state)[..], b"\n\r\n");
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_ends() {
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
    fn tiny_chunks_count_for_what_they_take() {
        let input = Input::default();
        for _ in 0..1_000_000 {
            assert!(input.push(b""));
        }
        assert!(input.queue.lock().chunks.is_empty());
        let taken = (0..).take_while(|_| input.push(b"x")).count();
        assert_eq!(taken, INPUT_MAX / (CHUNK_COST + 1));
    }
}
