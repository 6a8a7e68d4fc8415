//! The export of a restore point as one archive, which `tar --zstd -x` opens without larder. The archive has one directory with the name of
//! the restore point: `point.json` (the manifest), `checksums` (for `b3sum --check`), and the captured files with their metadata.

use std::{
    fs::File,
    io::{self, Write},
};

use larder_archive::{PortableEntry, PortableKind, PortableWriter};
use larder_points::{Entry, Kind, Point, PointError, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    DumpReport, PointLabel, PointOwner,
    dump::{DumpPaths, named},
    error::{BackupFailure, FailureKind},
    staging::check_complete,
};
use crate::host::stream::TRANSFER_IDLE_TIMEOUT;

/// The number of bytes that a ready pipe accepts without blocking (`PIPE_BUF`, see pipe(7)).
const PIPE_BUF: usize = 4096;

/// Writes the archive of a restore point to `out`. Nothing is written to the disk. The archive has no end after an error, so that `tar`
/// reports an error, too.
pub fn work(name: &str, owner: &PointOwner, paths: &DumpPaths, out: File) -> Result<DumpReport, BackupFailure> {
    let point = named(&Store::open(&paths.points)?, name)?;
    check_complete(&point)?;
    let label: Option<PointLabel> = serde_json::from_value(point.manifest.label.clone()).ok();
    if !label.is_some_and(|label| label.project == owner.project && label.environment == owner.environment) {
        let why = format!("cannot export {}: it is not a restore point of {}/{}", point.id(), owner.project, owner.environment);
        return Err(BackupFailure::new(FailureKind::Refused, why));
    }
    write(&point, TimedPipe(out))?;
    Ok(DumpReport::Exported(point.id().to_owned()))
}

fn write(point: &Point, out: impl Write) -> Result<(), BackupFailure> {
    let sending = |e: io::Error| BackupFailure::io("send the archive", &e);
    let entries = point.entries()?;
    let mut writer = PortableWriter::new(out).map_err(sending)?;
    let taken = (point.manifest.taken, 0);
    let top = PortableEntry {
        path: point.id().as_bytes(),
        kind: PortableKind::Directory,
        mode: 0o700,
        uid: 0,
        gid: 0,
        mtime: taken,
        xattrs: &[],
    };
    writer.begin(&top).map_err(sending)?;
    for (name, bytes) in [("point.json", point.manifest_bytes()?), ("checksums", checksums(&entries))] {
        let size = bytes.len() as u64;
        let path = format!("{}/{name}", point.id());
        let data = [(0, size)];
        let kind = PortableKind::File { size, data: if size == 0 { &[] } else { &data } };
        writer.begin(&PortableEntry { path: path.as_bytes(), kind, mode: 0o600, ..top }).map_err(sending)?;
        writer.data(&bytes).map_err(sending)?;
    }
    for entry in &entries {
        let path = below(point, &entry.path);
        let xattrs: Vec<_> = entry.xattrs.iter().map(|xattr| (xattr.name.as_slice(), xattr.value.as_slice())).collect();
        let plain = PortableEntry {
            path: &path,
            kind: PortableKind::Directory,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: (entry.mtime.seconds, entry.mtime.nanos),
            xattrs: &xattrs,
        };
        match &entry.kind {
            Kind::Directory => writer.begin(&plain).map_err(sending)?,
            Kind::Symlink { target } => {
                writer.begin(&PortableEntry { kind: PortableKind::Symlink(target), ..plain }).map_err(sending)?
            }
            Kind::HardLink { to } => {
                // The index was checked when it was opened, so `to` is the position of an earlier file.
                let file = entries.get(*to as usize).map(|file| below(point, &file.path)).unwrap_or_default();
                writer.begin(&PortableEntry { kind: PortableKind::HardLink(&file), ..plain }).map_err(sending)?;
            }
            Kind::File { size, .. } => {
                let stored = point.stored_file(entry)?;
                let kind = PortableKind::File { size: *size, data: stored.data() };
                writer.begin(&PortableEntry { kind, ..plain }).map_err(sending)?;
                stored.read(|bytes| writer.data(bytes)).map_err(of_export)?;
            }
        }
    }
    let mut out = writer.finish().map_err(sending)?;
    out.flush().map_err(sending)
}

/// Returns the path of a captured file in the archive.
fn below(point: &Point, path: &[u8]) -> Vec<u8> {
    [point.id().as_bytes(), b"/", path].concat()
}

fn of_export(error: PointError) -> BackupFailure {
    let mut failure = BackupFailure::from(error);
    if failure.kind == FailureKind::Damaged {
        failure.why = failure.why.replacen("cannot restore", "cannot export", 1);
    }
    failure
}

/// Returns the digests of all files, in the format that `b3sum --check` reads. A name with a backslash or a newline is escaped, and the
/// line of such a name begins with a backslash.
fn checksums(entries: &[Entry]) -> Vec<u8> {
    let mut lines = Vec::new();
    for entry in entries {
        let file = match entry.kind {
            Kind::HardLink { to } => entries.get(to as usize),
            _ => Some(entry),
        };
        let Some(Kind::File { digest, .. }) = file.map(|file| &file.kind) else { continue };
        let is_plain = !entry.path.iter().any(|byte| matches!(byte, b'\\' | b'\n'));
        if !is_plain {
            lines.push(b'\\');
        }
        lines.extend_from_slice(format!("{digest}  ").as_bytes());
        for byte in &entry.path {
            match byte {
                b'\\' => lines.extend_from_slice(b"\\\\"),
                b'\n' => lines.extend_from_slice(b"\\n"),
                other => lines.push(*other),
            }
        }
        lines.push(b'\n');
    }
    lines
}

/// A pipe to a client. A write fails if the client reads nothing for [`TRANSFER_IDLE_TIMEOUT`].
struct TimedPipe(File);

impl Write for TimedPipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = Timespec { tv_sec: i64::try_from(TRANSFER_IDLE_TIMEOUT.as_secs()).unwrap_or(60), tv_nsec: 0 };
        loop {
            let mut ready = [PollFd::new(&self.0, PollFlags::OUT)];
            match poll(&mut ready, Some(&limit)) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")),
                Err(rustix::io::Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.0.write(bytes.get(..PIPE_BUF).unwrap_or(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
