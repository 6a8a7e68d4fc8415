//! The server side of off-site copies: reads the secrets of a store, starts the off-site worker, and connects it with a dump worker.

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{
    super::{
        BackupContext, BackupError, DumpJob, DumpReport, PointOwner,
        error::{BackupFailure, FailureKind},
        server::dump_with,
    },
    OffsiteJob, OffsiteReport, OffsiteStore,
    worker::MAX_FRAME,
};
use crate::{
    config::{OffsiteAddress, OffsiteConfig},
    host::files::read_private,
    model::{Environment, sanitise_line},
};

/// The argument that makes the program an off-site worker.
pub const OFFSITE_WORKER: &str = "offsite-worker";

/// The time limit of a job.
///
/// A repository keeps removed data for 23 hours. A copy that took longer could use data that another program has removed meanwhile.
const LIMIT: Duration = Duration::from_secs(20 * 3600);

/// The maximum size of a file with a secret, in bytes.
const MAX_SECRET: u64 = 64 << 10;

/// The variables of the server that configure access to buckets.
const BUCKETS: &str = "AWS_";

/// Reads the password and the credentials of a store. Each failure names the file.
pub fn open_secret(config: &OffsiteConfig, environment: &Environment, writer: &str) -> Result<OffsiteStore, BackupFailure> {
    let refused = |why: String| BackupFailure::new(FailureKind::Refused, why);
    let password = secret(&config.password_file)?;
    let password = password.lines().next().unwrap_or_default().to_owned();
    if password.is_empty() {
        return Err(refused(format!(
            "cannot use {}: its first line is empty (expected a password)",
            config.password_file.display()
        )));
    }
    let mut store = OffsiteStore {
        address: config.url.clone(),
        below: format!("{}/{}", environment.project, environment.name),
        password,
        settings: Vec::new(),
        key: None,
        known_hosts: None,
        writer: writer.to_owned(),
    };
    match (&config.url, &config.credentials_file) {
        (OffsiteAddress::Bucket { .. }, file) => {
            store.settings = std::env::vars().filter(|(name, _)| name.starts_with(BUCKETS)).collect();
            let text = file.as_deref().map(secret).transpose()?.unwrap_or_default();
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let pair = line.split_once('=').filter(|(name, _)| name.starts_with(BUCKETS));
                let Some((name, value)) = pair else {
                    let file = file.as_deref().unwrap_or(Path::new("")).display();
                    return Err(refused(format!("cannot use {file}: a line does not have the form AWS_NAME=VALUE")));
                };
                store.settings.push((name.to_owned(), value.to_owned()));
            }
        }
        (OffsiteAddress::Sftp { .. }, Some(file)) => {
            store.key = Some(secret(file)?);
            let mut known_hosts = file.clone().into_os_string();
            known_hosts.push(".known_hosts");
            store.known_hosts = Some(known_hosts.into());
        }
        (OffsiteAddress::Sftp { .. }, None) => {
            return Err(refused(format!(
                "cannot use {}: no credentials_file names the private key (expected an unencrypted key in OpenSSH's format)",
                config.url
            )));
        }
        _ => {}
    }
    Ok(store)
}

fn secret(path: &Path) -> Result<String, BackupFailure> {
    let read = read_private(path, MAX_SECRET).map_err(|error| {
        let hint = format!("run: chown {} {}; chmod 600 {}", rustix::process::geteuid().as_raw(), path.display(), path.display());
        BackupFailure {
            hint: Some(hint),
            ..BackupFailure::new(
                FailureKind::Refused,
                format!("cannot use {}: {}", path.display(), sanitise_line(&error.to_string())),
            )
        }
    })?;
    let bytes = read.ok_or_else(|| {
        BackupFailure::new(FailureKind::Refused, format!("cannot use {}: the file does not exist", path.display()))
    })?;
    String::from_utf8(bytes)
        .map_err(|_| BackupFailure::new(FailureKind::Refused, format!("cannot use {}: it is not text", path.display())))
}

/// Runs a job of the off-site worker that needs no dump worker.
pub async fn offsite(store: &OffsiteStore, job: &OffsiteJob) -> Result<OffsiteReport, BackupError> {
    let (_, socket) = pair()?;
    run(store, job, socket.into()).await
}

