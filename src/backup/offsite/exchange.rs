//! The exchange of a restore point between the dump worker, which has access to the files of the environment, and the off-site worker,
//! which has the secrets of the store. Both sides are processes of larder, connected by a socket.
//!
//! A *block* is a length (four bytes, little-endian) followed by a content of this length. For a copy, the dump worker begins with two
//! blocks: the manifest and the index. The off-site worker then asks for the content of a file by the number of the file's entry (four
//! bytes), and gets blocks up to an empty block. The off-site worker does not ask for the contents of unchanged files, so they are never
//! sent. For an import, the off-site worker sends the manifest, the index, and the contents of all regular files in the order of the index.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use larder_points::{Entry, Point, PointError, PointParts, Store};
use parking_lot::{Condvar, Mutex};

use super::{
    super::{
        DumpReport, PointLabel, PointOwner,
        dump::{DumpPaths, be_quiet, named},
        error::{BackupFailure, FailureKind},
    },
    backend::BackendState,
};

/// The length that precedes the text of a failure instead of a block.
const FAILURE: u32 = u32::MAX;

/// The maximum length of a block of a content, in bytes.
const CHUNK: usize = 1 << 20;

/// The maximum length of a manifest or index, in bytes.
const MAX_PART: u32 = 1 << 30;

/// The free space that an import leaves on the disk, in bytes.
const FREE: u64 = 64 << 20;

pub(super) fn write_block(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_PART);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a block is too long"))?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(bytes)
}

/// Reads a block. Returns an error with the text of the other side if the other side failed.
pub(super) fn read_block(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    match u32::from_le_bytes(length) {
        FAILURE => {
            let text = read_block(from)?;
            Err(io::Error::other(String::from_utf8_lossy(&text).into_owned()))
        }
        length if length > MAX_PART => Err(io::Error::new(io::ErrorKind::InvalidData, "a block is too long")),
        length => {
            let mut bytes = Vec::new();
            from.take(length.into()).read_to_end(&mut bytes)?;
            if bytes.len() as u64 == u64::from(length) { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }
    }
}

/// Sends a restore point to the off-site worker: the work of the dump worker for a copy.
pub fn serve(name: &str, owner: &PointOwner, paths: &DumpPaths, socket: File) -> Result<DumpReport, BackupFailure> {
    be_quiet();
    let point = named(&Store::open(&paths.points)?, name)?;
    check_owner(&point.manifest.label, point.id(), owner, "copy")?;
    let parts = PointParts::of(&point)?;
    let sending = |e: io::Error| BackupFailure::io("send the restore point to the off-site worker", &e);
    let mut socket = io::BufWriter::with_capacity(CHUNK, socket);
    write_block(&mut socket, &parts.manifest_bytes).map_err(sending)?;
    write_block(&mut socket, &parts.index_bytes).map_err(sending)?;
    loop {
        socket.flush().map_err(sending)?;
        let mut number = [0; 4];
        match socket.get_mut().read_exact(&mut number) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(DumpReport::Exported(point.id().to_owned())),
            other => other.map_err(sending)?,
        }
        let entry = usize::try_from(u32::from_le_bytes(number)).ok().and_then(|number| parts.entries.get(number));
        let sent = match entry {
            Some(entry) => send_content(&point, entry, &mut socket),
            None => Err(BackupFailure::new(FailureKind::Machine, "cannot send an entry that the index does not have")),
        };
        match sent {
            Ok(()) => write_block(&mut socket, &[]).map_err(sending)?,
            Err(failure) => {
                socket.write_all(&FAILURE.to_le_bytes()).map_err(sending)?;
                write_block(&mut socket, failure.why.as_bytes()).map_err(sending)?;
                socket.flush().map_err(sending)?;
                return Err(failure);
            }
        }
    }
}

