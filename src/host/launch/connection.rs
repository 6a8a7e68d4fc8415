//! The server's connection to the keeper. The connection carries numbered requests, the answers to requests, and events about exits of
//! processes.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{broadcast, oneshot, watch},
};

use super::{
    types::LaunchError,
    wire::{self, LaunchFrame, LaunchReply, LaunchRequest, MAX_MESSAGE, ProcessEvent},
};
use crate::model::{Exit, ProcessId};

type Answer = (LaunchReply, Vec<OwnedFd>);

/// The number of events by which a slow receiver may fall behind before the receiver misses events. The connection also keeps this number
/// of past exits.
const MAX_EVENTS: usize = 1024;

/// The server's end of the connection to the keeper.
#[derive(Debug)]
pub(super) struct KeeperConnection {
    /// The sequenced-packet socket. `UnixStream` is a type for stream sockets, and is used here only to wait for readiness.
    socket: UnixStream,
    table: Mutex<Table>,
    events: broadcast::Sender<ProcessEvent>,
}

#[derive(Debug, Default)]
struct Table {
    /// The number of the last request.
    last: u64,
    /// True if the connection is closed.
    gone: bool,
    /// The callers that wait for an answer, by request number.
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    /// The senders that report the exit of a running process to the handles of the process.
    ends: HashMap<ProcessId, watch::Sender<Option<Exit>>>,
    /// The most recent exits of processes, newest first. A handle that is created after the exit finds the exit here.
    ended: VecDeque<(ProcessId, Exit)>,
}

impl KeeperConnection {
    /// Opens a connection over `socket`, and starts the task that reads answers and events. The caller must run in a tokio runtime.
    pub(super) fn open(socket: OwnedFd) -> io::Result<Arc<KeeperConnection>> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let socket = UnixStream::from_std(socket.into())?;
        let (events, _) = broadcast::channel(MAX_EVENTS);
        let connection = Arc::new(KeeperConnection { socket, table: Mutex::default(), events });
        tokio::spawn(Arc::clone(&connection).follow());
        Ok(connection)
    }

    /// Subscribes to events of supervised processes.
    pub(super) fn events(&self) -> broadcast::Receiver<ProcessEvent> {
        self.events.subscribe()
    }

    /// Sends a request that has no result, and waits until the keeper has performed the request. `doing` names the request in errors.
    pub(super) async fn done(&self, doing: &'static str, request: &LaunchRequest) -> Result<(), LaunchError> {
        match self.ask(doing, request, &[]).await?.0 {
            LaunchReply::Done => Ok(()),
            other => Err(unexpected(doing, &other)),
        }
    }

    /// Sends a request with descriptors, and waits for the answer. `doing` names the request in errors.
    pub(super) async fn ask(
        &self,
        doing: &'static str,
        body: &LaunchRequest,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer, LaunchError> {
        let (sender, receiver) = oneshot::channel();
        let seq = {
            let mut table = self.table.lock();
            if table.gone {
                return Err(LaunchError::Gone);
            }
            table.last += 1;
            let seq = table.last;
            table.waiting.insert(seq, sender);
            seq
        };
        let forget = |error| {
            self.table.lock().waiting.remove(&seq);
            error
        };
        let bytes = wire::encode(&LaunchFrame { seq, body }).map_err(|why| forget(LaunchError::Message(why)))?;
        let sent = self.socket.async_io(Interest::WRITABLE, || wire::send(&self.socket, &bytes, descriptors));
        sent.await.map_err(|_| forget(LaunchError::Gone))?;
        match receiver.await.map_err(|_| LaunchError::Gone)? {
            (LaunchReply::Refused(why), _) => Err(LaunchError::Refused { doing, why }),
            answer => Ok(answer),
        }
    }

    /// Returns a receiver of the exit of process `id`. If the process has already exited, the receiver contains the exit.
    pub(super) fn end_of(&self, id: ProcessId) -> watch::Receiver<Option<Exit>> {
        let mut table = self.table.lock();
        if table.gone {
            return watch::channel(None).1;
        }
        if let Some((_, exit)) = table.ended.iter().find(|(ended, _)| *ended == id) {
            return watch::channel(Some(*exit)).1;
        }
        table.ends.entry(id).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Sends a request that has no answer. The function does not wait, because implementations of `Drop` call it.
    pub(super) fn tell(&self, body: &LaunchRequest) {
        if let Ok(bytes) = wire::encode(&LaunchFrame { seq: 0, body }) {
            let _ = wire::send(&self.socket, &bytes, &[]);
        }
    }

    /// Reads answers and events until the connection is closed.
    async fn follow(self: Arc<Self>) {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let received = self.socket.async_io(Interest::READABLE, || wire::receive(&self.socket, &mut buffer)).await;
            let Ok((length, descriptors)) = received else { break };
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            match wire::decode::<LaunchReply>(bytes) {
                Ok(LaunchFrame { body: LaunchReply::Event(event), .. }) => self.note(event),
                Ok(LaunchFrame { seq, body }) => self.answer(seq, body, descriptors),
                Err(why) => {
                    tracing::error!(why, "cannot decode a message from the keeper");
                    break;
                }
            }
        }
        let mut table = self.table.lock();
        table.gone = true;
        table.waiting.clear();
        table.ends.clear();
    }

    fn answer(&self, seq: u64, reply: LaunchReply, descriptors: Vec<OwnedFd>) {
        let mut table = self.table.lock();
        if let LaunchReply::Started { id, .. } = reply {
            // The entry is created before the caller receives the answer, so that an exit immediately after the start is not missed.
            table.ends.entry(id).or_insert_with(|| watch::channel(None).0);
        }
        let started = match (&reply, table.waiting.remove(&seq)) {
            (_, Some(sender)) => sender.send((reply, descriptors)).err().map(|(reply, _)| reply),
            (_, None) => None,
        };
        drop(table);
        // If the caller was cancelled before the answer arrived, the process is killed now, because no handle exists that could kill the
        // process later.
        if let Some(LaunchReply::Started { id, .. }) = started
            && let Ok(bytes) = wire::encode(&LaunchFrame { seq: 0, body: LaunchRequest::End { id, now: true } })
        {
            let _ = wire::send(&self.socket, &bytes, &[]);
        }
    }

    fn note(&self, event: ProcessEvent) {
        if let ProcessEvent::Exited { id, exit, last: true, .. } = event {
            let mut table = self.table.lock();
            let sender = table.ends.remove(&id);
            table.ended.truncate(MAX_EVENTS - 1);
            table.ended.push_front((id, exit));
            drop(table);
            if let Some(sender) = sender {
                sender.send_replace(Some(exit));
            }
        }
        let _ = self.events.send(event);
    }
}

/// Returns the error for an answer of the wrong type.
pub(super) fn unexpected(doing: &'static str, reply: &LaunchReply) -> LaunchError {
    LaunchError::Refused { doing, why: format!("unexpected answer: {reply:?}") }
}

/// Waits for the exit that `end` reports.
pub(super) async fn wait(end: &mut watch::Receiver<Option<Exit>>) -> Result<Exit, LaunchError> {
    let exit = end.wait_for(Option::is_some).await.map_err(|_| LaunchError::Gone)?;
    (*exit).ok_or(LaunchError::Gone)
}
