//! A started process, as the server holds it.

use std::os::fd::OwnedFd;

use serde::de::DeserializeOwned;
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, sync::watch};

use super::{LaunchError, Launcher, wire::Request};
use crate::model::{Exit, ProcessId};

/// A started process. Dropping it ends a process of [`Supervision::Once`] and leaves a kept one alone.
#[derive(Debug)]
pub struct Child {
    pub(super) id: ProcessId,
    pub(super) writable: bool,
    pub(super) report: Option<OwnedFd>,
    pub(super) output: Option<OwnedFd>,
    pub(super) end: watch::Receiver<Option<Exit>>,
    pub(super) launcher: Launcher,
    pub(super) leave: bool,
}

impl Child {
    /// The keeper's number for it.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Whether everything at `/app` can be written by it; otherwise only new files in the top directory.
    pub fn app_is_writable(&self) -> bool {
        self.writable
    }

    /// The read end of a kept process's stdout and stderr; given once.
    pub fn output(&mut self) -> Option<OwnedFd> {
        self.output.take()
    }

    /// Waits for its end; everything that it started has ended too by then.
    pub async fn wait(&mut self) -> Result<Exit, LaunchError> {
        wait(&mut self.end).await
    }

    /// Asks it and everything that it started to end (SIGTERM).
    pub async fn terminate(&self) -> Result<(), LaunchError> {
        self.launcher.done("end a process", &Request::End { id: self.id, now: false }).await
    }

    /// Ends it and everything that it started, now.
    pub async fn kill(&self) -> Result<(), LaunchError> {
        self.launcher.done("end a process", &Request::End { id: self.id, now: true }).await
    }

    /// Reads its report, at most `limit` bytes; `None` where it ended without one. Waits until the worker closes it.
    pub async fn report<T: DeserializeOwned>(&mut self, limit: usize) -> Result<Option<T>, LaunchError> {
        let Some(report) = self.report.take() else { return Ok(None) };
        let failed = |error: &dyn std::fmt::Display| LaunchError::Report(error.to_string());
        let mut report = Receiver::from_owned_fd(report).map_err(|error| failed(&error))?;
        let (mut bytes, mut chunk) = (Vec::new(), [0; 8192]);
        loop {
            match report.read(&mut chunk).await.map_err(|error| failed(&error))? {
                0 => break,
                length => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            }
            if bytes.len() > limit {
                return Err(LaunchError::Report(format!("it is longer than {limit} bytes")));
            }
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        postcard::from_bytes(&bytes).map(Some).map_err(|error| failed(&error))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.leave && self.end.borrow().is_none() && self.end.has_changed().is_ok() {
            self.launcher.tell(&Request::End { id: self.id, now: true });
        }
    }
}

/// Waits for an end.
pub(super) async fn wait(end: &mut watch::Receiver<Option<Exit>>) -> Result<Exit, LaunchError> {
    let exit = end.wait_for(Option::is_some).await.map_err(|_| LaunchError::Gone)?;
    (*exit).ok_or(LaunchError::Gone)
}
