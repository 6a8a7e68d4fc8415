//! A connection to a Redis server: the request-response protocol in its second version (RESP2, redis.io/docs/reference/protocol-spec).

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::super::DatabaseJob;
use crate::{
    backup::{BackupFailure, FailureKind},
    model::sanitise_line,
};

/// The TCP port for a URL that states no port.
const PORT: u16 = 6379;

/// The time limit of a connection attempt.
const CONNECT: Duration = Duration::from_secs(10);

/// The timeout for the next bytes of an answer, and for the next bytes of a command. The timeout is long, because the server answers a
/// script only after the script has dumped the whole database.
const ANSWER: Duration = Duration::from_secs(300);

/// The maximum size of one value, in bytes: the limit of Redis itself.
const MAX_BULK: i64 = 512 << 20;

/// The maximum number of elements of one list.
const MAX_ELEMENTS: i64 = 100_000_000;

/// The maximum depth of nested lists.
const MAX_DEPTH: u8 = 8;

/// The maximum length of a line of an answer, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// An answer of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Status(String),
    Number(i64),
    Bytes(Vec<u8>),
    Null,
    List(Vec<Answer>),
    Error(String),
}

impl Answer {
    /// Returns the value of a number, or of bytes that are the decimal digits of a number.
    pub fn number(&self) -> Option<i64> {
        match self {
            Answer::Number(number) => Some(*number),
            Answer::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            _ => None,
        }
    }

    /// Returns the bytes.
    pub fn bytes(self) -> Option<Vec<u8>> {
        if let Answer::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    /// Returns the elements.
    pub fn list(self) -> Option<Vec<Answer>> {
        if let Answer::List(list) = self { Some(list) } else { None }
    }
}

/// A connection on which the database number of a URL is selected.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    /// The description of the database and its server, for messages.
    title: String,
    /// The number of the database.
    pub number: u32,
}

impl Connection {
    /// Connects, logs in and selects the database.
    pub fn open(job: &DatabaseJob) -> Result<Connection, BackupFailure> {
        let address = job.address()?;
        if !matches!(address.scheme.as_str(), "redis" | "valkey") {
            return Err(BackupFailure {
                hint: Some(String::from("use a `redis://` URL: larder has no TLS connection to Redis")),
                ..job.refused(format!("its URL has the scheme {} (expected redis)", sanitise_line(&address.scheme)))
            });
        }
        let number = address.database.as_ref().or_else(|| address.parameters.get("db")).map_or("0", String::as_str);
        let number = number.parse().map_err(|_| job.refused("the path of its URL is not a database number, such as /0"))?;
        let title = format!("the Redis database {} at {}", job.name, address.server(PORT));
        let host = address.host.as_deref().unwrap_or("127.0.0.1");
        let stream = connect(host, address.port.unwrap_or(PORT)).map_err(|error| BackupFailure {
            hint: Some(String::from("check that the server runs, and that it accepts TCP connections at this address")),
            ..BackupFailure::new(FailureKind::Refused, format!("cannot connect to {title}: {error}"))
        })?;
        let mut connection = Connection { reader: BufReader::with_capacity(1 << 16, stream), title, number };
        if let Some(password) = &address.password {
            let words: Vec<&[u8]> = match &address.user {
                Some(user) => vec![b"AUTH", user.as_bytes(), password.as_bytes()],
                None => vec![b"AUTH", password.as_bytes()],
            };
            if let Answer::Error(error) = connection.ask(&words)? {
                return Err(BackupFailure {
                    hint: Some(String::from("check the user and the password in the URL of the database")),
                    ..connection.refused(error.replace(password.as_str(), "***"))
                });
            }
        }
        connection.select(number)?;
        Ok(connection)
    }

    /// Returns a refusal about this database.
    pub fn refused(&self, why: impl std::fmt::Display) -> BackupFailure {
        let why: String = sanitise_line(&why.to_string()).chars().take(600).collect();
        BackupFailure::new(FailureKind::Refused, format!("cannot use {}: {why}", self.title))
    }

    /// Selects a database number.
    pub fn select(&mut self, number: u32) -> Result<(), BackupFailure> {
        self.good(&[b"SELECT", number.to_string().as_bytes()]).map(drop)
    }

    /// Sends a command and returns its answer.
    pub fn ask(&mut self, words: &[&[u8]]) -> Result<Answer, BackupFailure> {
        self.send(words)?;
        self.answer()
    }

    /// Sends a command and returns its answer, or the server's error as a failure.
    pub fn good(&mut self, words: &[&[u8]]) -> Result<Answer, BackupFailure> {
        self.send(words)?;
        self.good_answer(words)
    }

