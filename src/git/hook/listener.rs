//! The server's side of the hook socket. The listener authenticates hooks and reads their requests. A session sends lines to its hook
//! without waiting, so that a client that does not read its output does not delay the deployment.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{
        UnixListener,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    registry::PushRegistry,
    wire::{
        ClientFrame, HookRequest, MAX_CHUNK, MAX_OPTION, MAX_OPTIONS, MAX_RECIPE_BYTES, MAX_RECIPE_COMMITS, MAX_REFS, RecipeFile,
        RefVerdict, ServerFrame, VERSION, is_refname, receive, send,
    },
};
use crate::{
    git::{libgit::is_quarantine, source::RecipeFiles},
    model::{CommitId, sanitise_line, sanitise_reason},
};

/// The maximum number of hooks that send their requests concurrently.
const MAX_CALLERS: usize = 64;
/// The timeout for a hook to send its request, or to read a refusal.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval of heartbeats to a hook that waits for its answer.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(20);
/// The maximum number of lines that are queued for a slow hook. Further lines are dropped and counted.
const MAX_LINES: usize = 2048;

/// The hook socket. Dropping the listener closes the socket; accepted sessions continue.
#[derive(Debug)]
pub struct Listener<T> {
    path: PathBuf,
    sessions: mpsc::Receiver<HookSession<T>>,
    acceptor: JoinHandle<()>,
}

impl<T: Clone + Send + Sync + 'static> Listener<T> {
    /// Creates the socket `path` with `mode` and listens on it. Rejects hooks without a token of `pushes`. If `expected_uid` is given,
    /// processes of all other users are rejected, too.
    pub fn bind(path: &Path, mode: u32, expected_uid: Option<u32>, pushes: PushRegistry<T>) -> io::Result<Listener<T>> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        let (found, sessions) = mpsc::channel(MAX_CALLERS);
        let acceptor = tokio::spawn(accept_all(listener, expected_uid, pushes, found));
        Ok(Listener { path: path.to_owned(), sessions, acceptor })
    }

    /// Waits for the next hook that sends a valid request. Returns `None` if the socket no longer accepts connections.
    pub async fn accept(&mut self) -> Option<HookSession<T>> {
        self.sessions.recv().await
    }
}

impl<T> Drop for Listener<T> {
    fn drop(&mut self) {
        self.acceptor.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept_all<T: Clone + Send + Sync + 'static>(
    listener: UnixListener,
    expected_uid: Option<u32>,
    pushes: PushRegistry<T>,
    found: mpsc::Sender<HookSession<T>>,
) {
    let permits = Arc::new(Semaphore::new(MAX_CALLERS));
    let mut callers = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = callers.join_next() => continue,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely, the process has too many open descriptors. During the pause, sessions can end and close their descriptors.
                tracing::warn!(%error, "cannot accept a connection on the hook socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| peer.uid()).ok();
        if expected_uid.is_some() && uid != expected_uid {
            tracing::warn!(?uid, "hook socket: connection from another user rejected");
            continue;
        }
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            tracing::warn!("hook socket: too many concurrent requests");
            continue;
        };
        let (pushes, found) = (pushes.clone(), found.clone());
        callers.spawn(async move {
            let (mut from, mut to) = stream.into_split();
            let asked = timeout(REQUEST_TIMEOUT, read_request(&mut from, &pushes)).await;
            match asked.unwrap_or_else(|_| Err(String::from("the hook did not send its request in time"))) {
                Ok((ticket, request)) => {
                    let _ = found.send(HookSession::start(ticket, request, from, to)).await;
                }
                Err(why) => {
                    tracing::warn!(%why, "hook socket: request rejected");
                    let _ = timeout(REQUEST_TIMEOUT, send(&mut to, &ServerFrame::Refused(why))).await;
                }
            }
            drop(permit);
        });
    }
}

/// Reads the whole request. Checks the token before it reads any other part of the request.
async fn read_request<T: Clone>(from: &mut OwnedReadHalf, pushes: &PushRegistry<T>) -> Result<(T, HookRequest), String> {
    let failed = |error: io::Error| format!("cannot read the hook's request: {error}");
    let ClientFrame::Hello { version, token, kind, atomic, quarantine } = receive(from).await.map_err(failed)? else {
        return Err(String::from("the hook's first message is not a greeting"));
    };
    if version != VERSION {
        return Err(format!(
            "the hook has protocol version {version}, and the server has version {VERSION}; restart the server after an upgrade"
        ));
    }
    let (ticket, redeemed) = pushes.redeem(&token, kind).ok_or("the push token belongs to no push in progress")?;
    let quarantine = quarantine.filter(|name| is_quarantine(name));
    let mut request =
        HookRequest { kind, refs: Vec::new(), bad_names: 0, options: Vec::new(), atomic, quarantine, recipes: Vec::new() };
    loop {
        match receive(from).await.map_err(failed)? {
            ClientFrame::Refs(refs) => {
                if let Some(bad) = refs.iter().find(|change| !is_refname(&change.refname)) {
                    return Err(format!("cannot accept the push: {:?} is not the name of a ref", sanitise_reason(&bad.refname)));
                }
                request.refs.extend(refs);
                if request.refs.len() > MAX_REFS {
                    return Err(format!(
                        "cannot accept the push: the push changes more than {MAX_REFS} refs; push them in smaller groups"
                    ));
                }
            }
            ClientFrame::BadNames(count) => request.bad_names = count,
            ClientFrame::Option(option) => {
                request.options.push(option);
                if request.options.len() > MAX_OPTIONS || request.options.iter().any(|option| option.len() > MAX_OPTION) {
                    return Err(format!(
                        "cannot accept the push: the push has more than {MAX_OPTIONS} options, or an option of more than {MAX_OPTION} bytes"
                    ));
                }
            }
            ClientFrame::RecipeOf(commit) => {
                request.recipes.push((commit, RecipeFiles::default()));
                if request.recipes.len() > MAX_RECIPE_COMMITS {
                    return Err(format!("the push has the recipes of more than {MAX_RECIPE_COMMITS} commits"));
                }
            }
            ClientFrame::Recipe { commit, file, part } => add_recipe(&mut request, commit, file, part)?,
            ClientFrame::Go => {
                redeemed.keep();
                return Ok((ticket, request));
            }
            ClientFrame::Refuse(why) => return Err(why),
            ClientFrame::Hello { .. } => return Err(String::from("the hook sent a second greeting")),
        }
    }
}

