//! The [`Request`] trait, the replies that handlers return, and [`Control::handle`], which carries out every request.

use std::{os::fd::OwnedFd, path::PathBuf};

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::{
    audit::{AuditEntry, AuditOutcome},
    authz::{Caller, Needs},
    error::CommandError,
    full_disk,
    state::Control,
};
use crate::{
    host::launch::{Child, Stdio},
    model::Access,
    pipeline::{DataCopy, Ticket},
    remote::ssh::Exec,
    runtime::LogLine,
};

/// A query or a command for the server.
///
/// Each implementation is in `handlers/`, beside the view that its handler returns. [`Control::handle`] is the only caller of
/// [`Request::handle`]: code outside of the module `control` cannot create a [`Context`].
pub trait Request: Send + Sized + 'static {
    /// The answer, as data. `--json` prints this data as JSON.
    type View: Serialize + Send + 'static;

    /// The name of the request in log records.
    const NAME: &'static str;

    /// Returns the right that the request needs, and the object of this right.
    fn needs(&self) -> Needs;

    /// True if the observers are notified after the request: a change of users, keys, rights, approvals or deploy windows.
    const ANNOUNCED: bool = false;

    /// Returns details for the audit log, which must not be secrets.
    fn detail(&self) -> Option<String> {
        None
    }

    /// Carries out the request for a caller that has the needed right.
    fn handle(self, context: &Context<'_>) -> impl Future<Output = Result<Reply<Self::View>, CommandError>> + Send;
}

/// The state and the caller of an authorised request.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The state of the server.
    pub(super) control: &'a Control,
    /// The caller, for records and for lists that depend on the caller's rights.
    pub(super) caller: &'a Caller,
}

impl Control {
    /// Carries out a request if `caller` has the right that the request needs.
    pub async fn handle<R: Request>(&self, caller: &Caller, request: R) -> Result<Reply<R::View>, CommandError> {
        let needs = request.needs();
        let entry = AuditEntry::new(caller, R::NAME, needs.scope.to_string(), request.detail());
        if let Err(error) = self.authorize(caller, &needs) {
            tracing::warn!(%caller, request = R::NAME, "request refused");
            self.audit(entry.ended(AuditOutcome::Refused, &error.message)).await;
            return Err(error);
        }
        let context = Context { control: self, caller };
        // The futures of some requests are large, so they are not kept on the stack of the caller.
        let place = full_disk::place_of(self.root(), &needs.scope);
        let handling: BoxFuture<'_, _> = Box::pin(async { explained(place, request.handle(&context).await) });
        // A request that only reads is not recorded.
        if needs.right <= Access::View {
            return handling.await;
        }
        self.audit(entry.clone()).await;
        let reply = handling.await;
        match &reply {
            Err(error) => self.audit(entry.ended(AuditOutcome::Failed, &error.message)).await,
            Ok(_) if R::ANNOUNCED => self.announce(entry),
            Ok(_) => {}
        }
        reply
    }

    /// States the free space in an error whose cause is a full disk, such as of a push. An internal error becomes a refusal.
    pub fn with_free_space(&self, needs: &Needs, error: CommandError) -> CommandError {
        full_disk::explained_error(&full_disk::place_of(self.root(), &needs.scope), error)
    }
}

/// States the free space at `place` in the error of a request, and in the errors of the functions that continue the request.
fn explained<V: 'static>(place: PathBuf, reply: Result<Reply<V>, CommandError>) -> Result<Reply<V>, CommandError> {
    Ok(match reply.map_err(|error| full_disk::explained_error(&place, error))? {
        Reply::Upload(upload) => Reply::Upload(Box::new(move |input| {
            Box::pin(async move { upload(input).await.map_err(|error| full_disk::explained_error(&place, error)) })
        })),
        Reply::Input(input) => Reply::Input(Box::new(move |from| Box::pin(async move { explained(place, input(from).await) }))),
        Reply::Confirm(confirmation) => {
            let Confirmation { view, word, proceed } = *confirmation;
            let proceed =
                Box::new(move || -> BoxFuture<'static, _> { Box::pin(async move { explained(place, proceed().await) }) });
            Reply::Confirm(Box::new(Confirmation { view, word, proceed }))
        }
        // The descriptor of a stream belongs to the caller, whose disk may be another one.
        other @ (Reply::View(_) | Reply::Stream(_)) => other,
    })
}

/// A handler's answer.
pub enum Reply<V> {
    /// The complete answer.
    View(V),
    /// A function that reads all bytes that the caller sends, and then returns the view.
    Upload(UploadFn<V>),
    /// A function that reads all bytes that the caller sends, and then continues the request.
    Input(InputFn<V>),
    /// Output that arrives over time.
    Stream(Stream),
    /// The consequences of a request that loses data. The request continues after a person has confirmed it on a terminal.
    Confirm(Box<Confirmation<V>>),
}

