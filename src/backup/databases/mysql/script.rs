//! The dump of a MySQL or MariaDB database: one SQL script of three parts. The first part has the tables with their rows. The second part has
//! triggers, routines and views, and the third part has events. A restore can move only tables from a scratch database to the live database,
//! so the restore must be able to load the tables separately. Comments with a random word separate the parts, so that no content of the
//! database can imitate these comments. The clients of both products can load the whole script without larder.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    ops::Range,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{
    client::{Client, Objects},
    version::Version,
};
use crate::backup::{BackupFailure, FailureKind};

/// The beginning of the first line. The number is the version of the format.
const HEADER: &str = "-- larder dump of MySQL, format 1, word ";

/// The maximum length of the lines that larder itself writes, in bytes.
const MAX_LINE: usize = 300;

/// An open dump, with the positions of its parts.
#[derive(Debug)]
pub(super) struct SqlScript {
    pub file: File,
    /// The server that was dumped.
    pub server: Version,
    /// The ranges of bytes of the parts.
    pub tables: Range<u64>,
    pub objects: Range<u64>,
    pub events: Range<u64>,
}

/// Dumps the database of a client to the new file `into`.
pub(super) fn write(client: &Client, server: &Version, into: &Path) -> Result<(), BackupFailure> {
    let failed = |e: io::Error| BackupFailure::io("write the dump", &e);
    let word = crate::host::random::<16>().map(|bytes| data_encoding::HEXLOWER.encode(&bytes)).map_err(failed)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(into).map_err(failed)?;
    let mark = |text: String| (&file).write_all(text.as_bytes()).map_err(failed);
    let objects = client.objects(client.database())?;
    mark(format!("{HEADER}{word}, server {}\n", server.text))?;
    dump(client, server, &["--skip-triggers"], &objects, &file)?;
    mark(format!("-- larder {word} objects\n"))?;
    dump_objects(client, server, &objects, &file)?;
    mark(format!("-- larder {word} events\n"))?;
    dump_events(client, server, &objects, &file)?;
    mark(format!("-- larder {word} end\n"))?;
    file.sync_all().map_err(failed)
}

/// Runs the dump program with the arguments `how` for everything except views.
fn dump(client: &Client, server: &Version, how: &[&str], objects: &Objects, file: &File) -> Result<(), BackupFailure> {
    let database = client.database();
    let mut arguments: Vec<String> = how.iter().map(|&text| text.to_owned()).collect();
    arguments.extend(objects.views.iter().map(|view| format!("--ignore-table={database}.{view}")));
    arguments.extend(["--".to_owned(), database.to_owned()]);
    client.dump(server.family, &arguments, file)
}

/// Dumps routines and triggers, then views, because a view may use a function.
fn dump_objects(client: &Client, server: &Version, objects: &Objects, file: &File) -> Result<(), BackupFailure> {
    if !objects.routines.is_empty() || !objects.triggers.is_empty() {
        dump(client, server, &["--no-data", "--no-create-info", "--triggers", "--routines"], objects, file)?;
    }
    if objects.views.is_empty() {
        return Ok(());
    }
    let mut arguments: Vec<String> = ["--no-data", "--skip-triggers", "--", client.database()].map(str::to_owned).into();
    arguments.extend(objects.views.iter().cloned());
    client.dump(server.family, &arguments, file)
}

fn dump_events(client: &Client, server: &Version, objects: &Objects, file: &File) -> Result<(), BackupFailure> {
    if objects.events.is_empty() {
        return Ok(());
    }
    dump(client, server, &["--no-data", "--no-create-info", "--skip-triggers", "--events"], objects, file)
}

/// Creates an unnamed file with a dump of everything that a rename of tables does not move. Returns the file.
pub(super) fn save_objects(client: &Client, server: &Version, objects: &Objects) -> Result<File, BackupFailure> {
    let file = tempfile::tempfile().map_err(|e| BackupFailure::io("create a private file", &e))?;
    dump_objects(client, server, objects, &file)?;
    dump_events(client, server, objects, &file)?;
    Ok(file)
}

/// Opens a dump and finds its parts. Returns an error with [`FailureKind::Damaged`] if the first line is malformed or a part is missing.
pub(super) fn open(path: &Path) -> Result<SqlScript, BackupFailure> {
    let failed = |e: io::Error| BackupFailure::io("read the dump", &e);
    let damaged = |why: &str| BackupFailure::new(FailureKind::Damaged, format!("cannot use the dump: {why}"));
    let file = File::open(path).map_err(failed)?;
    let mut reader = BufReader::with_capacity(1 << 20, &file);
    let mut line = Vec::new();
    let (mut at, mut starts, mut ends) = (0_u64, Vec::new(), Vec::new());
    let length = read_line(&mut reader, &mut line).map_err(failed)?;
    let header = String::from_utf8_lossy(&line).trim_end().to_owned();
    let parts = header.strip_prefix(HEADER).and_then(|rest| rest.split_once(", server "));
    let (word, server) = parts.ok_or_else(|| damaged("its first line is not that of a MySQL dump of this version of larder"))?;
    let server = Version::of_server(server).ok_or_else(|| damaged("its first line names no version of a server"))?;
    at += length;
    starts.push(at);
    for name in ["objects", "events", "end"] {
        let mark = format!("-- larder {word} {name}\n");
        loop {
            let length = read_line(&mut reader, &mut line).map_err(failed)?;
            if length == 0 {
                return Err(damaged(&format!("its part `{name}` is missing")));
            }
            if line == mark.as_bytes() {
                ends.push(at);
                at += length;
                starts.push(at);
                break;
            }
            at += length;
        }
    }
    let mut ranges = starts.into_iter().zip(ends).map(|(start, end)| start..end);
    let mut next = || ranges.next().unwrap_or(0..0);
    let (tables, objects, events) = (next(), next(), next());
    drop(reader);
    Ok(SqlScript { file, server, tables, objects, events })
}

/// Reads a line, stores at most its first [`MAX_LINE`] bytes, and returns its length. A line of a dump can have many megabytes.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut length = 0_u64;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(length);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(buffer.len(), |end| end + 1);
        line.extend(buffer.iter().take(used).take(MAX_LINE.saturating_sub(line.len())));
        length += used as u64;
        reader.consume(used);
        if end.is_some() {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_dump_are_found_and_a_cut_dump_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("main.dump");
        let tables = format!("INSERT '{}'\n-- larder ff objects\n", "x".repeat(2_000_000));
        let text = format!(
            "{HEADER}0a1b, server 10.11.2-MariaDB\n{tables}-- larder 0a1b objects\nV\n-- larder 0a1b events\n-- larder 0a1b end\n"
        );
        std::fs::write(&path, &text).unwrap();
        let script = open(&path).unwrap();
        let part = |range: &Range<u64>| &text[range.start as usize..range.end as usize];
        assert_eq!((part(&script.tables) == tables, part(&script.objects), part(&script.events)), (true, "V\n", ""));
        assert_eq!(script.server.text, "10.11.2-MariaDB");
        for length in [0, 10, 100, text.len() - 1] {
            std::fs::write(&path, &text[..length]).unwrap();
            assert_eq!(open(&path).unwrap_err().kind, FailureKind::Damaged, "{length}");
        }
    }
}
