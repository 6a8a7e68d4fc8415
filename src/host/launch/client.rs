//! The server's connection to the keeper: many questions at once over one socket, answers sorted by number.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Serialize;
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{broadcast, oneshot, watch},
};

use super::{
    Capabilities, Child, Event, LaunchError, Registration, Stdio, SupervisedProcess,
    child::wait,
    inherited::take,
    job::sealed,
    wire::{self, Frame, Given, MAX_EXTRA, MAX_MESSAGE, Reply, Request},
};
use crate::model::{Area, EnvId, Exit, Launch, ProcessId, ProjectId, ReleaseId, Slot, Supervision};

type Answer = (Reply, Vec<OwnedFd>);

/// Events that a slow listener may fall behind before it misses some.
const EVENTS: usize = 1024;

#[derive(Debug)]
struct Connection {
    /// In truth a sequenced-packet socket; used only to wait for it.
    socket: UnixStream,
    table: Mutex<Table>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    gone: bool,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// Ends of processes that somebody may wait for.
    ends: HashMap<ProcessId, watch::Sender<Option<Exit>>>,
    /// The last ends, for those who ask late.
    ended: VecDeque<(ProcessId, Exit)>,
}

/// The server's connection to the keeper.
#[derive(Debug, Clone)]
pub struct Launcher {
    connection: Arc<Connection>,
}

impl Launcher {
    /// The connection on descriptor 3, as the keeper started this process. Needs a running tokio.
    pub fn from_inherited() -> io::Result<Launcher> {
        let (ours, keeper) = (env!("CARGO_PKG_VERSION"), std::env::var("LARDER_KEEPER").unwrap_or_default());
        if keeper != ours {
            let text =
                format!("this is larder {ours}, but its keeper is larder {keeper}; restart all of larder, not only the server");
            return Err(io::Error::other(text));
        }
        Launcher::over(take(3)?)
    }