/// A request that loses data, and that a person must confirm.
pub struct Confirmation<V> {
    /// The consequences. Without a terminal, this view is the complete answer.
    pub view: V,
    /// The word that the person must type: the name of the project.
    pub word: String,
    /// Carries out the request.
    pub proceed: ProceedFn<V>,
}

/// A function that carries out a request after its confirmation.
pub type ProceedFn<V> = Box<dyn FnOnce() -> BoxFuture<'static, Result<Reply<V>, CommandError>> + Send>;

impl<V> From<V> for Reply<V> {
    fn from(view: V) -> Reply<V> {
        Reply::View(view)
    }
}

/// A function that reads bytes from a descriptor and returns the view of the result.
pub type UploadFn<V> = Box<dyn FnOnce(OwnedFd) -> BoxFuture<'static, Result<V, CommandError>> + Send>;

/// A function that reads bytes from a descriptor and returns the next reply.
pub type InputFn<V> = Box<dyn FnOnce(OwnedFd) -> BoxFuture<'static, Result<Reply<V>, CommandError>> + Send>;

/// A function that starts a command with the given descriptors.
pub type StartCommand = Box<dyn FnOnce(Stdio) -> BoxFuture<'static, Result<RunningCommand, CommandError>> + Send>;

/// Output that arrives over time.
pub enum Stream {
    /// The transcript of a deployment, followed by its outcome.
    Deployment {
        /// The deployment.
        ticket: Box<Ticket>,
        /// The outcome that counts as success.
        goal: DeploymentGoal,
    },
    /// Log lines: the existing lines, then new lines as they are written.
    Logs {
        /// The existing lines, oldest first.
        past: Vec<String>,
        /// The new lines.
        follower: Box<LogFollower>,
    },
    /// A command of a project; the interface connects its standard descriptors.
    Run(StartCommand),
    /// A command of a project that people use at a terminal. The worker of the command opens a pseudo-terminal if it gets the socket of a
    /// [`PtyRequest`](crate::host::pty::PtyRequest) as its extra descriptor.
    Interactive(StartCommand),
    /// Bytes that are written to a descriptor of the interface.
    Bytes(Box<dyn FnOnce(OwnedFd) -> BoxFuture<'static, Result<(), CommandError>> + Send>),
    /// The output and exit status of a command on another server.
    Relay(Box<Exec>),
    /// Lines of a task that continues if the caller disconnects.
    Lines(Box<LineStream>),
}

/// The output and the end of a task.
pub struct LineStream {
    /// The lines. The channel is closed when the task ends.
    pub lines: tokio::sync::mpsc::Receiver<String>,
    /// The end of the task.
    pub ended: tokio::task::JoinHandle<Result<(), CommandError>>,
}

/// A command of a project that was started.
pub struct RunningCommand {
    /// The process.
    pub child: Child,
    /// The copy of the data on which the command works; dropped after the end of the command.
    pub copy: Option<DataCopy>,
    /// The lock of the restore points, if the command replaces data; dropped after the end of the command.
    pub locked: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl From<Child> for RunningCommand {
    fn from(child: Child) -> RunningCommand {
        RunningCommand { child, copy: None, locked: None }
    }
}

/// The outcome of a deployment that counts as success for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentGoal {
    /// The release went live, or the dry run succeeded.
    Live,
    /// The deployment was stopped and its changes were reverted.
    Reverted,
}

impl Stream {
    /// Returns the stream of a deployment with the goal [`DeploymentGoal::Live`].
    pub(super) fn deployment(ticket: Ticket) -> Stream {
        Stream::Deployment { ticket: Box::new(ticket), goal: DeploymentGoal::Live }
    }
}

/// A source of new log lines.
pub struct LogFollower {
    /// The log lines of all processes of the server.
    pub lines: tokio::sync::broadcast::Receiver<LogLine>,
    /// A function that returns true for the lines that the caller requested.
    pub wanted: Box<dyn Fn(&LogLine) -> bool + Send>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::error::ErrorKind;

    #[tokio::test]
    async fn full_disk_after_a_confirmation_is_a_refusal_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let proceed = || -> BoxFuture<'static, _> {
            Box::pin(async { Err(CommandError::new(ErrorKind::Internal, "cannot restore: Disk quota exceeded (os error 122)")) })
        };
        let confirmation = Confirmation { view: (), word: String::from("shop"), proceed: Box::new(proceed) };
        let reply = explained(directory.path().to_owned(), Ok(Reply::Confirm(Box::new(confirmation)))).unwrap();
        let Reply::Confirm(confirmation) = reply else { panic!("no confirmation") };
        let error = (confirmation.proceed)().await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.message.contains("are free)"), "{error}");
    }
}
