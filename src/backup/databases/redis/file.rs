//! The dump of a Redis database. The first line has the version of the format and of the server. A record for each key follows, with the
//! time of expiry and the value as `DUMP` serialises it. The dump ends with the mark `END`, the number of records, and a digest of all
//! preceding bytes.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::backup::{BackupFailure, FailureKind};

/// The beginning of the first line. The number is the version of the format.
const HEADER: &[u8] = b"larder dump of Redis, format 1, server ";

/// The maximum length of the first line, in bytes.
const MAX_HEADER: u64 = 200;

/// The mark of the end of the records. This number stands in the place of a key's length, and is larger than any length.
const END: u32 = u32::MAX;

/// The maximum length of a key or value, in bytes: the limit of Redis itself.
const MAX_BYTES: u32 = 512 << 20;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RdbRecord {
    pub key: Vec<u8>,
    /// The time of expiry in milliseconds since 1970; absent for a key that does not expire.
    pub expires: Option<i64>,
    /// The value as `DUMP` serialises it.
    pub value: Vec<u8>,
}

fn failed(error: &io::Error) -> BackupFailure {
    BackupFailure::io("write the dump", error)
}

fn damaged(why: &str) -> BackupFailure {
    BackupFailure::new(FailureKind::Damaged, format!("cannot use the dump: {why}"))
}

/// A dump that is being written.
pub(super) struct RdbWriter {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    records: u64,
}

impl RdbWriter {
    /// Creates the new file `into`.
    pub fn create(into: &Path, server: &str) -> Result<RdbWriter, BackupFailure> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(into).map_err(|e| failed(&e))?;
        let mut writer = RdbWriter { file: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new(), records: 0 };
        writer.put(HEADER)?;
        writer.put(server.as_bytes())?;
        writer.put(b"\n")?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BackupFailure> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(|e| failed(&e))
    }

    /// Appends a record to the file.
    pub fn add(&mut self, record: &RdbRecord) -> Result<(), BackupFailure> {
        let length = |bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MAX_BYTES);
            length
                .ok_or_else(|| BackupFailure::new(FailureKind::Refused, "cannot write the dump: a value is larger than 512 MiB"))
        };
        self.put(&length(&record.key)?.to_le_bytes())?;
        self.put(&record.key)?;
        self.put(&record.expires.unwrap_or(-1).to_le_bytes())?;
        self.put(&length(&record.value)?.to_le_bytes())?;
        self.put(&record.value)?;
        self.records += 1;
        Ok(())
    }

    /// Writes the end, and returns after the file is on the disk.
    pub fn finish(mut self) -> Result<(), BackupFailure> {
        self.put(&END.to_le_bytes())?;
        self.put(&self.records.to_le_bytes())?;
        let digest = *self.hasher.finalize().as_bytes();
        self.put(&digest)?;
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(|e| failed(&e))
    }
}

/// A dump that is being read.
pub(super) struct Reader {
    file: BufReader<File>,
    hasher: blake3::Hasher,
    records: u64,
    /// The version of the server that was dumped.
    pub server: String,
}

impl Reader {
    /// Opens a dump at its first record.
    pub fn open(path: &Path) -> Result<Reader, BackupFailure> {
        let file = File::open(path).map_err(|e| BackupFailure::io("open the dump", &e))?;
        let mut reader = Reader {
            file: BufReader::with_capacity(1 << 20, file),
            hasher: blake3::Hasher::new(),
            records: 0,
            server: String::new(),
        };
        let mut line = Vec::new();
        io::BufRead::read_until(&mut reader.file.by_ref().take(MAX_HEADER), b'\n', &mut line)
            .map_err(|e| BackupFailure::io("read the dump", &e))?;
        reader.hasher.update(&line);
        let server = line.strip_prefix(HEADER).and_then(|rest| rest.strip_suffix(b"\n"));
        let server = server.and_then(|server| std::str::from_utf8(server).ok());
        reader.server =
            server.ok_or_else(|| damaged("its first line is not that of a Redis dump of this version of larder"))?.to_owned();
        Ok(reader)
    }

    fn take(&mut self, length: u64) -> Result<Vec<u8>, BackupFailure> {
        let mut bytes = Vec::new();
        // The memory grows with the bytes of the file, not with the length that the file states.
        self.file.by_ref().take(length).read_to_end(&mut bytes).map_err(|e| BackupFailure::io("read the dump", &e))?;
        if bytes.len() as u64 != length {
            return Err(damaged("its end is missing"));
        }
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], BackupFailure> {
        self.take(N as u64)?.try_into().map_err(|_| damaged("its end is missing"))
    }

    fn bytes(&mut self, length: u32) -> Result<Vec<u8>, BackupFailure> {
        match length {
            0..=MAX_BYTES => self.take(u64::from(length)),
            _ => Err(damaged("a length is too large")),
        }
    }

    /// Returns the next record, or `None` after the last record. The digest is checked after the last record, so a caller must read a dump
    /// to its end before it uses a record of the dump.
    pub fn next(&mut self) -> Result<Option<RdbRecord>, BackupFailure> {
        let length = u32::from_le_bytes(self.number()?);
        if length == END {
            let records = u64::from_le_bytes(self.number()?);
            let digest = self.hasher.finalize();
            let stored: [u8; 32] = self.number()?;
            let mut rest = [0; 1];
            let is_at_end = self.file.read(&mut rest).map_err(|e| BackupFailure::io("read the dump", &e))? == 0;
            if records != self.records || digest != stored || !is_at_end {
                return Err(damaged("its digest differs"));
            }
            return Ok(None);
        }
        let key = self.bytes(length)?;
        let expires = i64::from_le_bytes(self.number()?);
        let length = u32::from_le_bytes(self.number()?);
        let value = self.bytes(length)?;
        self.records += 1;
        Ok(Some(RdbRecord { key, expires: (expires >= 0).then_some(expires), value }))
    }
}

/// Reads a dump to its end. Returns the number of records, and the total size of keys and values in bytes.
pub(super) fn check(path: &Path) -> Result<(u64, u64), BackupFailure> {
    let (mut reader, mut records, mut bytes) = (Reader::open(path)?, 0, 0);
    while let Some(record) = reader.next()? {
        records += 1;
        bytes += (record.key.len() + record.value.len()) as u64;
    }
    Ok((records, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_written_and_a_changed_byte_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("main.dump");
        let records = [
            RdbRecord { key: b"a\0\n".to_vec(), expires: None, value: vec![0, 255, 10] },
            RdbRecord { key: Vec::new(), expires: Some(0), value: Vec::new() },
            RdbRecord { key: b"b".to_vec(), expires: Some(1_796_007_300_000), value: vec![7; 100_000] },
        ];
        let mut writer = RdbWriter::create(&path, "7.0.15").unwrap();
        records.iter().for_each(|record| writer.add(record).unwrap());
        writer.finish().unwrap();
        let mut reader = Reader::open(&path).unwrap();
        assert_eq!(reader.server, "7.0.15");
        let mut found = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            found.push(record);
        }
        assert_eq!(found, records);
        assert_eq!(check(&path).unwrap(), (3, 100_007));
        let good = std::fs::read(&path).unwrap();
        for at in [0, 45, 60, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(check(&path).unwrap_err().kind, FailureKind::Damaged, "{at}");
        }
        for length in [0, 20, 50, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert_eq!(check(&path).unwrap_err().kind, FailureKind::Damaged, "{length}");
        }
        std::fs::write(&path, [good.as_slice(), b"x"].concat()).unwrap();
        assert_eq!(check(&path).unwrap_err().kind, FailureKind::Damaged);
    }
}