    /// A connection over `socket`, a sequenced-packet socket whose other end a keeper holds.
    pub fn over(socket: OwnedFd) -> io::Result<Launcher> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = UnixStream::from_std(socket.into())?;
        let (events, _) = broadcast::channel(EVENTS);
        let connection = Arc::new(Connection { socket, table: Mutex::default(), events });
        tokio::spawn(Arc::clone(&connection).follow());
        Ok(Launcher { connection })
    }

    /// Starts a process. `job` reaches it sealed; the keeper does not read it.
    pub async fn launch<J: Serialize>(&self, launch: Launch, job: &J, stdio: Stdio) -> Result<Child, LaunchError> {
        let kept = matches!(launch.supervision, Supervision::Keep { .. });
        let message = |error: &dyn std::fmt::Display| LaunchError::Message(error.to_string());
        let job = postcard::to_stdvec(job).map_err(|error| message(&error))?;
        let job = sealed(&job).map_err(|error| message(&error))?;
        let (report, writer) = match kept {
            true => (None, None),
            false => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| message(&error))?;
                (Some(read), Some(write))
            }
        };
        if stdio.extra.len() > MAX_EXTRA {
            return Err(LaunchError::Message(format!("{} descriptors; at most {MAX_EXTRA} are allowed", stdio.extra.len())));
        }
        let given = Given {
            report: writer.is_some(),
            stdin: stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
            extra: stdio.extra.len() as u8,
        };
        let standard = [&writer, &stdio.stdin, &stdio.stdout, &stdio.stderr].into_iter().flatten();
        let descriptors: Vec<_> = [&job].into_iter().chain(standard).chain(&stdio.extra).map(AsFd::as_fd).collect();
        let doing = "start a process";
        let (reply, descriptors) = self.ask(doing, &Request::Launch { launch, given }, &descriptors).await?;
        match reply {
            Reply::Started { id, writable } => {
                let end = self.end_of(id);
                let output = descriptors.into_iter().next();
                Ok(Child { id, writable, report, output, end, launcher: self.clone(), leave: kept })
            }
            other => Err(unexpected(doing, &other)),
        }
    }

    /// The processes that outlived the previous server.
    pub async fn supervised(&self) -> Result<Vec<SupervisedProcess>, LaunchError> {
        let doing = "list the kept processes";
        let mut all: Vec<SupervisedProcess> = Vec::new();
        loop {
            let after = all.last().map(|kept| kept.id);
            let (reply, descriptors) = self.ask(doing, &Request::Supervised { after }, &[]).await?;
            let (id, launch) = match reply {
                Reply::Supervised(Some(kept)) => kept,
                Reply::Supervised(None) => return Ok(all),
                other => return Err(unexpected(doing, &other)),
            };
            let label = match &launch.supervision {
                Supervision::Keep { label, .. } => label.clone(),
                Supervision::Once => Vec::new(),
            };
            match descriptors.into_iter().next() {
                Some(output) => all.push(SupervisedProcess { id, label, launch, output }),
                None => return Err(LaunchError::Refused { doing, why: "its output did not come along".to_owned() }),
            }
        }
    }

    /// What happens to kept processes from now on. A listener that falls more than 1024 events behind misses some and is told.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.connection.events.subscribe()
    }

    /// Ends a kept process for good: its stop signal to everything that it started, and after `grace` the end of what is left.
    pub async fn stop(&self, id: ProcessId, grace: Duration) -> Result<(), LaunchError> {
        let grace = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.done("stop a process", &Request::Stop { id, grace }).await
    }

    /// Waits for the final end of process `id`, also of one that [`Launcher::kept`] told of.
    pub async fn ended(&self, id: ProcessId) -> Result<Exit, LaunchError> {
        wait(&mut self.end_of(id)).await
    }

    /// Makes the directories (and in system mode the users) of a project or an environment. Safe to repeat.
    pub async fn register(&self, registration: Registration) -> Result<(), LaunchError> {
        self.done("make the directories", &Request::Register(registration)).await
    }

    /// Ends all processes of an environment and removes its directory, or those of a whole project.
    pub async fn unregister(&self, project: ProjectId, environment: Option<EnvId>) -> Result<(), LaunchError> {
        self.done("remove the directories", &Request::Unregister { project, environment }).await
    }

    /// Puts an area aside, to be deleted in the background, and leaves an empty one (none for a tree). Costs the same whatever
    /// is in it. Refused while a process uses the area.
    pub async fn reset_area(
        &self,
        environment: EnvId,
        area: Area,
        release: Option<ReleaseId>,
        slot: Option<Slot>,
    ) -> Result<(), LaunchError> {
        let request = Request::ResetArea { environment, area, release, slot };
        let mut pause = Duration::from_millis(1);
        loop {
            match self.done("empty an area", &request).await {
                // A worker says that it is done before its sandbox is taken down; that is waited for here, where it matters.
                Err(LaunchError::Refused { .. }) if pause < Duration::from_secs(2) => {
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2);
                }
                other => return other,
            }
        }
    }

    /// Gives the installed tree of `from` the name of `to`, which must have none.
    pub async fn rename_tree(&self, environment: EnvId, from: ReleaseId, to: ReleaseId) -> Result<(), LaunchError> {
        self.done("rename a tree", &Request::RenameTree { environment, from, to }).await
    }

    /// Says that orders to start processes will come soon, so that they take less time. Nobody waits for this.
    pub fn prewarm(&self) {
        self.tell(&Request::Prewarm);
    }

    /// What is in force on this machine.
    pub async fn capabilities(&self) -> Result<Capabilities, LaunchError> {
        let doing = "say what is in force";
        match self.ask(doing, &Request::Capabilities, &[]).await?.0 {
            Reply::Capabilities(standing) => Ok(standing),
            other => Err(unexpected(doing, &other)),
        }
    }

    pub(super) async fn done(&self, doing: &'static str, request: &Request) -> Result<(), LaunchError> {
        match self.ask(doing, request, &[]).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(doing, &other)),
        }
    }

    async fn ask(&self, doing: &'static str, body: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Answer, LaunchError> {
        let (sender, receiver) = oneshot::channel();
        let seq = {
            let mut table = self.connection.table.lock();
            if table.gone {
                return Err(LaunchError::Gone);
            }
            table.last += 1;
            let seq = table.last;
            table.waiting.insert(seq, sender);
            seq
        };
        let forget = |error| {
            self.connection.table.lock().waiting.remove(&seq);
            error
        };
        let bytes = wire::encode(&Frame { seq, body }).map_err(|why| forget(LaunchError::Message(why)))?;
        let sent =
            self.connection.socket.async_io(Interest::WRITABLE, || wire::send(&self.connection.socket, &bytes, descriptors));
        sent.await.map_err(|_| forget(LaunchError::Gone))?;
        match receiver.await.map_err(|_| LaunchError::Gone)? {
            (Reply::Refused(why), _) => Err(LaunchError::Refused { doing, why }),
            answer => Ok(answer),
        }
    }

    fn end_of(&self, id: ProcessId) -> watch::Receiver<Option<Exit>> {
        let mut table = self.connection.table.lock();
        if table.gone {
            return watch::channel(None).1;
        }
        if let Some((_, exit)) = table.ended.iter().find(|(ended, _)| *ended == id) {
            return watch::channel(Some(*exit)).1;
        }
        table.ends.entry(id).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Asks without waiting for the answer; for `drop`.
    pub(super) fn tell(&self, body: &Request) {
        if let Ok(bytes) = wire::encode(&Frame { seq: 0, body }) {
            let _ = wire::send(&self.connection.socket, &bytes, &[]);
        }
    }
}

