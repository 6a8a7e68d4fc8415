//! The server side of a build: starts one worker per job and forwards its output line by line.

use std::os::fd::OwnedFd;

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::unix::pipe,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    host::launch::{Launcher, Stdio},
    model::{Area, EditWork, EnvId, Launch, LimitClass, ProjectId, ReleaseId, Role, Slot, Supervision},
};

use super::{
    failure::BuildpackError,
    job::{BuildJob, BuildReport, Built},
};

/// The channel for the lines of a build's output, without line ends. The channel is bounded, so a slow reader slows the build.
pub type BuildOutput = mpsc::Sender<String>;

/// The maximum size of a report in bytes.
const MAX_REPORT: usize = 1024 * 1024;
/// The maximum length of a line in bytes. The rest of the line is dropped.
const MAX_LINE: usize = 4096;
/// The maximum output of one job in bytes. Further output is dropped.
const MAX_OUTPUT: u64 = 64 * 1024 * 1024;

/// Runs a job in the environment's sandbox: a build, or some of its steps. With `checkout`, the id of a release, the job runs in the checkout of
/// an editable environment.
pub async fn build(
    launcher: &Launcher,
    project: ProjectId,
    environment: EnvId,
    checkout: Option<ReleaseId>,
    job: &BuildJob,
    output: BuildOutput,
    cancel: &CancellationToken,
) -> Result<Built, BuildpackError> {
    let (writer, reader) = pipe::pipe().map_err(BuildpackError::Pipe)?;
    let stdout: OwnedFd = writer.into_blocking_fd().map_err(BuildpackError::Pipe)?;
    let stderr = stdout.try_clone().map_err(BuildpackError::Pipe)?;
    let launch = Launch {
        role: if checkout.is_some() { Role::Edit(EditWork::Build) } else { Role::Build },
        project,
        environment: Some(environment),
        release: checkout,
        slot: checkout.map(|_| Slot::InPlace),
        limits: LimitClass::Build { memory: job.memory },
        supervision: Supervision::Once,
    };
    let stdio = Stdio { stdin: None, stdout: Some(stdout), stderr: Some(stderr), extra: Vec::new() };
    let mut child = launcher.launch(launch, job, stdio).await?;
    let follow = async {
        // Output and report are read at the same time, because the worker blocks if either pipe is full.
        let ((), report) = tokio::join!(forward(reader, output), child.report::<BuildReport>(MAX_REPORT));
        Ok::<_, BuildpackError>((report?, child.wait().await?))
    };
    let ended = tokio::select! {
        ended = follow => Some(ended),
        () = cancel.cancelled() => None,
    };
    let (report, exit) = match ended {
        Some(ended) => ended?,
        None => {
            child.kill().await?;
            child.wait().await?;
            return Err(BuildpackError::Cancelled);
        }
    };
    let Some(report) = report else { return Err(BuildpackError::Ended(exit)) };
    if let Some(mut failure) = report.failure {
        if exit.out_of_memory {
            failure.out_of_memory();
        }
        return Err(BuildpackError::Failed(Box::new(failure)));
    }
    if !exit.success() {
        return Err(BuildpackError::Ended(exit));
    }
    let variables = match report.variables {
        Some(text) => Some(super::script::parse(&text).map_err(BuildpackError::Report)?),
        None => None,
    };
    Ok(Built {
        steps: report.steps,
        buildpacks: report.buildpacks,
        processes: report.processes,
        inputs: report.inputs,
        variables,
    })
}

/// Empties the environment's build cache.
pub async fn clear_cache(launcher: &Launcher, project: ProjectId, environment: EnvId) -> Result<(), BuildpackError> {
    let launch = Launch {
        role: Role::Sweep(Area::Cache),
        project,
        environment: Some(environment),
        release: None,
        slot: None,
        limits: LimitClass::Service,
        supervision: Supervision::Once,
    };
    let mut child = launcher.launch(launch, &(), Stdio::default()).await?;
    let exit = child.wait().await?;
    if exit.success() { Ok(()) } else { Err(BuildpackError::Ended(exit)) }
}

/// Splits the worker's output into lines and sends the lines.
async fn forward(mut from: impl AsyncRead + Unpin, output: BuildOutput) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut total: u64 = 0;
    let mut cut = false;
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        total = total.saturating_add(count as u64);
        if total > MAX_OUTPUT {
            // Further output is read and dropped, because the build would otherwise block on a full pipe.
            if !cut {
                cut = true;
                drop(output.send(format!(" !     Further output is not shown: the limit is {} MiB.", MAX_OUTPUT >> 20)).await);
            }
            continue;
        }
        for line in lines.push(buffer.get(..count).unwrap_or_default()) {
            // If there is no receiver, the line is dropped, and the build continues.
            drop(output.send(line).await);
        }
    }
    if let Some(line) = lines.finish() {
        drop(output.send(line).await);
    }
}

/// Splits bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    open: Vec<u8>,
    /// True after a carriage return. The next text replaces the line, as on a terminal.
    returned: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut done = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => done.push(self.take()),
                b'\r' => self.returned = true,
                _ => {
                    if self.returned {
                        self.open.clear();
                        self.returned = false;
                    }
                    if self.open.len() < MAX_LINE {
                        self.open.push(byte);
                    }
                }
            }
        }
        done
    }

    fn take(&mut self) -> String {
        self.returned = false;
        String::from_utf8_lossy(&std::mem::take(&mut self.open)).into_owned()
    }

    fn finish(&mut self) -> Option<String> {
        (!self.open.is_empty()).then(|| self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_bar_output_keeps_last_state() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\r\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\n10%\r20%\r100%\n\nend"), ["two", "100%", ""]);
        assert_eq!(lines.finish().as_deref(), Some("end"));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn overlong_line_is_cut() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            assert!(lines.push(&[b'x'; 1000]).is_empty());
        }
        assert_eq!(lines.push(b"\nnext\n"), ["x".repeat(MAX_LINE), String::from("next")]);
    }

    #[tokio::test]
    async fn output_without_reader_is_dropped() {
        let (sender, mut receiver) = mpsc::channel(1);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(line) = receiver.recv().await {
                all.push(line);
            }
            all
        });
        forward(&b"a\nb\nc"[..], sender).await;
        assert_eq!(reading.await.unwrap(), ["a", "b", "c"]);

        let (sender, receiver) = mpsc::channel(1);
        drop(receiver);
        forward(&b"a\nb\nc"[..], sender).await;
    }
}