fn add_recipe(request: &mut HookRequest, commit: CommitId, file: RecipeFile, part: Vec<u8>) -> Result<(), String> {
    let sizes = request.recipes.iter_mut().flat_map(|(_, files)| {
        let RecipeFiles { larder_yml, procfile, app_json, buildpacks, pillar_sample } = files;
        [larder_yml, procfile, app_json, buildpacks, pillar_sample].map(|content| content.as_ref().map_or(0, Vec::len))
    });
    let bytes = sizes.sum::<usize>().saturating_add(part.len());
    if bytes > MAX_RECIPE_BYTES {
        return Err(format!("the recipes of the push are too large (expected at most {MAX_RECIPE_BYTES} bytes)"));
    }
    if let Some((_, files)) = request.recipes.iter_mut().find(|(known, _)| *known == commit) {
        file.of(files).get_or_insert_default().extend(part);
    }
    Ok(())
}

/// A hook that waits for its answer. Dropping the session without an answer refuses the push.
#[derive(Debug)]
pub struct HookSession<T> {
    /// The ticket that was given to [`PushRegistry::issue`] for this push.
    pub ticket: T,
    /// The request.
    pub request: HookRequest,
    frames: mpsc::Sender<ServerFrame>,
    left_out: AtomicU64,
    gone: watch::Receiver<bool>,
    writer: JoinHandle<()>,
}

impl<T> HookSession<T> {
    fn start(ticket: T, request: HookRequest, mut from: OwnedReadHalf, to: OwnedWriteHalf) -> HookSession<T> {
        let (frames, queue) = mpsc::channel(MAX_LINES);
        let (ended, gone) = watch::channel(false);
        let left_out = AtomicU64::new(0);
        let writer = tokio::spawn(async move {
            tokio::select! {
                // A hook sends nothing after its request. Any message, or the end of the stream, means that the hook has exited.
                _ = receive::<ClientFrame>(&mut from) => {}
                () = write_all(to, queue) => {}
            }
            let _ = ended.send(true);
        });
        HookSession { ticket, request, frames, left_out, gone, writer }
    }

    /// Sends a line to the pusher, sanitised for terminals. This method never waits: if the hook reads too slowly, lines are dropped.
    pub fn line(&self, line: &str) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.frames.try_send(ServerFrame::Line(sanitise_line(line))) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns a future that completes when the hook exits or the session ends. The hook exits if the client disconnects.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut gone = self.gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Ends the session with success. For pre-receive, the push is accepted, and `verdicts` is empty. For proc-receive, `verdicts` has the
    /// verdict on each ref, and a ref without a verdict is refused.
    pub async fn finish(self, verdicts: Vec<(String, RefVerdict)>) {
        let clean = verdicts.into_iter().map(|(name, verdict)| match verdict {
            RefVerdict::Refused { reason } => (name, RefVerdict::Refused { reason: sanitise_reason(&reason) }),
            other => (name, other),
        });
        let clean: Vec<_> = clean.collect();
        let mut frames: Vec<ServerFrame> = clean.chunks(MAX_CHUNK).map(|chunk| ServerFrame::Verdicts(chunk.to_vec())).collect();
        frames.push(ServerFrame::Done);
        self.end(frames).await;
    }

    /// Accepts the push in pre-receive.
    pub async fn accept(self) {
        self.finish(Vec::new()).await;
    }

    /// Lets a push pass pre-receive although all of its refs will be refused, so that proc-receive can give each ref its own reason. The
    /// hook deletes the pushed objects in git's quarantine.
    pub async fn discard(self) {
        self.end(vec![ServerFrame::Discard]).await;
    }

    /// Refuses the whole push. The client prints `lines`. pre-receive also prints `reason`; proc-receive reports `reason` to git for each
    /// ref.
    pub async fn refuse(self, lines: &[String], reason: &str) {
        for line in lines {
            self.line(line);
        }
        self.end(vec![ServerFrame::Refused(sanitise_reason(reason))]).await;
    }

    async fn end(mut self, frames: Vec<ServerFrame>) {
        let missing = self.left_out.load(Ordering::Relaxed);
        let note = (missing > 0).then(|| ServerFrame::Line(format!("       (lines left out here: {missing})")));
        // There is no timeout, because a client that does not read for a while must still get the verdict. The wait ends when the hook
        // exits, and the hook exits when the client disconnects.
        for frame in note.into_iter().chain(frames) {
            if self.frames.send(frame).await.is_err() {
                return tracing::warn!("hook socket: the hook exited before its answer");
            }
        }
        // After the queue is closed, the writer writes the remaining frames and returns.
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.frames, closed));
        let _ = (&mut self.writer).await;
    }
}

impl<T> Drop for HookSession<T> {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

async fn write_all(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<ServerFrame>) {
    let mut beat = interval(HEARTBEAT_INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let frame = tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => frame,
                None => return,
            },
            _ = beat.tick() => ServerFrame::Beat,
        };
        if send(&mut to, &frame).await.is_err() {
            return;
        }
    }
}