impl Connection {
    /// Takes in answers and events until the keeper goes away.
    async fn follow(self: Arc<Self>) {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let received = self.socket.async_io(Interest::READABLE, || wire::receive(&self.socket, &mut buffer)).await;
            let Ok((length, descriptors)) = received else { break };
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            match wire::decode::<Reply>(bytes) {
                Ok(Frame { body: Reply::Event(event), .. }) => self.note(event),
                Ok(Frame { seq, body }) => self.answer(seq, body, descriptors),
                Err(why) => {
                    tracing::error!(why, "the keeper sent something that is not a message");
                    break;
                }
            }
        }
        let mut table = self.table.lock();
        table.gone = true;
        table.waiting.clear();
        table.ends.clear();
    }

    fn answer(&self, seq: u64, reply: Reply, descriptors: Vec<OwnedFd>) {
        let mut table = self.table.lock();
        if let Reply::Started { id, .. } = reply {
            // Before the caller runs, so that an end that follows at once is not missed.
            table.ends.entry(id).or_insert_with(|| watch::channel(None).0);
        }
        let started = match (&reply, table.waiting.remove(&seq)) {
            (_, Some(sender)) => sender.send((reply, descriptors)).err().map(|(reply, _)| reply),
            (_, None) => None,
        };
        drop(table);
        // Whoever asked has given up: nobody would ever end this process.
        if let Some(Reply::Started { id, .. }) = started
            && let Ok(bytes) = wire::encode(&Frame { seq: 0, body: Request::End { id, now: true } })
        {
            let _ = wire::send(&self.socket, &bytes, &[]);
        }
    }

    fn note(&self, event: Event) {
        if let Event::Exited { id, exit, last: true, .. } = event {
            let mut table = self.table.lock();
            let sender = table.ends.remove(&id);
            table.ended.truncate(EVENTS - 1);
            table.ended.push_front((id, exit));
            drop(table);
            if let Some(sender) = sender {
                sender.send_replace(Some(exit));
            }
        }
        let _ = self.events.send(event);
    }
}

fn unexpected(doing: &'static str, reply: &Reply) -> LaunchError {
    LaunchError::Refused { doing, why: format!("it answered something else: {reply:?}") }
}
