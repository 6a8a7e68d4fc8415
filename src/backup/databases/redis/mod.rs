//! Redis: one database number of a server, key by key with `DUMP` and `RESTORE`.
//!
//! An RDB file (`redis-cli --rdb`) has the databases of all applications that use the server. Only the operator of the server can load such
//! a file, and larder is not the operator. A dump therefore has the keys of the one database number in the URL. A restore fills an empty
//! database number and exchanges it with the live number by `SWAPDB`, which the server executes whole or not at all.

mod connection;
mod file;
mod restore;

use std::{collections::HashSet, fs, path::Path};

use self::{
    connection::{Answer, Connection},
    file::{RdbRecord, RdbWriter},
};
use super::{DatabaseJob, DatabaseSize, DumpInfo, Engine, EngineVersions, OtherSessions};
use crate::backup::BackupFailure;

/// The maximum size of the values of a server whose database is dumped by one script, in bytes. While the script runs, the server keeps the
/// dump in memory, and serves no other client.
const MAX_SCRIPT: u64 = 128 << 20;

/// The script that returns all keys of the database at one moment: key, remaining time in milliseconds or -1, serialised value. The first
/// element of the answer is the server's time.
const SCRIPT: &str = "local all = {redis.call('TIME')} \
    for _, key in ipairs(redis.call('KEYS', '*')) do all[#all + 1] = {key, redis.call('PTTL', key), redis.call('DUMP', key)} end \
    return all";

/// Marks an empty number of the server for a drill, and returns the number.
pub(super) fn create_scratch(job: &DatabaseJob) -> Result<u32, BackupFailure> {
    let mut connection = Connection::open(job)?;
    versions(&mut connection)?;
    restore::drop_drills(&mut connection)?;
    restore::create_drill(&mut connection)
}

/// Loads a dump into the marked number of `target`.
pub(super) fn load_scratch(job: &DatabaseJob, target: &DatabaseJob, dump: &Path) -> Result<(), BackupFailure> {
    let counts = file::check(dump)?;
    let scratch = Connection::open(target)?.number;
    let mut connection = Connection::open(job)?;
    let versions = versions(&mut connection)?;
    restore::load_drill(&mut connection, &versions.server, dump, counts, scratch)
}

/// Empties the numbers that drills of this database have marked.
pub(super) fn drop_scratch(job: &DatabaseJob) -> Result<(), BackupFailure> {
    restore::drop_drills(&mut Connection::open(job)?)
}

/// The engine of Redis.
pub(super) struct Redis;

impl Engine for Redis {
    fn check(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        versions(&mut Connection::open(job)?)
    }

    fn check_restore(&self, job: &DatabaseJob) -> Result<EngineVersions, BackupFailure> {
        let mut connection = Connection::open(job)?;
        let versions = versions(&mut connection)?;
        restore::check(&mut connection).map(|()| versions)
    }

    fn size(&self, job: &DatabaseJob) -> Result<DatabaseSize, BackupFailure> {
        let mut connection = Connection::open(job)?;
        let number = connection.number;
        let own = keys_of(&mut connection, number)?;
        let all = connection.good(&[b"INFO", b"keyspace"])?.bytes().unwrap_or_default();
        let all: u64 = String::from_utf8_lossy(&all).lines().filter_map(keys_in_line).map(|(_, keys)| keys).sum();
        let used = dataset(&mut connection)?;
        // The server states only the memory of all its databases together. The part of this database is estimated by its number of keys.
        let part = u128::from(used) * u128::from(own) / u128::from(all.max(own).max(1));
        Ok(DatabaseSize { bytes: u64::try_from(part).unwrap_or(used) })
    }

