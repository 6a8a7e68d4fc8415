//! The filter between the output of another machine and the user's terminal.
//!
//! A server can be anyone's: a file of a repository may name it. Text of the server must not move the cursor to other lines, change the
//! title, write to the clipboard or ask the terminal for an answer. Output that goes to a file or a pipe stays unchanged.

use std::io::{self, Read, Write};

use crate::model::visible_colour;

/// The maximum length of the parameters of an escape sequence that is kept, in bytes.
const MAX_PARAMETERS: usize = 32;

/// The state of the filter between two characters.
#[derive(Debug, Default)]
enum Reading {
    #[default]
    Text,
    /// After an escape character.
    Escape,
    /// In a control sequence, with its parameters.
    Control(String),
    /// In a string sequence, such as a title.
    Title,
    /// After an escape character in a string sequence.
    TextEscape,
}

/// A filter of bytes that arrive in pieces. Colours stay. A carriage return and a backspace stay, because they change the current line only.
#[derive(Debug, Default)]
pub(super) struct TerminalFilter {
    reading: Reading,
    /// The beginning of a character whose end has not arrived.
    unfinished: Vec<u8>,
    is_coloured: bool,
}

impl TerminalFilter {
    /// Returns the text that a terminal may show.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> String {
        self.unfinished.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.unfinished);
        let mut shown = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.filter(text, &mut shown);
                    return shown;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at_checked(error.valid_up_to()).unwrap_or((rest, &[]));
                    self.filter(&String::from_utf8_lossy(valid), &mut shown);
                    let Some(length) = error.error_len() else {
                        self.unfinished = invalid.to_vec();
                        return shown;
                    };
                    self.filter("\u{fffd}", &mut shown);
                    rest = invalid.get(length..).unwrap_or_default();
                }
            }
        }
    }

    /// Returns the text that resets the colour, if the output ended in a colour.
    pub(super) fn finish(&self) -> &'static str {
        if self.is_coloured { "\u{1b}[0m" } else { "" }
    }

    fn filter(&mut self, text: &str, shown: &mut String) {
        for c in text.chars() {
            self.reading = match (std::mem::take(&mut self.reading), c) {
                (Reading::Text, '\u{1b}') | (Reading::Escape, '\u{1b}') => Reading::Escape,
                (Reading::Text, c) => {
                    let is_mark =
                        matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
                    if matches!(c, '\n' | '\r' | '\t' | '\u{8}') || !(c.is_control() || is_mark) {
                        shown.push(c);
                    }
                    Reading::Text
                }
                (Reading::Escape, '[') => Reading::Control(String::new()),
                (Reading::Escape, ']' | 'P' | '^' | '_' | 'X') => Reading::Title,
                // An escape sequence of two or three characters, such as a change of the character set.
                (Reading::Escape, ' '..='/') => Reading::Escape,
                (Reading::Escape, _) => Reading::Text,
                (Reading::Control(parameters), 'm') => {
                    if let Some(colour) = visible_colour(&parameters) {
                        self.is_coloured = !matches!(colour.as_str(), "" | "0");
                        shown.push_str(&format!("\u{1b}[{colour}m"));
                    }
                    Reading::Text
                }
                (Reading::Control(_), '\u{40}'..='\u{7e}') => Reading::Text,
                (Reading::Control(_), '\u{1b}') => Reading::Escape,
                (Reading::Control(mut parameters), c) => {
                    // A sequence that is too long stays too long, so that its end is found and the sequence is not kept.
                    if parameters.len() <= MAX_PARAMETERS {
                        parameters.push(c);
                    }
                    Reading::Control(parameters)
                }
                (Reading::Title | Reading::TextEscape, '\u{7}' | '\u{9c}') => Reading::Text,
                (Reading::TextEscape, '\\') => Reading::Text,
                (Reading::Title | Reading::TextEscape, '\u{1b}') => Reading::TextEscape,
                (Reading::Title | Reading::TextEscape, _) => Reading::Title,
            };
        }
    }
}

/// Copies output to a terminal through the filter, until the output ends.
pub(super) fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut filter = TerminalFilter::default();
    let mut buffer = vec![0_u8; 16 << 10];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(filter.feed(buffer.get(..count).unwrap_or_default()).as_bytes())?;
        to.flush()?;
    }
    to.write_all(filter.finish().as_bytes())?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(text: &str) -> String {
        let mut filter = TerminalFilter::default();
        filter.feed(text.as_bytes()) + filter.finish()
    }

    #[test]
    fn sequences_other_than_colours_are_removed() {
        for (given, shown) in [
            ("a\u{1b}[2Jb", "ab"),
            ("a\u{1b}[1A\u{1b}[2Kb", "ab"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]52;c;aWQ=\u{1b}\\b", "ab"),
            ("a\u{1b}Pq#0\u{1b}\\b", "ab"),
            ("a\u{1b}[cb", "ab"),
            ("a\u{1b}cb", "ab"),
            ("a\u{1b}(0b", "ab"),
            ("a\u{9b}2Jb", "a2Jb"),
            ("a\u{7}\u{0}b", "ab"),
            ("a\u{202e}b", "ab"),
            ("a\u{1b}[8mhidden", "ahidden"),
            ("a\u{1b}[31mred", "a\u{1b}[31mred\u{1b}[0m"),
            ("a\u{1b}[31mred\u{1b}[0m.\r\n", "a\u{1b}[31mred\u{1b}[0m.\r\n"),
            ("continue: x\u{8} \u{8}", "continue: x\u{8} \u{8}"),
            ("50%\r100%\n", "50%\r100%\n"),
            ("gr\u{fc}n \u{1f600}", "gr\u{fc}n \u{1f600}"),
        ] {
            assert_eq!(filtered(given), shown, "{given:?}");
        }
        let long = format!("a\u{1b}[{}mb", "1;".repeat(100));
        assert_eq!(filtered(&long), "ab");
    }

    proptest! {
        /// The result does not depend on the pieces in which bytes arrive.
        #[test]
        fn pieces_give_the_same_text(
            bytes in proptest::collection::vec(prop_oneof![Just(0x1b_u8), Just(b'['), Just(b']'), Just(b'm'), Just(b'3'), any::<u8>()], 0..60),
            size in 1_usize..7,
        ) {
            let (mut whole, mut pieces) = (TerminalFilter::default(), TerminalFilter::default());
            let all = whole.feed(&bytes);
            let parts: String = bytes.chunks(size).map(|piece| pieces.feed(piece)).collect();
            prop_assert_eq!(&all, &parts);
            let colours_only = all.split('\u{1b}').skip(1).all(|rest| rest.starts_with('[') && rest.contains('m'));
            prop_assert!(colours_only && !all.chars().any(|c| c.is_control() && !"\n\r\t\u{8}\u{1b}".contains(c)), "{:?}", all);
        }
    }
}