    /// Returns the answer to a command that was sent, or the server's error as a failure.
    pub fn good_answer(&mut self, words: &[&[u8]]) -> Result<Answer, BackupFailure> {
        match self.answer()? {
            Answer::Error(error) => {
                let command = words.first().map(|word| String::from_utf8_lossy(word).into_owned()).unwrap_or_default();
                let hint = match error.split(' ').next() {
                    Some("NOAUTH" | "WRONGPASS") => Some("check the user and the password in the URL of the database"),
                    Some("NOPERM") => Some("allow this command to the user of the URL"),
                    _ => None,
                };
                Err(BackupFailure { hint: hint.map(str::to_owned), ..self.refused(format!("{command} failed: {error}")) })
            }
            answer => Ok(answer),
        }
    }

    /// Sends a command.
    pub fn send(&mut self, words: &[&[u8]]) -> Result<(), BackupFailure> {
        let size = words.iter().map(|word| word.len() + 32).sum();
        let mut bytes = Vec::with_capacity(size);
        bytes.extend(format!("*{}\r\n", words.len()).bytes());
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend_from_slice(word);
            bytes.extend(b"\r\n");
        }
        self.reader.get_mut().write_all(&bytes).map_err(|error| self.lost(&error))
    }

    /// Reads the next answer.
    pub fn answer(&mut self) -> Result<Answer, BackupFailure> {
        read_answer(&mut self.reader, 0).map_err(|error| self.lost(&error))
    }

    fn lost(&self, error: &io::Error) -> BackupFailure {
        BackupFailure::new(FailureKind::Machine, format!("cannot use {}: the connection failed: {error}", self.title))
    }

    /// Returns the value of a field in a section of `INFO`.
    pub fn info(&mut self, section: &str, field: &str) -> Result<Option<String>, BackupFailure> {
        let text = self.good(&[b"INFO", section.as_bytes()])?.bytes().unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let value =
            text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(|value| value.trim().to_owned()));
        Ok(value)
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(ANSWER))?;
                stream.set_write_timeout(Some(ANSWER))?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the answer is not valid RESP: {why}"))
}

fn read_answer(reader: &mut impl BufRead, depth: u8) -> io::Result<Answer> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    let Some(line) = line.strip_suffix(b"\r\n") else { return Err(malformed("a line does not end")) };
    let Some((kind, rest)) = line.split_first() else { return Err(malformed("a line is empty")) };
    let text = || String::from_utf8_lossy(rest).into_owned();
    let number = || text().parse::<i64>().map_err(|_| malformed("a number has a letter"));
    Ok(match kind {
        b'+' => Answer::Status(text()),
        b'-' => Answer::Error(text()),
        b':' => Answer::Number(number()?),
        b'$' => match number()? {
            -1 => Answer::Null,
            length @ 0..=MAX_BULK => {
                let mut bytes = Vec::new();
                let length = length.unsigned_abs();
                // The memory grows with the received bytes, not with the announced length.
                reader.by_ref().take(length).read_to_end(&mut bytes)?;
                let mut end = [0; 2];
                reader.read_exact(&mut end)?;
                if bytes.len() as u64 != length || end != *b"\r\n" {
                    return Err(malformed("a value is cut"));
                }
                Answer::Bytes(bytes)
            }
            _ => return Err(malformed("a value is too long")),
        },
        b'*' => match number()? {
            -1 => Answer::Null,
            length @ 0..=MAX_ELEMENTS if depth < MAX_DEPTH => {
                Answer::List((0..length).map(|_| read_answer(reader, depth + 1)).collect::<io::Result<_>>()?)
            }
            _ => return Err(malformed("a list is too long or too deep")),
        },
        _ => return Err(malformed("an unknown kind of answer")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Answer> {
        read_answer(&mut text.as_bytes(), 0)
    }

    #[test]
    fn answers_of_each_kind_are_read() {
        let bytes = |text: &str| Answer::Bytes(text.as_bytes().to_vec());
        assert_eq!(read("+OK\r\n").unwrap(), Answer::Status(String::from("OK")));
        assert_eq!(
            read("*3\r\n$3\r\na\r\n\r\n:-7\r\n$-1\r\n").unwrap(),
            Answer::List(vec![bytes("a\r\n"), Answer::Number(-7), Answer::Null])
        );
        assert_eq!(read("-ERR no\r\n").unwrap(), Answer::Error(String::from("ERR no")));
        assert_eq!(bytes("42").number(), Some(42));
    }

    #[test]
    fn malformed_answer_is_an_error() {
        let deep = "*1\r\n".repeat(20);
        for text in
            ["", "+OK", "$5\r\nabc", "$3\r\nabcXX", "$-2\r\n", ":x\r\n", "!1\r\n", "$99999999999\r\n", "*2\r\n:1\r\n", &deep]
        {
            assert!(read(text).is_err(), "{text:?}");
        }
    }
}
