//! Replaces a Redis database with a dump: fills an empty database number of the server, and exchanges it with the live number by `SWAPDB`.

use std::path::Path;

use super::{
    connection::{Answer, Connection},
    file::Reader,
    keys_of, now,
};
use crate::backup::BackupFailure;

/// The key that marks a database number as larder's. The value of this key is the number of the live database. A database number without
/// this key is used only if it has no keys, and its keys are never deleted.
pub(super) const MARK: &[u8] = b"larder:restore";

/// The highest database number that a restore tries to fill. Servers have 16 databases by default.
const HIGHEST: u32 = 63;

/// The number of commands that are sent before their answers are read. The answers to these commands fit into the buffers of a socket.
const BATCH: usize = 100;

/// Replaces the database of a connection. `records` and `bytes` are the number of records and the total size of a dump that was read to its
/// end.
pub(super) fn restore(
    connection: &mut Connection,
    server: &str,
    from: &Path,
    (records, bytes): (u64, u64),
) -> Result<(), BackupFailure> {
    let live = connection.number;
    require_version(connection, server, from)?;
    require_memory(connection, bytes)?;
    let scratch = scratch(connection, live)?;
    let restored = fill(connection, from, scratch, live, records).and_then(|()| swap(connection, live, scratch));
    // The scratch number now has the replaced keys, or the keys of a failed restore. The result of the restore is known already, and the next
    // restore empties a number that keeps its keys.
    let _ = connection.select(scratch).and_then(|()| connection.good(&[b"FLUSHDB"]));
    restored
}

/// Checks that the database can be replaced, and leaves nothing behind.
pub(super) fn check(connection: &mut Connection) -> Result<(), BackupFailure> {
    let live = connection.number;
    let scratch = scratch(connection, live)?;
    connection.select(scratch)?;
    connection.good(&[b"FLUSHDB"])?;
    connection.select(live)
}

/// Returns the mark of the scratch number of a drill. A restore does not empty a number with this mark.
fn drill_mark(live: u32) -> String {
    format!("drill of {live}")
}

/// Marks an empty number for a drill, and returns the number.
pub(super) fn create_drill(connection: &mut Connection) -> Result<u32, BackupFailure> {
    marked(connection, connection.number, &drill_mark(connection.number))
}

/// Loads a dump into the marked number `scratch`.
pub(super) fn load_drill(
    connection: &mut Connection,
    server: &str,
    from: &Path,
    counts: (u64, u64),
    scratch: u32,
) -> Result<(), BackupFailure> {
    let live = connection.number;
    require_version(connection, server, from)?;
    require_memory(connection, counts.1)?;
    fill(connection, from, scratch, live, counts.0)
}

/// Empties the numbers that drills of this database have marked.
pub(super) fn drop_drills(connection: &mut Connection) -> Result<(), BackupFailure> {
    let (live, mark) = (connection.number, drill_mark(connection.number));
    for number in (0..=HIGHEST).filter(|number| *number != live) {
        if let Answer::Error(_) = connection.ask(&[b"SELECT", number.to_string().as_bytes()])? {
            break;
        }
        if connection.good(&[b"GET", MARK]).ok() == Some(Answer::Bytes(mark.clone().into_bytes())) {
            connection.good(&[b"FLUSHDB"])?;
        }
    }
    connection.select(live)
}

/// Returns the first two numbers of a version.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Refuses a dump of a newer server.
fn require_version(connection: &Connection, server: &str, from: &Path) -> Result<(), BackupFailure> {
    let dumped = Reader::open(from)?.server;
    // A serialised value states the version of its format, and a server refuses a version that is newer than its own.
    match (version(server), version(&dumped)) {
        (Some(server), Some(dumped)) if server >= dumped => Ok(()),
        _ => Err(connection.refused(format!("the server has version {server}, and the dump is of version {dumped}"))),
    }
}

/// Refuses a restore for which the server would evict keys: old and new keys exist at the same time.
fn require_memory(connection: &mut Connection, bytes: u64) -> Result<(), BackupFailure> {
    let mut field =
        |name: &str| Ok::<u64, BackupFailure>(connection.info("memory", name)?.and_then(|text| text.parse().ok()).unwrap_or(0));
    let (limit, used) = (field("maxmemory")?, field("used_memory")?);
    // A value in memory is larger than the serialised value, usually less than twice as large.
    let needed = used.saturating_add(bytes.saturating_mul(2));
    if limit == 0 || needed <= limit {
        return Ok(());
    }
    Err(BackupFailure {
        hint: Some(String::from("raise `maxmemory` of the server for the time of the restore")),
        ..connection.refused(format!("its `maxmemory` is {limit} bytes (expected {needed} for the old and the restored keys)"))
    })
}

