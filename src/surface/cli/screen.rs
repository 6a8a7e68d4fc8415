//! Where a verb's output goes: descriptors of a terminal, a file or a pipe, that somebody else owns and may not read from.

use std::{io, os::fd::OwnedFd};

use crate::host::stream::Outlet;

/// The two streams of output of a verb.
#[derive(Debug)]
pub struct Screen {
    out: Outlet,
    err: Outlet,
}

impl Screen {
    /// Over these descriptors.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Screen> {
        Ok(Screen { out: Outlet::new(stdout)?, err: Outlet::new(stderr)? })
    }

    /// Writes to the standard output; fails when nobody reads any more.
    pub async fn out(&mut self, text: &str) -> io::Result<()> {
        self.out.write(text.as_bytes()).await
    }

    /// Writes to the standard error.
    pub async fn err(&mut self, text: &str) -> io::Result<()> {
        self.err.write(text.as_bytes()).await
    }
}
