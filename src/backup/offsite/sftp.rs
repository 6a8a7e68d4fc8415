//! A store that is a directory of an sftp server, with version 3 of the protocol (draft-ietf-secsh-filexfer-02). `ssh.rs` makes the
//! connection.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
};

use jiff::Timestamp;
use parking_lot::Mutex;

pub(super) use super::ssh::SftpServer;
use super::{
    ssh::connect,
    store_files::{StoreFiles, TEMPORARY, is_leftover, too_short},
};

/// The maximum length of a message of the server, in bytes.
const MAX_MESSAGE: u32 = 1 << 20;
/// The length of one read or write, in bytes. Every server allows 32 KiB.
const CHUNK: usize = 32 << 10;
/// The number of writes and reads that are sent before the first answer is awaited.
const IN_FLIGHT: usize = 32;

/// Message types of the protocol.
mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const OPENDIR: u8 = 11;
    pub(super) const READDIR: u8 = 12;
    pub(super) const REMOVE: u8 = 13;
    pub(super) const MKDIR: u8 = 14;
    pub(super) const STAT: u8 = 17;
    pub(super) const RENAME: u8 = 18;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRS: u8 = 105;
    pub(super) const EXTENDED: u8 = 200;
}

const STATUS_EOF: u32 = 1;
const STATUS_NO_FILE: u32 = 2;
const STATUS_DENIED: u32 = 3;
const OPEN_READ: u32 = 1;
/// Write, create and truncate.
const OPEN_NEW: u32 = 2 | 8 | 16;

/// A directory of an sftp server.
pub(super) struct SftpFiles {
    session: Mutex<Session>,
    top: String,
}

/// A connection to the subsystem `sftp`.
trait Connection: Read + Write + Send {}

impl<T: Read + Write + Send> Connection for T {}

struct Session {
    connection: Box<dyn Connection>,
    next: u32,
    has_posix_rename: bool,
    has_fsync: bool,
}

/// The attributes of a file that larder uses.
struct Attributes {
    size: u64,
    mode: u32,
    /// The time of the last write, in seconds since 1970.
    modified: i64,
}

/// The body of a message: the fields that are left.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> io::Result<u32> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().map_err(|_| malformed())?))
    }

    fn long(&mut self) -> io::Result<u64> {
        Ok((u64::from(self.number()?) << 32) | u64::from(self.number()?))
    }

    fn text(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()?;
        self.bytes(usize::try_from(length).map_err(|_| malformed())?)
    }

    fn attributes(&mut self) -> io::Result<Attributes> {
        let flags = self.number()?;
        let size = if flags & 1 != 0 { self.long()? } else { 0 };
        if flags & 2 != 0 {
            self.long()?;
        }
        let mode = if flags & 4 != 0 { self.number()? } else { 0 };
        let modified = if flags & 8 != 0 {
            // The first number is the time of the last access.
            self.number()?;
            self.number()?.into()
        } else {
            i64::MAX
        };
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.number()? {
                self.text()?;
                self.text()?;
            }
        }
        Ok(Attributes { size, mode, modified })
    }
}

fn lost(error: io::Error) -> io::Error {
    io::Error::other(format!("the connection to the sftp server is lost: {error}"))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the sftp server sent a malformed message")
}

fn field(message: &mut Vec<u8>, bytes: &[u8]) {
    message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(bytes);
}

impl Session {
    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<u32> {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut message = Vec::with_capacity(body.len() + 9);
        message.extend_from_slice(&u32::try_from(body.len() + 5).map_err(|_| malformed())?.to_be_bytes());
        message.push(kind);
        message.extend_from_slice(&id.to_be_bytes());
        message.extend_from_slice(body);
        self.connection.write_all(&message).map_err(lost)?;
        Ok(id)
    }