/// Sends the content of a file, with zeros in place of holes. The content is compared with its digest while it is read.
fn send_content(point: &Point, entry: &Entry, out: &mut impl Write) -> Result<(), BackupFailure> {
    let stored = point.stored_file(entry)?;
    let larder_points::Kind::File { size, .. } = entry.kind else { return Ok(()) };
    let mut pieces: Vec<(u64, u64)> = stored.data().to_vec();
    pieces.reverse();
    let (mut at, mut left) = (0, 0);
    let sent = stored.read(|bytes| {
        if left == 0 {
            let (begin, length) = pieces.pop().unwrap_or((at, bytes.len() as u64));
            send_zeros(out, begin.saturating_sub(at))?;
            (at, left) = (begin, length);
        }
        at += bytes.len() as u64;
        left = left.saturating_sub(bytes.len() as u64);
        write_block(out, bytes)
    });
    sent.map_err(|error| {
        let mut failure = BackupFailure::from(error);
        failure.why = failure.why.replacen("cannot restore", "cannot copy", 1);
        failure
    })?;
    send_zeros(out, size.saturating_sub(at)).map_err(|e| BackupFailure::io("send a hole", &e))
}

fn send_zeros(out: &mut impl Write, mut count: u64) -> io::Result<()> {
    let zeros = if count > 0 { vec![0; CHUNK] } else { Vec::new() };
    while count > 0 {
        let length = zeros.len().min(usize::try_from(count).unwrap_or(zeros.len()));
        write_block(out, zeros.get(..length).unwrap_or_default())?;
        count -= length as u64;
    }
    Ok(())
}

/// Stores a restore point that the off-site worker sends: the work of the dump worker for an import.
pub fn receive(owner: &PointOwner, paths: &DumpPaths, socket: File) -> Result<DumpReport, BackupFailure> {
    let receiving = |e: io::Error| BackupFailure::new(FailureKind::Machine, format!("cannot receive the restore point: {e}"));
    let mut socket = io::BufReader::with_capacity(CHUNK, socket);
    let manifest = read_block(&mut socket).map_err(receiving)?;
    let index = read_block(&mut socket).map_err(receiving)?;
    let parts = PointParts::decode(manifest, index)?;
    let id = parts.manifest.id.clone();
    check_owner(&parts.manifest.label, &id, owner, "import")?;
    let store = Store::create(&paths.points)?;
    // The sweep removes the files of killed imports.
    store.sweep()?;
    store.import(&parts, FREE, &mut |entry, write| {
        loop {
            let failed = |source: io::Error| PointError::Io { doing: "receive", path: entry.shown().into(), source };
            let bytes = read_block(&mut socket).map_err(failed)?;
            if bytes.is_empty() {
                return Ok(());
            }
            write(&bytes)?;
        }
    })?;
    Ok(DumpReport::Exported(id))
}

fn check_owner(label: &serde_json::Value, id: &str, owner: &PointOwner, doing: &str) -> Result<(), BackupFailure> {
    let label: Option<PointLabel> = serde_json::from_value(label.clone()).ok();
    if label.is_some_and(|label| label.project == owner.project && label.environment == owner.environment) {
        return Ok(());
    }
    let why = format!("cannot {doing} {id}: it is not a restore point of {}/{}", owner.project, owner.environment);
    Err(BackupFailure::new(FailureKind::Refused, why))
}

/// The off-site worker's side of a copy: a restore point whose contents the dump worker sends.
#[derive(Debug)]
pub(super) struct RemotePoint {
    /// The manifest and the index.
    pub parts: PointParts,
    state: Arc<BackendState>,
    /// The socket; `None` while a reader uses it, and after a failure.
    socket: Mutex<Option<UnixStream>>,
    is_free: Condvar,
}

impl RemotePoint {
    /// Receives the manifest and the index.
    pub(super) fn open(mut socket: UnixStream, state: Arc<BackendState>) -> Result<RemotePoint, BackupFailure> {
        let receiving = |e: io::Error| BackupFailure::new(FailureKind::Machine, format!("cannot receive the restore point: {e}"));
        let manifest = read_block(&mut socket).map_err(receiving)?;
        let index = read_block(&mut socket).map_err(receiving)?;
        let parts = PointParts::decode(manifest, index)?;
        Ok(RemotePoint { parts, state, socket: Mutex::new(Some(socket)), is_free: Condvar::new() })
    }

