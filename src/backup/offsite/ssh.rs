//! The ssh connection to an sftp server. The program `ssh` is not used: it refuses to run as a user without a line in `/etc/passwd`, as the
//! server's user usually is.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use russh::{
    Preferred,
    client::{self, Handle, Msg},
    compression,
    keys::{PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, decode_secret_key, known_hosts},
};
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};
use tokio_util::io::SyncIoBridge;

use crate::model::sanitise_line;

/// The time limit for each step of a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The time without data after which a keep-alive request is sent.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// The number of unanswered keep-alive requests after which the connection is lost.
const MAX_KEEPALIVES: usize = 3;

/// An sftp server.
pub(super) struct SftpServer<'a> {
    pub login: &'a str,
    pub host: &'a str,
    pub port: u16,
    /// The private key, in OpenSSH's format.
    pub key: Option<&'a str>,
    /// The file with the known host keys, in the format of sshd(8).
    pub known_hosts: Option<&'a Path>,
}

/// The check that accepts only a known host key, and records the key of an unknown server.
struct KnownHosts {
    known: Vec<PublicKey>,
    seen: Arc<Mutex<Option<PublicKey>>>,
}

impl client::Handler for KnownHosts {
    type Error = russh::Error;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        let is_known = self.known.iter().any(|known| known.key_data() == key.key_data());
        if !is_known {
            *self.seen.lock() = Some(key.clone());
        }
        Ok(is_known)
    }
}

/// A channel to the subsystem `sftp`. The connection ends with this value.
struct Channel {
    /// `None` after the end.
    stream: Option<SyncIoBridge<russh::ChannelStream<Msg>>>,
    _handle: Handle<KnownHosts>,
    runtime: Runtime,
}

impl Channel {
    fn stream(&mut self) -> io::Result<&mut SyncIoBridge<russh::ChannelStream<Msg>>> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The end of the stream starts a task.
        let _entered = self.runtime.enter();
        self.stream = None;
    }
}

impl io::Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream()?.read(buffer)
    }
}

impl io::Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream()?.flush()
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// Connects to a server, and opens its subsystem `sftp`.
pub(super) fn connect(server: &SftpServer<'_>) -> io::Result<impl io::Read + io::Write + Send + 'static> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (handle, stream) = runtime.block_on(open(server))?;
    let stream = SyncIoBridge::new_with_handle(stream, runtime.handle().clone());
    Ok(Channel { stream: Some(stream), _handle: handle, runtime })
}

async fn open(server: &SftpServer<'_>) -> io::Result<(Handle<KnownHosts>, russh::ChannelStream<Msg>)> {
    let failed = |error: russh::Error| io::Error::other(sanitise_line(&error.to_string()));
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()));
    let key = server.key.ok_or_else(|| refused(String::from("no private key is given")))?;
    // The error of the decoder is left out, because it may quote a part of the key.
    let key = decode_secret_key(key, None)
        .map_err(|_| refused(String::from("the file with the private key is not an unencrypted key in OpenSSH's format")))?;
    let file = server.known_hosts.map_or_else(PathBuf::new, Path::to_owned);
    let known = known_hosts::known_host_keys_path(server.host, server.port, &file).unwrap_or_default();
    let known: Vec<PublicKey> = known.into_iter().map(|(_, key)| key).collect();
    let seen = Arc::default();
    let handler = KnownHosts { known: known.clone(), seen: Arc::clone(&seen) };
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((server.host, server.port))).await.map_err(late)??;
    let greeted =
        timeout(CONNECT_TIMEOUT, client::connect_stream(Arc::new(config(&known)), stream, handler)).await.map_err(late)?;
    let mut handle = match (greeted, seen.lock().take()) {
        (Ok(handle), _) => handle,
        (Err(_), Some(key)) => return Err(unknown(server, &file, &key)),
        (Err(error), None) => return Err(failed(error)),
    };
    let hash = handle.best_supported_rsa_hash().await.map_err(failed)?.flatten();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
    let login = timeout(CONNECT_TIMEOUT, handle.authenticate_publickey(server.login, key)).await.map_err(late)?;
    if !login.map_err(failed)?.success() {
        return Err(refused(format!("the server does not accept the private key for the user {}", server.login)));
    }
    let channel = timeout(CONNECT_TIMEOUT, handle.channel_open_session()).await.map_err(late)?.map_err(failed)?;
    channel.request_subsystem(true, "sftp").await.map_err(failed)?;
    Ok((handle, channel.into_stream()))
}

/// Returns the settings of the connection. A server offers several host keys, so the kinds of the known keys are preferred.
fn config(known: &[PublicKey]) -> client::Config {
    let mut preferred = Preferred { compression: vec![compression::NONE].into(), ..Preferred::default() };
    let mut kinds = preferred.key.to_vec();
    kinds.sort_by_key(|kind| {
        let is_rsa = matches!(kind, russh::keys::Algorithm::Rsa { .. });
        !known.iter().any(|key| key.algorithm() == *kind || (is_rsa && key.algorithm().is_rsa()))
    });
    preferred.key = kinds.into();
    client::Config {
        preferred,
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: MAX_KEEPALIVES,
        nodelay: true,
        ..client::Config::default()
    }
}

fn unknown(server: &SftpServer<'_>, file: &Path, key: &PublicKey) -> io::Error {
    let fingerprint = key.fingerprint(russh::keys::HashAlg::Sha256);
    let (host, port, file) = (server.host, server.port, file.display());
    refused(format!(
        "the host key {fingerprint} of {host} is not in {file}\nhint: compare the fingerprint with the server's, then run: ssh-keyscan -p {port} {host} >> {file}"
    ))
}
