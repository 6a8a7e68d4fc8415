//! [`Child`], the server's handle of a started process.

use std::{os::fd::OwnedFd, sync::Arc};

use serde::de::DeserializeOwned;
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, sync::watch};

use super::{
    connection::{KeeperConnection, wait},
    types::LaunchError,
    wire::LaunchRequest,
};
use crate::model::{Exit, ProcessId};

/// A started process. Dropping the handle kills a process of `Supervision::Once`; a supervised process keeps running.
#[derive(Debug)]
pub struct Child {
    pub(super) id: ProcessId,
    pub(super) writable: bool,
    pub(super) report: Option<OwnedFd>,
    pub(super) output: Option<OwnedFd>,
    pub(super) end: watch::Receiver<Option<Exit>>,
    pub(super) connection: Arc<KeeperConnection>,
    pub(super) supervised: bool,
}

impl Child {
    /// Returns the number that the keeper gave the process.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Returns true if the process can write every file at `/app`. If not, the process can only create files in the top directory of
    /// `/app`.
    pub fn app_is_writable(&self) -> bool {
        self.writable
    }

    /// Takes the read end of the pipe that is stdout and stderr of a supervised process. Returns `None` after the first call, and for a
    /// process that is not supervised.
    pub fn output(&mut self) -> Option<OwnedFd> {
        self.output.take()
    }

    /// Takes the read end of the report pipe, for a worker that reports several times. Returns `None` after the first call, and for a supervised
    /// process.
    pub fn take_report(&mut self) -> Option<OwnedFd> {
        self.report.take()
    }

    /// Waits until the process and all its descendants have exited.
    pub async fn wait(&mut self) -> Result<Exit, LaunchError> {
        wait(&mut self.end).await
    }

    /// Sends SIGTERM to the process and its descendants.
    pub async fn terminate(&self) -> Result<(), LaunchError> {
        self.connection.done("signal a process", &LaunchRequest::End { id: self.id, now: false }).await
    }

    /// Kills the process and its descendants.
    pub async fn kill(&self) -> Result<(), LaunchError> {
        self.connection.done("kill a process", &LaunchRequest::End { id: self.id, now: true }).await
    }

    /// Reads the report of a worker until the worker closes the pipe. Fails if the report has more than `limit` bytes. Returns `None` if
    /// the worker exited without a report, after the first call, and for a supervised process.
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
                return Err(LaunchError::Report(format!("the report is too large (limit {limit} bytes)")));
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
        // `has_changed` fails if the connection to the keeper is closed. No request can be sent over a closed connection.
        if !self.supervised && self.end.borrow().is_none() && self.end.has_changed().is_ok() {
            self.connection.tell(&LaunchRequest::End { id: self.id, now: true });
        }
    }
}
