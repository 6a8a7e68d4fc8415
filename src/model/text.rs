//! Sanitises untrusted text for terminals. Git clients before 2.55 print the bytes of a server unchanged.

/// The maximum number of characters of a line. Further characters are replaced by an ellipsis.
pub const MAX_LINE: usize = 4096;
/// The maximum number of characters of the reason in git's `! [remote rejected]` line.
pub const MAX_REASON: usize = 200;

/// The maximum length of the parameters of an SGR sequence, in bytes. Longer sequences are removed.
const MAX_PARAMETERS: usize = 32;

const ESCAPE: char = '\u{1b}';
const RESET: &str = "\u{1b}[0m";

/// Returns one line of output without sequences that move the cursor, change the title or hide text. Colours (SGR sequences) are kept, and
/// are reset at the end. If a line has carriage returns, only the text after the last carriage return is kept.
pub fn sanitise_line(line: &str) -> String {
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line.rsplit('\r').next().unwrap_or(line);
    printable(line, MAX_LINE)
}

/// Sanitises text of several lines. Unlike [`sanitise_line`], this function does not shorten lines, and keeps the text before a carriage
/// return.
pub fn sanitise_text(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        let line = line.strip_suffix('\r').unwrap_or(line);
        let pieces: Vec<_> = line.split('\r').map(|piece| printable(piece, usize::MAX)).collect();
        clean.push_str(&pieces.join(" "));
        clean.push_str(end);
    }
    clean
}

fn printable(line: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(line.len());
    let (mut length, mut coloured) = (0_usize, false);
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if length == limit {
            clean.push('\u{2026}');
            break;
        }
        if c == ESCAPE {
            if let Some(colour) = escape_sequence(&mut rest) {
                coloured = !matches!(colour.as_str(), "" | "0");
                clean.push_str("\u{1b}[");
                clean.push_str(&colour);
                clean.push('m');
            }
        } else if c == '\n' {
            clean.push(' ');
            length += 1;
        } else if c == '\t' || !is_unprintable(c) {
            clean.push(c);
            length += 1;
        }
    }
    if coloured {
        clean.push_str(RESET);
    }
    clean
}

/// Returns one line of text without colours and control characters, at most `limit` characters, for mails and records. Unlike
/// [`sanitise_reason`], this function keeps the white space inside the line.
pub fn plain_line(line: &str, limit: usize) -> String {
    let line = line.trim_end_matches(['\r', '\n']);
    let (mut clean, mut length) = (String::new(), 0_usize);
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if length == limit {
            clean.push('\u{2026}');
            break;
        }
        if c == ESCAPE {
            let _ = escape_sequence(&mut rest);
        } else if matches!(c, '\n' | '\r' | '\t') {
            clean.push(' ');
            length += 1;
        } else if !is_unprintable(c) {
            clean.push(c);
            length += 1;
        }
    }
    clean
}

/// Sanitises one line of bytes, which are not necessarily UTF-8.
pub fn sanitise_bytes(line: &[u8]) -> String {
    sanitise_line(&String::from_utf8_lossy(line))
}

/// Returns a reason for git's rejected line: one printable line without colours, at most [`MAX_REASON`] characters, never empty.
pub fn sanitise_reason(reason: &str) -> String {
    let mut clean = String::new();
    let mut rest = reason.chars();
    while let Some(c) = rest.next() {
        if c == ESCAPE {
            let _ = escape_sequence(&mut rest);
        } else if c.is_whitespace() {
            if !clean.ends_with(' ') {
                clean.push(' ');
            }
        } else if !is_unprintable(c) {
            clean.push(c);
        }
    }
    let clean = clean.trim();
    if clean.is_empty() {
        return String::from("no reason was given");
    }
    if clean.chars().count() <= MAX_REASON {
        return clean.to_owned();
    }
    let mut cut: String = clean.chars().take(MAX_REASON - 1).collect();
    cut.push('\u{2026}');
    cut
}

/// Consumes the sequence after an escape character. Returns the parameters of an SGR sequence, which sets colours, or else `None`.
fn escape_sequence(rest: &mut std::str::Chars<'_>) -> Option<String> {
    match rest.next()? {
        '[' => {
            let mut parameters = String::new();
            for c in rest.by_ref() {
                match c {
                    '0'..='9' | ';' | ':' if parameters.len() < MAX_PARAMETERS => parameters.push(c),
                    'm' => return visible_colour(&parameters),
                    // A sequence that is not an SGR sequence is skipped up to its final byte (ECMA-48).
                    _ => {
                        if !('\u{40}'..='\u{7e}').contains(&c) {
                            let _ = rest.by_ref().find(|c| ('\u{40}'..='\u{7e}').contains(c));
                        }
                        return None;
                    }
                }
            }
            None
        }
        // String sequences (titles, links, images) end with BEL or ESC \.
        ']' | 'P' | '^' | '_' | 'X' => {
            while let Some(c) = rest.next() {
                if c == '\u{7}' || c == '\u{9c}' {
                    break;
                }
                if c == ESCAPE {
                    let _ = rest.next();
                    break;
                }
            }
            None
        }
        _ => None,
    }
}

