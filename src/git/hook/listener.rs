//! The daemon's side of the hook socket: checks who calls, assembles the question, and speaks to the hook without ever
//! waiting for it. A deployment does not stand still because a pusher's terminal does.

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
        CHUNK, ClientFrame, HookRequest, OPTION_LIMIT, OPTIONS_LIMIT, RECIPE_BYTES, RECIPE_COMMITS, REFS_LIMIT, RecipeFile,
        ServerFrame, VERSION, Verdict, is_refname, receive, send,
    },
};
use crate::{
    git::source::RecipeFiles,
    model::{CommitId, sanitise_line, sanitise_reason},
};

/// How many hooks may be asking at the same time.
const CALLERS: usize = 64;
/// How long a hook may take to put its question.
const QUESTION: Duration = Duration::from_secs(10);
/// How often a silent session shows that it is alive.
const BEAT: Duration = Duration::from_secs(20);
/// How many lines wait for a slow reader; more are left out, and counted.
const LINES: usize = 2048;

/// The hook socket. Dropping it closes the socket; sessions already accepted go on.
#[derive(Debug)]
pub struct Listener<T> {
    path: PathBuf,
    sessions: mpsc::Receiver<HookSession<T>>,
    acceptor: JoinHandle<()>,
}

impl<T: Clone + Send + Sync + 'static> Listener<T> {
    /// Listens at `path`, made with `mode`. Callers other than `expected_uid` are turned away, and all those without a token
    /// of `pushes`.
    pub fn bind(path: &Path, mode: u32, expected_uid: Option<u32>, pushes: PushRegistry<T>) -> io::Result<Listener<T>> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        let (found, sessions) = mpsc::channel(CALLERS);
        let acceptor = tokio::spawn(accept_all(listener, expected_uid, pushes, found));
        Ok(Listener { path: path.to_owned(), sessions, acceptor })
    }

    /// The next hook that has put a valid question.
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
    let room = Arc::new(Semaphore::new(CALLERS));
    let mut callers = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = callers.join_next() => continue,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others need time to give some back.
                tracing::warn!(%error, "the hook socket could not accept a caller");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let uid = stream.peer_cred().map(|peer| peer.uid()).ok();
        if expected_uid.is_some() && uid != expected_uid {
            tracing::warn!(?uid, "a stranger called the hook socket");
            continue;
        }
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!("too many hooks are asking at the same time");
            continue;
        };
        let (pushes, found) = (pushes.clone(), found.clone());
        callers.spawn(async move {
            let (mut from, mut to) = stream.into_split();
            let asked = timeout(QUESTION, question(&mut from, &pushes)).await;
            match asked.unwrap_or_else(|_| Err(String::from("the question took too long"))) {
                Ok((ticket, request)) => {
                    let _ = found.send(HookSession::start(ticket, request, from, to)).await;
                }
                Err(why) => {
                    tracing::warn!(%why, "a caller of the hook socket was turned away");
                    let _ = timeout(QUESTION, send(&mut to, &ServerFrame::Refused(why))).await;
                }
            }
            drop(permit);
        });
    }
}

/// Reads the whole question; the ticket is looked up before anything else is believed.
async fn question<T: Clone>(from: &mut OwnedReadHalf, pushes: &PushRegistry<T>) -> Result<(T, HookRequest), String> {
    let odd = |error: io::Error| format!("the hook's question could not be read: {error}");
    let ClientFrame::Hello { version, token, kind, atomic, quarantine } = receive(from).await.map_err(odd)? else {
        return Err(String::from("the hook did not introduce itself"));
    };
    if version != VERSION {
        return Err(format!("the hook speaks version {version}, this server {VERSION}; restart the server after an upgrade"));
    }
    let (ticket, redeemed) = pushes.redeem(&token, kind).ok_or("this is not the token of a push under way")?;
    let quarantine = quarantine.filter(|name| is_quarantine(name));
    let mut request =
        HookRequest { kind, refs: Vec::new(), bad_names: 0, options: Vec::new(), atomic, quarantine, recipes: Vec::new() };
    loop {
        match receive(from).await.map_err(odd)? {
            ClientFrame::Refs(refs) => {
                if let Some(bad) = refs.iter().find(|change| !is_refname(&change.refname)) {
                    return Err(format!("{:?} is not the name of a ref", sanitise_reason(&bad.refname)));
                }
                request.refs.extend(refs);
                if request.refs.len() > REFS_LIMIT {
                    return Err(format!("the push changes more than {REFS_LIMIT} refs; push them in smaller groups"));
                }
            }
            ClientFrame::BadNames(count) => request.bad_names = count,
            ClientFrame::Option(option) => {
                request.options.push(option);
                if request.options.len() > OPTIONS_LIMIT || request.options.iter().any(|option| option.len() > OPTION_LIMIT) {
                    return Err(format!("the push has more than {OPTIONS_LIMIT} options, or too long ones"));
                }
            }
            ClientFrame::Recipe { commit, file, part } => add_recipe(&mut request, commit, file, part)?,
            ClientFrame::Go => {
                redeemed.keep();
                return Ok((ticket, request));
            }
            ClientFrame::Refuse(why) => return Err(why),
            ClientFrame::Hello { .. } => return Err(String::from("the hook introduced itself twice")),
        }
    }
}