    fn other_sessions(&self, job: &DatabaseJob) -> Result<Option<OtherSessions>, BackupFailure> {
        let mut connection = Connection::open(job)?;
        let number = connection.number.to_string();
        let listed = connection.good(&[b"CLIENT", b"LIST"])?.bytes().unwrap_or_default();
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let field = |line: &str, name: &str| {
            let found = line.split(' ').find_map(|field| field.split_once('=').filter(|(key, _)| *key == name));
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        // The last command of this connection is `CLIENT LIST`.
        let others = listed.lines().filter(|line| field(line, "db") == number && !field(line, "cmd").starts_with("client"));
        let others: Vec<_> = others.map(|line| field(line, "addr")).collect();
        let first =
            others.first().map(|address| format!("a client from {}", address.rsplit_once(':').map_or("", |(host, _)| host)));
        Ok(first.map(|first| OtherSessions::new(job, others.len() as u64, &first)))
    }

    fn dump(&self, job: &DatabaseJob, into: &Path) -> Result<DumpInfo, BackupFailure> {
        let mut connection = Connection::open(job)?;
        let versions = versions(&mut connection)?;
        let mut writer = RdbWriter::create(into, &versions.server)?;
        if dataset(&mut connection)? > MAX_SCRIPT || !dump_at_once(&mut connection, &mut writer)? {
            dump_each(&mut connection, &mut writer)?;
        }
        writer.finish()?;
        let bytes = fs::metadata(into).map_err(|e| BackupFailure::io("read the dump", &e))?.len();
        Ok(DumpInfo::of(job, versions, bytes))
    }

    fn verify(&self, dump: &Path) -> Result<(), BackupFailure> {
        file::check(dump).map(drop)
    }

    fn restore(&self, job: &DatabaseJob, from: &Path) -> Result<(), BackupFailure> {
        let counts = file::check(from)?;
        let mut connection = Connection::open(job)?;
        let versions = versions(&mut connection)?;
        restore::restore(&mut connection, &versions.server, from, counts)
    }
}

/// Returns the versions, and refuses a server that larder cannot dump.
fn versions(connection: &mut Connection) -> Result<EngineVersions, BackupFailure> {
    let server = connection.info("server", "redis_version")?;
    let server = server.ok_or_else(|| connection.refused("the server states no version"))?;
    if connection.info("cluster", "cluster_enabled")?.as_deref() == Some("1") {
        return Err(connection.refused("the server is part of a cluster"));
    }
    // Before version 4, Redis cannot exchange two databases.
    match restore::version(&server) {
        Some((4.., _)) => Ok(EngineVersions { tool: format!("larder {}", env!("CARGO_PKG_VERSION")), server }),
        _ => Err(connection.refused(format!("the server has version {server} (expected 4.0 or newer)"))),
    }
}

/// Returns the memory of all values of the server, in bytes.
fn dataset(connection: &mut Connection) -> Result<u64, BackupFailure> {
    let used = connection.info("memory", "used_memory_dataset")?.and_then(|text| text.parse().ok());
    used.ok_or_else(|| connection.refused("the server does not state its memory"))
}

/// Selects a database number and returns its number of keys.
fn keys_of(connection: &mut Connection, number: u32) -> Result<u64, BackupFailure> {
    connection.select(number)?;
    let keys = connection.good(&[b"DBSIZE"])?.number().and_then(|keys| u64::try_from(keys).ok());
    keys.ok_or_else(|| connection.refused("the server states no number of keys"))
}

/// Reads a line of `INFO keyspace`, such as `db0:keys=5,expires=1,avg_ttl=0`.
fn keys_in_line(line: &str) -> Option<(u32, u64)> {
    let (number, rest) = line.strip_prefix("db")?.split_once(":keys=")?;
    Some((number.parse().ok()?, rest.split(',').next()?.trim().parse().ok()?))
}

/// Dumps all keys at one moment by a script. Returns false if the server refuses the script.
fn dump_at_once(connection: &mut Connection, writer: &mut RdbWriter) -> Result<bool, BackupFailure> {
    let malformed = "the server answered the script with an unknown list";
    let answer = match connection.ask(&[b"EVAL", SCRIPT.as_bytes(), b"0"])? {
        Answer::Error(_) => return Ok(false),
        answer => answer.list().ok_or_else(|| connection.refused(malformed))?,
    };
    let mut answer = answer.into_iter();
    let now = answer.next().and_then(milliseconds).ok_or_else(|| connection.refused(malformed))?;
    for entry in answer {
        let entry: Option<[Answer; 3]> = entry.list().and_then(|list| list.try_into().ok());
        let [key, left, value] = entry.ok_or_else(|| connection.refused(malformed))?;
        let (Some(key), Some(left)) = (key.bytes(), left.number()) else { return Err(connection.refused(malformed)) };
        // A key may expire between two calls of the script.
        if let Some(value) = value.bytes().filter(|_| key != restore::MARK) {
            writer.add(&RdbRecord { key, expires: (left >= 0).then(|| now.saturating_add(left)), value })?;
        }
    }
    Ok(true)
}

/// Reads the answer to `TIME` as milliseconds since 1970.
fn milliseconds(time: Answer) -> Option<i64> {
    match time.list()?.as_slice() {
        [seconds, micros] => seconds.number()?.checked_mul(1000)?.checked_add(micros.number()? / 1000),
        _ => None,
    }
}

/// Returns the server's time in milliseconds since 1970.
fn now(connection: &mut Connection) -> Result<i64, BackupFailure> {
    let time = connection.good(&[b"TIME"])?;
    milliseconds(time).ok_or_else(|| connection.refused("the server states no time"))
}

/// Dumps the keys one after the other. Each value is consistent, but the keys are from different moments while an application writes.
fn dump_each(connection: &mut Connection, writer: &mut RdbWriter) -> Result<(), BackupFailure> {
    let malformed = "the server answered SCAN with an unknown list";
    let (mut cursor, mut seen) = (b"0".to_vec(), HashSet::new());
    loop {
        let answer = connection.good(&[b"SCAN", &cursor, b"COUNT", b"500"])?.list();
        let answer: Option<[Answer; 2]> = answer.and_then(|list| list.try_into().ok());
        let [next, keys] = answer.ok_or_else(|| connection.refused(malformed))?;
        let (Some(next), Some(keys)) = (next.bytes(), keys.list()) else { return Err(connection.refused(malformed)) };
        let now = now(connection)?;
        // `SCAN` may return a key twice.
        let keys: Vec<Vec<u8>> =
            keys.into_iter().filter_map(Answer::bytes).filter(|key| key != restore::MARK && seen.insert(key.clone())).collect();
        for key in keys {
            connection.send(&[b"PTTL", &key])?;
            connection.send(&[b"DUMP", &key])?;
            let left = connection.good_answer(&[b"PTTL"])?.number().unwrap_or(-1);
            if let Answer::Bytes(value) = connection.good_answer(&[b"DUMP"])? {
                writer.add(&RdbRecord { key, expires: (left >= 0).then(|| now.saturating_add(left)), value })?;
            }
        }
        if next == b"0" {
            return Ok(());
        }
        cursor = next;
    }
}