/// Marks and returns the highest database number that is empty and not live. A number that a killed restore of this database has marked is
/// emptied first.
fn scratch(connection: &mut Connection, live: u32) -> Result<u32, BackupFailure> {
    marked(connection, live, &live.to_string())
}

/// Like [`scratch`], with `value` as the value of the mark.
fn marked(connection: &mut Connection, live: u32, value: &str) -> Result<u32, BackupFailure> {
    for number in (0..=HIGHEST).rev().filter(|number| *number != live) {
        if let Answer::Error(_) = connection.ask(&[b"SELECT", number.to_string().as_bytes()])? {
            continue;
        }
        if connection.good(&[b"GET", MARK]).ok() == Some(Answer::Bytes(value.as_bytes().to_vec())) {
            // A killed restore of this database left these keys.
            connection.good(&[b"FLUSHDB"])?;
        }
        if keys_of(connection, number)? == 0 && connection.good(&[b"SET", MARK, value.as_bytes(), b"NX"])? != Answer::Null {
            return Ok(number);
        }
    }
    Err(BackupFailure {
        hint: Some(String::from("raise `databases` of the server, or empty one of its databases")),
        ..connection.refused("a restore needs an empty database number of the server besides the live number, and there is none")
    })
}

/// Selects the scratch number, and loads all records into it.
fn fill(connection: &mut Connection, from: &Path, scratch: u32, live: u32, records: u64) -> Result<(), BackupFailure> {
    connection.select(scratch)?;
    let now = now(connection)?;
    let (mut reader, mut sent, mut lasting) = (Reader::open(from)?, 0, 0_u64);
    loop {
        let record = reader.next()?;
        let is_end = record.is_none();
        if let Some(record) = record {
            let left = record.expires.map(|at| at.saturating_sub(now));
            lasting += u64::from(left.is_none());
            // A key that has expired since the dump is not restored. `RESTORE` with a time of zero sets no expiry.
            if left.is_none_or(|left| left > 0) && record.key != MARK {
                let left = left.unwrap_or(0).to_string();
                connection.send(&[b"RESTORE", &record.key, left.as_bytes(), &record.value])?;
                sent += 1;
            }
        }
        if sent == BATCH || is_end {
            for _ in 0..sent {
                connection.good_answer(&[b"RESTORE"])?;
            }
            sent = 0;
        }
        if is_end {
            break;
        }
    }
    // The scratch number also has the mark. Keys with an expiry may have expired meanwhile.
    let found = keys_of(connection, scratch)?;
    if found < lasting || found > records + 1 {
        return Err(connection
            .refused(format!("database number {scratch} has {found} keys (expected {records}) while {live} was restored")));
    }
    Ok(())
}

/// Exchanges the two numbers in one transaction, which also moves the mark to the keys that are replaced.
fn swap(connection: &mut Connection, live: u32, scratch: u32) -> Result<(), BackupFailure> {
    let (number, live, scratch) = (live, live.to_string(), scratch.to_string());
    let commands: [&[&[u8]]; 7] = [
        &[b"MULTI"],
        &[b"SELECT", scratch.as_bytes()],
        &[b"DEL", MARK],
        &[b"SELECT", live.as_bytes()],
        &[b"SET", MARK, live.as_bytes()],
        &[b"SWAPDB", live.as_bytes(), scratch.as_bytes()],
        &[b"EXEC"],
    ];
    let mut answer = Answer::Null;
    for command in commands {
        match connection.good(command) {
            Ok(found) => answer = found,
            Err(failure) => {
                // `DISCARD` makes the server forget the queued commands.
                let _ = connection.ask(&[b"DISCARD"]);
                return Err(failure);
            }
        }
    }
    let answers = answer.list().unwrap_or_default();
    let is_exchanged = answers.len() == 5 && !answers.iter().any(|answer| matches!(answer, Answer::Error(_)));
    if !is_exchanged {
        // A part of the transaction may have put the mark into the live database.
        let _ = connection.select(number).and_then(|()| connection.ask(&[b"DEL", MARK]));
    }
    match answers.iter().find_map(|answer| if let Answer::Error(error) = answer { Some(error) } else { None }) {
        None if answers.len() == 5 => Ok(()),
        None => Err(connection.refused("the server did not exchange the databases")),
        Some(error) => Err(connection.refused(format!("the server did not exchange the databases: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("7.0.15"), Some((7, 0)));
        assert!(version("10.1.0") > version("7.2.4"));
        assert_eq!(version("x"), None);
    }
}
