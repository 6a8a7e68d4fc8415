//! Files with variables, one `NAME=VALUE` for each variable. The dialect is in `docs/configuration.md`:
//!
//! - Empty lines and lines that begin with `#` are skipped, and `export ` before a name is ignored.
//! - A value without quotes ends at the end of the line, or at ` #`. Spaces around the value are not part of the value.
//! - A value in single quotes is literal and may have several lines.
//! - A value in double quotes may have several lines and these escapes: `\n`, `\r`, `\t`, `\"`, `\\`, `\$`, and `\xHH` for any byte.
//! - `$` has no meaning: no variable is expanded.

use super::{error::ConfigError, value::VariableName};

/// The name of the file in errors.
const FILE: &str = "input";

/// Parses a file with variables. If a variable appears twice, the last value counts.
///
/// # Errors
/// The first line that is not in the dialect. No error contains a value.
pub fn parse(text: &[u8]) -> Result<Vec<(VariableName, Vec<u8>)>, ConfigError> {
    let mut parser = Parser { rest: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text), line: 1 };
    let mut variables: Vec<(VariableName, Vec<u8>)> = Vec::new();
    while let Some((name, value)) = parser.next()? {
        let name = name?;
        variables.retain(|(other, _)| *other != name);
        variables.push((name, value));
    }
    Ok(variables)
}

/// The content of a file with variables, as [`parse_local`] reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalVariables {
    /// The variables with their last values.
    pub variables: Vec<(VariableName, Vec<u8>)>,
    /// The variables that a project may not set, which are left out.
    pub left_out: Vec<ConfigError>,
}

/// Parses a file with variables of a developer's machine, which other programs read, too. Therefore the file may set variables that a project may
/// not set, such as `PORT`.
///
/// # Errors
/// The first line that is not in the dialect. No error contains a value.
pub fn parse_local(text: &[u8]) -> Result<LocalVariables, ConfigError> {
    let mut parser = Parser { rest: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text), line: 1 };
    let mut found = LocalVariables::default();
    while let Some((name, value)) = parser.next()? {
        match name {
            Ok(name) => {
                found.variables.retain(|(other, _)| *other != name);
                found.variables.push((name, value));
            }
            Err(error) => found.left_out.push(error),
        }
    }
    Ok(found)
}

/// A variable of a file with its value. The name is an error if a project may not set the variable.
type ParsedVariable = (Result<VariableName, ConfigError>, Vec<u8>);

struct Parser<'a> {
    rest: &'a [u8],
    line: u32,
}

