//! The terminal of a client, for commands that run in a pseudo-terminal.

use serde::{Deserialize, Serialize};

/// The maximum width and height. Larger windows do not exist, and a program may allocate memory for each character of its window.
const MAX_SIZE: u32 = 1000;
/// The maximum length of `TERM`, in bytes.
const MAX_TERM: usize = 64;
/// The value of `TERM` for a client whose own value is not accepted.
const PLAIN: &str = "dumb";

/// The size of a terminal. Zero means that the client does not know the size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// The width, in characters.
    pub columns: u16,
    /// The height, in lines.
    pub rows: u16,
}

impl TerminalSize {
    /// Creates a size. A width or height above 1,000 becomes 1,000.
    pub fn new(columns: u32, rows: u32) -> TerminalSize {
        let limited = |size: u32| u16::try_from(size.min(MAX_SIZE)).unwrap_or_default();
        TerminalSize { columns: limited(columns), rows: limited(rows) }
    }
}

/// The terminal that a client requests for a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTerminal {
    term: String,
    /// The size at the start of the command.
    pub size: TerminalSize,
    /// The modes of the client's terminal: opcodes with values, as in RFC 4254, section 8.
    pub modes: Vec<(u8, u32)>,
}

impl ClientTerminal {
    /// Creates a terminal. A `term` other than 1 to 64 characters of `[A-Za-z0-9._+-]` becomes `dumb`.
    pub fn new(term: &str, size: TerminalSize, modes: Vec<(u8, u32)>) -> ClientTerminal {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
        let is_accepted = (1..=MAX_TERM).contains(&term.len()) && term.bytes().all(is_plain) && !term.starts_with('.');
        ClientTerminal { term: if is_accepted { term } else { PLAIN }.to_owned(), size, modes }
    }

    /// Returns the same terminal with another size.
    pub fn with_size(&self, size: TerminalSize) -> ClientTerminal {
        ClientTerminal { size, ..self.clone() }
    }

    /// Returns the value of the environment variable `TERM`.
    pub fn term(&self) -> &str {
        &self.term
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusual_term_becomes_dumb() {
        let term = |text: &str| ClientTerminal::new(text, TerminalSize::default(), Vec::new()).term;
        for good in ["xterm-256color", "screen.xterm", "vt100", "rxvt-unicode+x", &"a".repeat(64)] {
            assert_eq!(term(good), good);
        }
        for bad in ["", "xterm\n", "a/../b", "..", "xterm\u{1b}[2J", "x y", "$(id)", "é", &"a".repeat(65)] {
            assert_eq!(term(bad), "dumb", "{bad:?}");
        }
    }

    #[test]
    fn size_is_limited() {
        assert_eq!(TerminalSize::new(80, 24), TerminalSize { columns: 80, rows: 24 });
        assert_eq!(TerminalSize::new(u32::MAX, 0), TerminalSize { columns: 1000, rows: 0 });
    }
}