    fn receive_raw(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut length = [0; 4];
        self.connection.read_exact(&mut length).map_err(lost)?;
        let length = u32::from_be_bytes(length);
        if !(1..=MAX_MESSAGE).contains(&length) {
            return Err(malformed());
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| malformed())?];
        self.connection.read_exact(&mut bytes).map_err(lost)?;
        let (kind, body) = bytes.split_first().ok_or_else(malformed)?;
        Ok((*kind, body.to_vec()))
    }

    /// Receives the answer to the request `id`. The server answers in order.
    fn receive(&mut self, id: u32) -> io::Result<(u8, Vec<u8>)> {
        let (kind, body) = self.receive_raw()?;
        let mut fields = Fields(&body);
        if fields.number()? != id {
            return Err(malformed());
        }
        if kind == kind::STATUS {
            let status = fields.number()?;
            let text = fields.text().map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default();
            let text = crate::model::sanitise_line(&text);
            return match status {
                0 => Ok((kind, Vec::new())),
                STATUS_EOF => Err(io::ErrorKind::UnexpectedEof.into()),
                STATUS_NO_FILE => Err(io::Error::new(io::ErrorKind::NotFound, text)),
                STATUS_DENIED => Err(io::Error::new(io::ErrorKind::PermissionDenied, text)),
                _ => Err(io::Error::other(format!("the sftp server refused the request: {text}"))),
            };
        }
        Ok((kind, fields.0.to_vec()))
    }

    fn ask(&mut self, kind: u8, body: &[u8]) -> io::Result<(u8, Vec<u8>)> {
        let id = self.send(kind, body)?;
        self.receive(id)
    }

    fn open(&mut self, path: &str, flags: u32) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        field(&mut body, path.as_bytes());
        body.extend_from_slice(&flags.to_be_bytes());
        // The attributes are the mode only.
        body.extend_from_slice(&4_u32.to_be_bytes());
        body.extend_from_slice(&0o600_u32.to_be_bytes());
        self.handle(kind::OPEN, &body)
    }

    fn handle(&mut self, kind: u8, body: &[u8]) -> io::Result<Vec<u8>> {
        match self.ask(kind, body)? {
            (kind::HANDLE, body) => Ok(Fields(&body).text()?.to_vec()),
            _ => Err(malformed()),
        }
    }

    fn close(&mut self, handle: &[u8]) -> io::Result<()> {
        let mut body = Vec::new();
        field(&mut body, handle);
        self.ask(kind::CLOSE, &body).map(drop)
    }

    fn on_path(&mut self, kind: u8, path: &str) -> io::Result<(u8, Vec<u8>)> {
        let mut body = Vec::new();
        field(&mut body, path.as_bytes());
        if kind == kind::MKDIR {
            body.extend_from_slice(&4_u32.to_be_bytes());
            body.extend_from_slice(&0o700_u32.to_be_bytes());
        }
        self.ask(kind, &body)
    }

    fn size(&mut self, path: &str) -> io::Result<u64> {
        match self.on_path(kind::STAT, path)? {
            (kind::ATTRS, body) => Ok(Fields(&body).attributes()?.size),
            _ => Err(malformed()),
        }
    }

    fn put(&mut self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        let handle = self.open(path, OPEN_NEW)?;
        let written = self.put_content(&handle, content);
        let closed = self.close(&handle);
        written.and(closed)
    }

    /// Writes the content of an open file. After a failure, all answers are read, so that the session can be used again.
    fn put_content(&mut self, handle: &[u8], content: &[&[u8]]) -> io::Result<()> {
        let mut sent = VecDeque::new();
        let mut at = 0_u64;
        let mut result = Ok(());
        for chunk in content.iter().flat_map(|part| part.chunks(CHUNK)) {
            let mut body = Vec::with_capacity(chunk.len() + 64);
            field(&mut body, handle);
            body.extend_from_slice(&at.to_be_bytes());
            field(&mut body, chunk);
            sent.push_back(self.send(kind::WRITE, &body)?);
            at += chunk.len() as u64;
            if sent.len() >= IN_FLIGHT
                && let Some(id) = sent.pop_front()
            {
                result = self.receive(id).map(drop);
                if result.is_err() {
                    break;
                }
            }
        }
        while let Some(id) = sent.pop_front() {
            result = result.and(self.receive(id).map(drop));
        }
        if result.is_ok() && self.has_fsync {
            let mut body = Vec::new();
            field(&mut body, b"fsync@openssh.com");
            field(&mut body, handle);
            self.ask(kind::EXTENDED, &body)?;
        }
        result
    }

    /// Renames a file. Without `replaces`, an existing file is an error. The plain rename of the protocol does not replace a file.
    fn rename(&mut self, from: &str, to: &str, replaces: bool) -> io::Result<()> {
        let mut body = Vec::new();
        let is_posix = replaces && self.has_posix_rename;
        if is_posix {
            field(&mut body, b"posix-rename@openssh.com");
        } else if replaces {
            match self.on_path(kind::REMOVE, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        field(&mut body, from.as_bytes());
        field(&mut body, to.as_bytes());
        let renamed = self.ask(if is_posix { kind::EXTENDED } else { kind::RENAME }, &body).map(drop);
        if renamed.is_err() && !replaces && self.size(to).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists already"));
        }
        renamed
    }

    fn get(&mut self, path: &str, begin: u64, length: u64) -> io::Result<Vec<u8>> {
        let handle = self.open(path, OPEN_READ)?;
        let read = self.get_content(&handle, path, begin, length);
        let closed = self.close(&handle);
        read.and_then(|bytes| closed.map(|()| bytes))
    }

    /// Reads a part of an open file. After a failure, all answers are read, so that the session can be used again.
    fn get_content(&mut self, handle: &[u8], path: &str, begin: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let end = begin.saturating_add(length);
        let mut sent = VecDeque::new();
        let mut at = begin;
        let mut failure = None;
        while (at < end && failure.is_none()) || !sent.is_empty() {
            while at < end && failure.is_none() && sent.len() < IN_FLIGHT {
                let wanted = u32::try_from((end - at).min(CHUNK as u64)).unwrap_or(1);
                let mut body = Vec::new();
                field(&mut body, handle);
                body.extend_from_slice(&at.to_be_bytes());
                body.extend_from_slice(&wanted.to_be_bytes());
                sent.push_back((self.send(kind::READ, &body)?, wanted));
                at += u64::from(wanted);
            }
            let Some((id, wanted)) = sent.pop_front() else { break };
            let answer = self.receive(id);
            if failure.is_some() {
                continue;
            }
            match answer {
                Ok((kind::DATA, body)) => {
                    let data = Fields(&body).text()?;
                    bytes.extend_from_slice(data);
                    // A server may send less than it was asked for only at the end of the file.
                    if data.len() as u64 != u64::from(wanted) {
                        failure = Some(too_short(path, begin + bytes.len() as u64, end));
                    }
                }
                Ok(_) => failure = Some(malformed()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    failure = Some(too_short(path, begin + bytes.len() as u64, end));
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(bytes), Err)
    }
}

impl SftpFiles {
    /// Connects to a server. `top` is the directory of the files.
    pub(super) fn connect(server: &SftpServer<'_>, top: &str) -> io::Result<SftpFiles> {
        SftpFiles::over(connect(server)?, top)
    }

    /// Begins a session over a connection.
    fn over(connection: impl Connection + 'static, top: &str) -> io::Result<SftpFiles> {
        let mut session = Session { connection: Box::new(connection), next: 0, has_posix_rename: false, has_fsync: false };
        // The version takes the place of a request's number.
        session.connection.write_all(&[0, 0, 0, 5, kind::INIT, 0, 0, 0, 3]).map_err(lost)?;
        let (found, body) = session.receive_raw()?;
        let mut fields = Fields(&body);
        if found != kind::VERSION || fields.number()? < 3 {
            return Err(malformed());
        }
        while !fields.0.is_empty() {
            let (name, _) = (fields.text()?, fields.text()?);
            session.has_posix_rename |= name == b"posix-rename@openssh.com";
            session.has_fsync |= name == b"fsync@openssh.com";
        }
        Ok(SftpFiles { session: Mutex::new(session), top: top.to_owned() })
    }

    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.top).trim_end_matches('/').to_owned()
    }
}