impl Parser<'_> {
    fn problem(&self, why: impl Into<String>, hint: &str) -> ConfigError {
        ConfigError::new(FILE, why).at_line(self.line).hint(hint)
    }

    /// Takes the bytes before the next `end`, and `end` itself.
    fn take_until(&mut self, end: impl Fn(u8) -> bool) -> Option<Vec<u8>> {
        let at = self.rest.iter().position(|byte| end(*byte))?;
        let (taken, rest) = self.rest.split_at(at);
        let lines = taken.iter().filter(|byte| **byte == b'\n').count();
        self.line = self.line.saturating_add(u32::try_from(lines).unwrap_or(u32::MAX));
        self.rest = rest.get(1..).unwrap_or_default();
        Some(taken.to_vec())
    }

    fn skip(&mut self, which: impl Fn(u8) -> bool) {
        while let Some((first, rest)) = self.rest.split_first().filter(|(first, _)| which(**first)) {
            self.line = self.line.saturating_add(u32::from(*first == b'\n'));
            self.rest = rest;
        }
    }

    /// Takes the rest of the line.
    fn line_end(&mut self) -> Vec<u8> {
        let line = self.take_until(|byte| byte == b'\n');
        match line {
            Some(line) => {
                self.line = self.line.saturating_add(1);
                line
            }
            None => std::mem::take(&mut self.rest).to_vec(),
        }
    }

    /// Returns the next variable; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<ParsedVariable>, ConfigError> {
        loop {
            self.skip(|byte| byte.is_ascii_whitespace());
            match self.rest.first() {
                None => return Ok(None),
                Some(b'#') => drop(self.line_end()),
                Some(_) => break,
            }
        }
        let example = "write a line such as NAME=value";
        let before = self.rest.iter().position(|byte| matches!(byte, b'=' | b'\n'));
        let Some(at) = before.filter(|at| self.rest.get(*at) == Some(&b'=')) else {
            return Err(self.problem("the line has no `=`", example));
        };
        let (name, rest) = self.rest.split_at(at);
        let name = String::from_utf8_lossy(name);
        let name = name.trim();
        let name = name.strip_prefix("export ").map_or(name, str::trim_start);
        // The text before `=` may be a part of a secret, such as a line of a key, so only the form of a name is shown.
        let is_name =
            name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') && !name.starts_with(|c: char| c.is_ascii_digit());
        let name = match (name.parse::<VariableName>(), VariableName::remedy(name)) {
            (Ok(name), None) => Ok(name),
            (Ok(name), Some(remedy)) => Err(self.problem(format!("the variable {name} is set by larder itself"), remedy)),
            (Err(why), Some(remedy)) if is_name => Err(self.problem(why, remedy)),
            (Err(_), _) => return Err(self.problem("the text before `=` is not the name of a variable", example)),
        };
        let shown = name.as_ref().map_or_else(|_| String::from("a variable"), ToString::to_string);
        self.rest = rest.get(1..).unwrap_or_default();
        self.skip(|byte| matches!(byte, b' ' | b'\t'));
        let value = match self.rest.first().copied() {
            Some(quote @ (b'\'' | b'"')) => {
                self.rest = self.rest.get(1..).unwrap_or_default();
                let value = if quote == b'\'' { self.single()? } else { self.double()? };
                let follows =
                    self.problem(format!("text follows the closing quote of {shown}"), "escape a quote inside of a value");
                let after = self.line_end();
                let after = after.trim_ascii();
                if !after.is_empty() && !after.starts_with(b"#") {
                    return Err(follows);
                }
                value
            }
            _ => plain(&self.line_end()).to_vec(),
        };
        if value.contains(&0) {
            return Err(self.problem(format!("the value of {shown} has a NUL byte"), "encode the value, for example in base64"));
        }
        Ok(Some((name, value)))
    }

    fn single(&mut self) -> Result<Vec<u8>, ConfigError> {
        let open = self.problem("a single quote is not closed", "close the quote with '");
        self.take_until(|byte| byte == b'\'').ok_or(open)
    }

    fn double(&mut self) -> Result<Vec<u8>, ConfigError> {
        let open = self.problem("a double quote is not closed", "close the quote with \"");
        let mut value = Vec::new();
        loop {
            let Some(at) = self.rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) else { return Err(open) };
            let is_end = self.rest.get(at) == Some(&b'"');
            value.extend(self.take_until(|byte| matches!(byte, b'"' | b'\\')).unwrap_or_default());
            if is_end {
                return Ok(value);
            }
            let Some((escape, rest)) = self.rest.split_first() else { return Err(open) };
            self.rest = rest;
            value.push(match escape {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'"' | b'\\' | b'$' | b'`' | b'\'' => *escape,
                b'x' => {
                    let digits = self.rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                    let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                    self.rest = self.rest.get(2..).unwrap_or_default();
                    byte.ok_or_else(|| self.problem("\\x has no two hexadecimal digits", "write a byte as \\x0a"))?
                }
                _ => return Err(self.problem("an escape is not known", "use \\n, \\r, \\t, \\\", \\\\, \\$ or \\xHH")),
            });
        }
    }
}

/// Returns a value without quotes: without a comment and without spaces at the ends.
fn plain(line: &[u8]) -> &[u8] {
    let comment = line.windows(2).position(|pair| matches!(pair, [b' ' | b'\t', b'#']));
    let value: &[u8] = if line.starts_with(b"#") { b"" } else { comment.and_then(|at| line.get(..at)).unwrap_or(line) };
    value.trim_ascii()
}

/// Writes variables in the dialect that [`parse`] reads. Every value survives unchanged.
pub fn render<'a>(variables: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        text.push_str(name);
        text.push('=');
        let plain = |text: &&str| !text.chars().any(|c| c == '\'' || (c.is_control() && c != '\n'));
        match std::str::from_utf8(value).ok().filter(plain) {
            Some(value) => {
                text.push('\'');
                text.push_str(value);
                text.push('\'');
            }
            None => {
                text.push('"');
                quoted(&mut text, value);
                text.push('"');
            }
        }
        text.push('\n');
    }
    text
}