    fn take(&self) -> io::Result<UnixStream> {
        let mut socket = self.socket.lock();
        loop {
            if let Some(socket) = socket.take() {
                return Ok(socket);
            }
            if let Some(why) = self.state.failure() {
                return Err(io::Error::other(why));
            }
            self.is_free.wait(&mut socket);
        }
    }

    fn give(&self, socket: Option<UnixStream>) {
        let mut place = self.socket.lock();
        *place = socket;
        self.is_free.notify_all();
    }
}

/// A reader of the content of one file. The reader uses the socket from the first read to the end of the content.
#[derive(Debug)]
pub(super) struct ContentReader {
    point: Arc<RemotePoint>,
    number: u32,
    socket: Option<UnixStream>,
    /// The rest of the current block.
    rest: io::Cursor<Vec<u8>>,
    is_done: bool,
}

impl ContentReader {
    pub(super) fn new(point: Arc<RemotePoint>, number: u32) -> ContentReader {
        ContentReader { point, number, socket: None, rest: io::Cursor::default(), is_done: false }
    }

    fn next_block(&mut self) -> io::Result<()> {
        if self.socket.is_none() {
            // After a failed write, the socket is still stored here. The drop of this reader then wakes the other readers, which would
            // otherwise wait for the socket for ever.
            self.socket.insert(self.point.take()?).write_all(&self.number.to_le_bytes())?;
        }
        let Some(socket) = &mut self.socket else { return Ok(()) };
        let block = read_block(socket)?;
        if block.is_empty() {
            self.is_done = true;
            self.point.give(self.socket.take());
        }
        self.rest = io::Cursor::new(block);
        Ok(())
    }
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.rest.read(buffer)?;
            if read > 0 || self.is_done || buffer.is_empty() {
                return Ok(read);
            }
            if let Err(error) = self.next_block() {
                self.point.state.fail(format!("cannot read the restore point: {error}"));
                return Err(error);
            }
        }
    }
}

impl Drop for ContentReader {
    fn drop(&mut self) {
        if self.socket.is_some() {
            // The rest of the content is unread, so the socket cannot be used for another content.
            self.point.state.fail(String::from("the content of a file was not read to its end"));
            self.point.give(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd, thread};

    use larder_points::{CaptureOptions, Source, SourceKind};

    use super::*;

    #[test]
    fn lost_connection_ends_all_readers() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("base/data")).unwrap();
        let store = Store::create(&top.path().join("store")).unwrap();
        let base = File::open(top.path().join("base")).unwrap();
        let source = Source { path: String::from("data"), kind: SourceKind::Directory };
        store.capture("one", &serde_json::json!({}), base.as_fd(), &[source], None, &CaptureOptions::default()).unwrap();
        let parts = PointParts::of(&store.point("one").unwrap()).unwrap();
        let (socket, peer) = UnixStream::pair().unwrap();
        // The buffer of the socket is full, so the first reader waits in its write, and holds the socket meanwhile.
        socket.set_nonblocking(true).unwrap();
        while (&socket).write(&[0; 4096]).is_ok() {}
        while (&socket).write(&[0]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        let point =
            Arc::new(RemotePoint { parts, state: Arc::default(), socket: Mutex::new(Some(socket)), is_free: Condvar::new() });
        let read = |number| {
            let point = point.clone();
            thread::spawn(move || ContentReader::new(point, number).read_to_end(&mut Vec::new()).is_err())
        };
        let first = read(1);
        while point.socket.lock().is_some() {
            thread::yield_now();
        }
        let second = read(2);
        drop(peer);
        assert!(first.join().unwrap());
        assert!(second.join().unwrap());
    }
}