impl StoreFiles for SftpFiles {
    fn list(&self, directory: &str) -> io::Result<Vec<(String, u64)>> {
        let mut session = self.session.lock();
        let mut body = Vec::new();
        field(&mut body, self.at(directory).as_bytes());
        let handle = match session.handle(kind::OPENDIR, &body) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let (mut files, mut leftovers) = (Vec::new(), Vec::new());
        loop {
            let mut body = Vec::new();
            field(&mut body, &handle);
            let names = match session.ask(kind::READDIR, &body) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Ok((kind::NAME, names)) => names,
                Ok(_) => return Err(malformed()),
                Err(error) => return Err(error),
            };
            let mut fields = Fields(&names);
            for _ in 0..fields.number()? {
                let name = String::from_utf8_lossy(fields.text()?).into_owned();
                fields.text()?;
                let found = fields.attributes()?;
                // The type is in the mode, as in stat(2).
                if found.mode & 0o170_000 != 0o100_000 {
                    continue;
                }
                if !name.starts_with(TEMPORARY) {
                    files.push((name, found.size));
                } else if is_leftover(found.modified, Timestamp::now()) {
                    leftovers.push(name);
                }
            }
        }
        session.close(&handle)?;
        for name in leftovers {
            // A leftover only uses space. The next list repeats the removal.
            let _ = session.on_path(kind::REMOVE, &self.at(&format!("{directory}/{name}")));
        }
        Ok(files)
    }

    fn read(&self, path: &str, part: Option<(u64, u64)>) -> io::Result<Vec<u8>> {
        let at = self.at(path);
        let mut session = self.session.lock();
        let (begin, length) = match part {
            Some(part) => part,
            None => (0, session.size(&at)?),
        };
        session.get(&at, begin, length)
    }

    fn write(&self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        self.publish(path, content, true)
    }

    fn create(&self, path: &str, content: &[&[u8]]) -> io::Result<()> {
        self.publish(path, content, false)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        match self.session.lock().on_path(kind::REMOVE, &self.at(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl SftpFiles {
    /// Writes a temporary file, and gives it its name.
    fn publish(&self, path: &str, content: &[&[u8]], replaces: bool) -> io::Result<()> {
        let at = self.at(path);
        let (parent, name) = at.rsplit_once('/').unwrap_or(("", &at));
        // Another server may write the same file at the same time.
        let temporary = format!("{parent}/{TEMPORARY}{name}-{}", std::process::id());
        let mut session = self.session.lock();
        let written = match session.put(&temporary, content) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for (end, _) in parent.match_indices('/').chain([(parent.len(), "")]).filter(|(end, _)| *end > 0) {
                    // An existing directory is reported as a failure without a reason, so the failure shows only at the next write.
                    let _ = session.on_path(kind::MKDIR, parent.get(..end).unwrap_or_default());
                }
                session.put(&temporary, content)
            }
            other => other,
        };
        let published = written.and_then(|()| session.rename(&temporary, &at, replaces));
        if published.is_err() {
            // The first failure is returned.
            let _ = session.on_path(kind::REMOVE, &temporary);
        }
        published
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// The connection to a server that this process has started.
    struct Pipes(Child);

    impl Read for Pipes {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.stdout.as_mut().unwrap().read(buffer)
        }
    }

    impl Write for Pipes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.stdin.as_mut().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.stdin.as_mut().unwrap().flush()
        }
    }

    impl Drop for Pipes {
        fn drop(&mut self) {
            let _ = (self.0.kill(), self.0.wait());
        }
    }

    #[test]
    fn files_are_written_read_listed_and_removed_by_openssh() {
        let server = "/usr/lib/openssh/sftp-server";
        if !std::path::Path::new(server).is_file() {
            eprintln!("SKIPPED: {server} is not installed");
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let started = Command::new(server).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let files = SftpFiles::over(Pipes(started), &format!("{}/shop/production", top.path().display())).unwrap();
        assert!(files.list_packs().unwrap().is_empty());
        let large: Vec<u8> = (0..5_000_001_u32).map(|at| at.to_le_bytes()[0]).collect();
        files.write("data/0a/pack", &[&large, b"end"]).unwrap();
        files.write("config", &[b"old"]).unwrap();
        files.write("config", &[b"new"]).unwrap();
        assert_eq!(files.create("config", &[b"other"]).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(files.list("").unwrap(), [(String::from("config"), 3)]);
        assert_eq!(std::fs::read_dir(top.path().join("shop/production")).unwrap().count(), 2, "no temporary file stays");
        assert_eq!(files.list_packs().unwrap(), [(String::from("pack"), 5_000_004)]);
        assert_eq!(files.read("config", None).unwrap(), b"new");
        let found = files.read("data/0a/pack", None).unwrap();
        assert!(found.strip_suffix(b"end").is_some_and(|found| found == large));
        assert_eq!(files.read("data/0a/pack", Some((5_000_001, 3))).unwrap(), b"end");
        let error = files.read("data/0a/pack", Some((5_000_001, 4))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(files.read("data/0a/other", None).unwrap_err().kind(), io::ErrorKind::NotFound);
        files.remove("data/0a/pack").unwrap();
        files.remove("data/0a/pack").unwrap();
        assert!(files.list_packs().unwrap().is_empty());
    }
}