fn add_recipe(request: &mut HookRequest, commit: CommitId, file: RecipeFile, part: Vec<u8>) -> Result<(), String> {
    let sizes = request.recipes.iter_mut().flat_map(|(_, files)| {
        let RecipeFiles { larder_yml, procfile, app_json, buildpacks } = files;
        [larder_yml, procfile, app_json, buildpacks].map(|content| content.as_ref().map_or(0, Vec::len))
    });
    let bytes = sizes.sum::<usize>().saturating_add(part.len());
    if request.recipes.iter().all(|(known, _)| *known != commit) {
        request.recipes.push((commit.clone(), RecipeFiles::default()));
    }
    if bytes > RECIPE_BYTES || request.recipes.len() > RECIPE_COMMITS {
        return Err(String::from("the hook sent larger recipes than it may"));
    }
    if let Some((_, files)) = request.recipes.iter_mut().find(|(known, _)| *known == commit) {
        file.of(files).get_or_insert_default().extend(part);
    }
    Ok(())
}

/// The directories that git makes for this have names like `tmp_objdir-incoming-AbCd12`, or `incoming-AbCd12` before 2.35.
pub(crate) fn is_quarantine(name: &str) -> bool {
    let random = name.strip_prefix("tmp_objdir-").unwrap_or(name).strip_prefix("incoming-");
    random.is_some_and(|random| (1..=16).contains(&random.len()) && random.bytes().all(|c| c.is_ascii_alphanumeric()))
}

/// A hook that waits for an answer. Dropped without one, the push is refused.
#[derive(Debug)]
pub struct HookSession<T> {
    /// What [`PushRegistry::issue`] was given for this push.
    pub ticket: T,
    /// What it asks.
    pub request: HookRequest,
    frames: mpsc::Sender<ServerFrame>,
    left_out: Arc<AtomicU64>,
    gone: watch::Receiver<bool>,
    writer: JoinHandle<()>,
}

impl<T> HookSession<T> {
    fn start(ticket: T, request: HookRequest, mut from: OwnedReadHalf, to: OwnedWriteHalf) -> HookSession<T> {
        let (frames, queue) = mpsc::channel(LINES);
        let (ended, gone) = watch::channel(false);
        let left_out = Arc::new(AtomicU64::new(0));
        let writer = tokio::spawn(async move {
            tokio::select! {
                // A hook says nothing after its question: anything that arrives, the end above all, means that it is gone.
                _ = receive::<ClientFrame>(&mut from) => {}
                () = write_all(to, queue) => {}
            }
            let _ = ended.send(true);
        });
        HookSession { ticket, request, frames, left_out, gone, writer }
    }

    /// A line for the person who pushes; made safe for terminals here. Never waits: if nobody reads, lines are left out.
    pub fn line(&self, line: &str) {
        self.speaker().line(line);
    }

    /// A handle for lines alone, to be given to those who follow a deployment.
    pub fn speaker(&self) -> Speaker {
        Speaker { frames: self.frames.downgrade(), left_out: self.left_out.clone() }
    }

    /// Returns when the hook has ended before its answer: the pusher's machine went away.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut gone = self.gone.clone();
        async move {
            let _ = gone.wait_for(|gone| *gone).await;
        }
    }

    /// Accepts (pre-receive), or gives every ref its fate (proc-receive). A ref without a verdict is refused.
    pub async fn finish(self, verdicts: Vec<(String, Verdict)>) {
        let clean = verdicts.into_iter().map(|(name, verdict)| match verdict {
            Verdict::Refused { reason } => (name, Verdict::Refused { reason: sanitise_reason(&reason) }),
            other => (name, other),
        });
        let clean: Vec<_> = clean.collect();
        let mut frames: Vec<ServerFrame> = clean.chunks(CHUNK).map(|chunk| ServerFrame::Verdicts(chunk.to_vec())).collect();
        frames.push(ServerFrame::Done);
        self.end(frames).await;
    }

    /// Accepts what pre-receive asked.
    pub async fn accept(self) {
        self.finish(Vec::new()).await;
    }

    /// Lets the push pass pre-receive although no ref of it will be accepted, so that each gets its own reason from
    /// proc-receive; git's quarantine is emptied.
    pub async fn discard(self) {
        self.end(vec![ServerFrame::Discard]).await;
    }

    /// Refuses the push as a whole: the lines explain, `reason` is the last word.
    pub async fn refuse(self, lines: &[String], reason: &str) {
        for line in lines {
            self.line(line);
        }
        self.end(vec![ServerFrame::Refused(sanitise_reason(reason))]).await;
    }

    async fn end(mut self, frames: Vec<ServerFrame>) {
        let missing = self.left_out.load(Ordering::Relaxed);
        let note = (missing > 0).then(|| ServerFrame::Line(format!("       ({missing} lines were left out here)")));
        // As long as the hook is there: whoever looked away from a long push must not read of a failure when it was none. The
        // writer ends with the hook, and the hook with its client.
        for frame in note.into_iter().chain(frames) {
            if self.frames.send(frame).await.is_err() {
                return tracing::warn!("a hook was gone before its answer");
            }
        }
        // Closing the queue lets the writer end when it has written everything.
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

/// Says lines to a pusher as long as the session lasts.
#[derive(Debug, Clone)]
pub struct Speaker {
    frames: mpsc::WeakSender<ServerFrame>,
    left_out: Arc<AtomicU64>,
}

impl Speaker {
    /// As [`HookSession::line`]; after the session's end, nothing.
    pub fn line(&self, line: &str) {
        let Some(frames) = self.frames.upgrade() else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = frames.try_send(ServerFrame::Line(sanitise_line(line))) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write_all(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<ServerFrame>) {
    let mut beat = interval(BEAT);
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
