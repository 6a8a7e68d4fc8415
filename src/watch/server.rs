//! The server's side of a watch worker.

use std::{io, os::fd::OwnedFd};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::mpsc,
};

use super::messages::{WatchEvent, WatchJob, WatchOrder, decode, encode, length};
use crate::{
    host::launch::{Child, LaunchError, Launcher, Stdio},
    model::{EditWork, EnvId, Launch, LimitClass, ProjectId, ReleaseId, Role, Slot, Supervision},
};

/// The maximum number of messages that wait in each direction.
const MAX_WAITING: usize = 64;

/// The reason why a watch worker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The keeper did not start the worker.
    #[error("cannot start the worker that watches the checkout")]
    Launch(#[from] LaunchError),
    /// The pipes of the worker could not be created.
    #[error("cannot create the pipes of the worker that watches the checkout")]
    Pipe(#[from] io::Error),
}

/// A running watch worker. Dropping the value kills the worker.
pub struct CheckoutWatch {
    child: Child,
    events: mpsc::Receiver<WatchEvent>,
    orders: mpsc::Sender<WatchOrder>,
}

impl CheckoutWatch {
    /// Starts a worker in the checkout of an editable environment. `release` is the live release.
    pub async fn start(
        launcher: &Launcher,
        project: ProjectId,
        environment: EnvId,
        release: ReleaseId,
        job: &WatchJob,
    ) -> Result<CheckoutWatch, WorkerError> {
        let launch = Launch {
            role: Role::Edit(EditWork::Watch),
            project,
            environment: Some(environment),
            release: Some(release),
            slot: Some(Slot::InPlace),
            limits: LimitClass::Service,
            supervision: Supervision::Once,
        };
        let (reader, writer) = io::pipe()?;
        let stdio = Stdio { stdin: Some(reader.into()), ..Stdio::default() };
        let mut child = launcher.launch(launch, job, stdio).await?;
        let report = child.take_report().ok_or_else(|| io::Error::other("the report pipe is missing"))?;
        let (send_event, events) = mpsc::channel(MAX_WAITING);
        let (orders, waiting) = mpsc::channel(MAX_WAITING);
        let report = receiver(report)?;
        let writer = sender(writer.into())?;
        // A read that is cancelled in the middle of a message would lose the message, so a task of its own reads.
        tokio::spawn(async move {
            // The end of the channel is the news: an error means a worker that is killed or broken.
            let _ = forward(report, send_event).await;
        });
        tokio::spawn(async move {
            let _ = write(writer, waiting).await;
        });
        Ok(CheckoutWatch { child, events, orders })
    }

    /// Waits for the next message. Returns `None` if the worker has ended. The method may be cancelled.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }

    /// Sends an order. A worker that does not read its orders is killed, and [`CheckoutWatch::next`] then returns `None`.
    pub async fn order(&self, order: WatchOrder) {
        if self.orders.try_send(order).is_err() {
            let _ = self.child.kill().await;
        }
    }
}

fn receiver(descriptor: OwnedFd) -> io::Result<pipe::Receiver> {
    rustix::fs::fcntl_setfl(&descriptor, rustix::fs::OFlags::NONBLOCK)?;
    pipe::Receiver::from_owned_fd(descriptor)
}

fn sender(descriptor: OwnedFd) -> io::Result<pipe::Sender> {
    rustix::fs::fcntl_setfl(&descriptor, rustix::fs::OFlags::NONBLOCK)?;
    pipe::Sender::from_owned_fd(descriptor)
}

async fn forward(mut report: pipe::Receiver, events: mpsc::Sender<WatchEvent>) -> io::Result<()> {
    loop {
        let mut head = [0; 4];
        report.read_exact(&mut head).await?;
        let mut content = vec![0; length(head)?];
        report.read_exact(&mut content).await?;
        if events.send(decode(&content)?).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(mut pipe: pipe::Sender, mut orders: mpsc::Receiver<WatchOrder>) -> io::Result<()> {
    while let Some(order) = orders.recv().await {
        pipe.write_all(&encode(&order)?).await?;
    }
    Ok(())
}