fn quoted(text: &mut String, value: &[u8]) {
    for byte in value {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\\' | b'$' => text.extend(['\\', char::from(*byte)]),
            0x20..=0x7e => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, String)> {
        let shown = |(name, value): (VariableName, Vec<u8>)| (name.to_string(), String::from_utf8(value).unwrap());
        parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}")).into_iter().map(shown).collect()
    }

    #[test]
    fn each_form_of_a_value_is_read() {
        for (text, value) in [
            ("A=b", "b"),
            ("export A = b c  ", "b c"),
            ("A=b # comment", "b"),
            ("A=b#c", "b#c"),
            ("A=", ""),
            ("A=   # only a comment", ""),
            ("A='b # c'  # comment", "b # c"),
            ("A='$HOME\\n'", "$HOME\\n"),
            ("A=\"$HOME\\n\\\"x\\\"\\\\ \\x41\"", "$HOME\n\"x\"\\ A"),
            ("A='one\n\ntwo'", "one\n\ntwo"),
            ("A=\"\none\"", "\none"),
            ("\u{feff}# first\n\n  A=b\r\n", "b"),
            ("A=x\nA=b", "b"),
            ("A=b=c", "b=c"),
        ] {
            assert_eq!(parsed(text), [(String::from("A"), value.to_owned())], "{text:?}");
        }
        assert_eq!(parsed("A='x\ny'\nB=\"z\"\nC=1").len(), 3);
    }

    #[test]
    fn error_names_the_line_and_no_value() {
        for (text, line, why) in [
            ("A=1\nhunter2", 2, "no `=`"),
            ("A='1\n2'\nB='hunter2", 3, "single quote is not closed"),
            ("A=\"hunter2", 1, "double quote is not closed"),
            ("A=\"hunter2\\q\"", 1, "escape is not known"),
            ("A=\"hunter2\\xg0\"", 1, "hexadecimal"),
            ("\nPORT=hunter2", 2, "PORT is set by larder"),
            ("A='x'hunter2", 1, "text follows the closing quote"),
            ("hunter2+/=", 1, "not the name of a variable"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.line, Some(line), "{text:?}: {error}");
            assert!(error.to_string().contains(why) && !error.to_string().contains("hunter2"), "{error}");
        }
        assert!(parse(b"A=\"\\x00\"").unwrap_err().to_string().contains("NUL"));
    }

    #[test]
    fn local_file_may_set_variables_of_larder() {
        let found = parse_local(b"PORT=3000\nA=b\nHOME='/x\ny'\nLD_PRELOAD=x\nA=c\n").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found.variables, [("A".parse().unwrap(), b"c".to_vec())]);
        let lines: Vec<_> = found.left_out.iter().map(|error| error.line).collect();
        assert_eq!(lines, [Some(1), Some(3), Some(5)], "{:?}", found.left_out);
        assert!(parse_local(b"A='").is_err());
    }

    #[test]
    fn rendered_values_are_read_unchanged() {
        let every: Vec<u8> = (1..=255).collect();
        let values: [&[u8]; 9] = [
            &every,
            b"\n\nfirst lines are blank\n",
            b"-----BEGIN KEY-----\r\nabc=\r\n-----END KEY-----\r\n",
            b"it's $HOME `id` \"x\" \\ # y",
            b"",
            b" spaces ",
            "\u{e9}\u{2028}".as_bytes(),
            b"a\tb",
            b"\xff\xfe",
        ];
        let names: Vec<_> = (0..values.len()).map(|at| format!("_V{at}")).collect();
        let text = render(names.iter().map(String::as_str).zip(values));
        let read = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"));
        for ((name, value), (expected_name, expected)) in read.iter().zip(names.iter().zip(values)) {
            assert_eq!((name.as_str(), value.as_slice()), (expected_name.as_str(), expected), "{text}");
        }
        assert_eq!(read.len(), values.len());
    }
}