/// Copies a restore point into a store.
pub async fn offsite_copy(
    context: &BackupContext,
    store: &OffsiteStore,
    point: String,
    owner: PointOwner,
) -> Result<OffsiteReport, BackupError> {
    let (for_dump, for_store) = pair()?;
    let job = DumpJob::Serve { point, owner };
    let served = dump_with(context, &job, for_dump.into());
    let job = OffsiteJob::Copy;
    let (served, report) = tokio::join!(served, run(store, &job, for_store.into()));
    // If the dump worker fails, the failure of the off-site worker is a consequence. Otherwise, the dump worker fails as a consequence.
    match (served, report) {
        (_, Ok(report)) => Ok(report),
        (Err(BackupError::Failed(failure)), Err(_)) if failure.kind != FailureKind::Machine => Err(failure.into()),
        (_, Err(error)) => Err(error),
    }
}

/// Brings a restore point from a store into the environment. Returns its id.
pub async fn offsite_fetch(
    context: &BackupContext,
    store: &OffsiteStore,
    point: String,
    owner: PointOwner,
) -> Result<String, BackupError> {
    let (for_dump, for_store) = pair()?;
    let receive = DumpJob::Receive { owner };
    let received = dump_with(context, &receive, for_dump.into());
    let job = OffsiteJob::Fetch { point };
    let (received, report) = tokio::join!(received, run(store, &job, for_store.into()));
    match (received, report) {
        (Ok(DumpReport::Exported(id)), Ok(_)) => Ok(id),
        (Err(BackupError::Failed(failure)), _) if failure.kind != FailureKind::Machine => Err(failure.into()),
        (_, Err(error)) | (Err(error), _) => Err(error),
        (Ok(_), Ok(_)) => Err(BackupError::Confused { role: OFFSITE_WORKER }),
    }
}

fn machine(doing: &str, error: &io::Error) -> BackupError {
    BackupFailure::io(doing, error).into()
}

fn pair() -> Result<(UnixStream, UnixStream), BackupError> {
    UnixStream::pair().map_err(|error| machine("create a socket", &error))
}

/// Runs the off-site worker. If the returned future is dropped, or this process is killed, the worker exits.
async fn run(store: &OffsiteStore, job: &OffsiteJob, socket: OwnedFd) -> Result<OffsiteReport, BackupError> {
    let failed = |error: io::Error| machine("run the off-site worker", &error);
    let (ours, theirs) = pair()?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut control = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
    // The secrets pass through the socket, so neither arguments nor variables of the process contain them.
    let mut command = Command::new("/proc/self/exe");
    command.arg(OFFSITE_WORKER).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(socket)).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    // `command` holds the worker's ends of the sockets.
    drop(command);
    let message = postcard::to_stdvec(&(store, job)).map_err(|error| failed(io::Error::other(error)))?;
    let exchanged = async {
        control.write_all(&(message.len() as u64).to_le_bytes()).await?;
        control.write_all(&message).await?;
        let mut length = [0; 8];
        control.read_exact(&mut length).await?;
        let length = u64::from_le_bytes(length).min(MAX_FRAME);
        let mut report = Vec::new();
        (&mut control).take(length).read_to_end(&mut report).await?;
        Ok::<_, io::Error>(report)
    };
    let late = |_| BackupError::Late { role: OFFSITE_WORKER, seconds: LIMIT.as_secs() };
    let report = match tokio::time::timeout(LIMIT, exchanged).await.map_err(late)? {
        Ok(report) => report,
        Err(error) => {
            let _ = child.start_kill();
            let mut text = String::new();
            if let Some(stderr) = child.stderr.take() {
                let _ = stderr.take(4096).read_to_string(&mut text).await;
            }
            let line = text.lines().rfind(|line| !line.trim().is_empty()).map(sanitise_line);
            return Err(failed(line.map_or(error, io::Error::other)));
        }
    };
    let _ = child.wait().await;
    let report: Result<OffsiteReport, BackupFailure> =
        postcard::from_bytes(&report).map_err(|error| failed(io::Error::other(error)))?;
    Ok(report?)
}