/// Returns SGR parameters without the parameter 8, which hides text. Returns `None` if no parameter is left. In an extended colour, such
/// as `38;5;8`, the number 8 is a part of the colour and is kept.
pub fn visible_colour(parameters: &str) -> Option<String> {
    if parameters.len() > MAX_PARAMETERS || !parameters.bytes().all(|c| c.is_ascii_digit() || matches!(c, b';' | b':')) {
        return None;
    }
    let number = |parameter: &str| parameter.trim_start_matches('0').to_owned();
    let mut kept = Vec::new();
    let mut rest = parameters.split(';');
    while let Some(parameter) = rest.next() {
        match number(parameter).as_str() {
            "38" | "48" | "58" => {
                let shades = match rest.next().map(number).as_deref() {
                    Some("5") => 1,
                    Some("2") => 3,
                    // Terminals interpret the following parameters differently, so they are dropped.
                    _ => break,
                };
                kept.extend([parameter, if shades == 1 { "5" } else { "2" }]);
                kept.extend(rest.by_ref().take(shades));
            }
            hides if hides == "8" || hides.starts_with("8:") => {}
            _ => kept.push(parameter),
        }
    }
    (!kept.is_empty()).then(|| kept.join(";"))
}

/// Returns true for control characters and for marks that change the reading order of text.
fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_stay_and_are_reset_at_the_end() {
        assert_eq!(sanitise_line("\u{1b}[31mred"), "\u{1b}[31mred\u{1b}[0m");
        assert_eq!(sanitise_line("\u{1b}[1;32mok\u{1b}[0m done\n"), "\u{1b}[1;32mok\u{1b}[0m done");
        for (given, shown) in [
            ("1;8;31", "1;31"),
            ("38;5;8", "38;5;8"),
            ("38;2;8;8;8;8", "38;2;8;8;8"),
            ("1;48;5;8;8;4", "1;48;5;8;4"),
            ("38:5:8", "38:5:8"),
            ("38;5", "38;5"),
        ] {
            assert_eq!(sanitise_line(&format!("\u{1b}[{given}mx")), format!("\u{1b}[{shown}mx\u{1b}[0m"), "{given}");
        }
        assert_eq!(sanitise_line("\u{1b}[mx"), "\u{1b}[mx");
    }

    #[test]
    fn terminal_sequence_without_colour_is_removed() {
        for (given, clean) in [
            ("a\u{1b}[2Jb", "ab"),
            ("a\u{1b}[?25lb", "ab"),
            ("a\u{1b}]0;title\u{7}b", "ab"),
            ("a\u{1b}]8;;http://x\u{1b}\\b", "ab"),
            ("a\u{1b}Pq#0\u{1b}\\b", "ab"),
            ("a\u{1b}cb", "ab"),
            ("a\u{9b}31mb", "a31mb"),
            ("a\u{8}\u{0}b", "ab"),
            ("10%\r50%\r100%\r\n", "100%"),
            ("a\u{202e}b", "ab"),
            ("a\tb", "a\tb"),
            ("a\u{1b}", "a"),
            ("a\u{1b}[", "a"),
            ("a\u{1b}[8mb", "ab"),
            ("a\u{1b}[08;08mb", "ab"),
            ("a\u{1b}[38;8mb", "ab"),
        ] {
            assert_eq!(sanitise_line(given), clean, "{given:?}");
        }
        assert_eq!(sanitise_bytes(b"gr\xfcn"), "gr\u{fffd}n");
    }

    #[test]
    fn text_of_several_lines_is_not_shortened() {
        let long = "x".repeat(MAX_LINE * 2);
        for (given, clean) in [
            ("a\u{1b}[2J\nb\u{1b}]0;title\nc\n", "a\nb\nc\n"),
            ("one\r\ntwo\r\n", "one\ntwo\n"),
            ("hidden\rseen", "hidden seen"),
            ("\u{1b}[31mred\nplain", "\u{1b}[31mred\u{1b}[0m\nplain"),
            ("\n\n", "\n\n"),
            ("", ""),
            (&long, &long),
        ] {
            assert_eq!(sanitise_text(given), clean, "{given:?}");
        }
    }

    #[test]
    fn line_or_reason_that_is_too_long_is_shortened() {
        assert_eq!(sanitise_line(&"x".repeat(100_000)).chars().count(), MAX_LINE + 1);
        let reason = sanitise_reason(&"y ".repeat(1000));
        assert_eq!(reason.chars().count(), MAX_REASON);
    }

    #[test]
    fn plain_line_has_no_colour_and_no_control_character() {
        assert_eq!(plain_line("  \u{1b}[31mred\u{1b}[0m\r\nBcc: eve@example.com\u{202e}\n", 100), "  red  Bcc: eve@example.com");
        assert_eq!(plain_line(&"x".repeat(1 << 20), 10), format!("{}\u{2026}", "x".repeat(10)));
    }

    #[test]
    fn reason_is_one_printable_line() {
        assert_eq!(sanitise_reason(" build:\n\tnpm \u{1b}[31mexited\u{1b}[0m 1\u{7} "), "build: npm exited 1");
        assert_eq!(sanitise_reason("\n"), "no reason was given");
    }
}
