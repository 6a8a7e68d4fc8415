//! Tables of configuration keys. Each row, a [`KeyRow`], has a key's name, its text in the reference, its default, and the function that
//! reads its value.
//!
//! [`super::settings::KEYS`] is the table of the recipe, and [`super::server::KEYS`] is the table of the server file. The references in
//! `docs/` are rendered from these tables, and a test compares the pages with the tables.

use super::{reader::ConfigReader, yaml::Node};

/// The default of a key, as the reference states it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fallback {
    /// The reference states no default: the key groups other keys, the key has no value by default, or the example is the default.
    Unstated,
    /// A value in YAML. A test parses this value and compares the result with the default in the code.
    Is(&'static str),
    /// A phrase, for a default that is not a single value.
    Says(&'static str),
}

/// A function that reads a value and merges it into `T`. The `&str` is the full name of the key, for errors.
type Read<T> = fn(&mut ConfigReader, &Node, &str, &mut T);

/// The form of a key's value.
enum Form<T: 'static> {
    /// A scalar or a list, with an example for the reference. An example of several lines starts with a line break.
    Value { example: &'static str, read: Read<T> },
    /// A mapping with fixed keys, with an inline example for errors.
    Section { example: &'static str, keys: &'static [KeyRow<T>] },
    /// Any other form, with a function that renders its example.
    Custom { example: fn() -> String, read: Read<T> },
}

/// One configuration key that is read into `T`.
pub(super) struct KeyRow<T: 'static> {
    pub name: &'static str,
    /// The text in the reference. Every line is a paragraph, which is wrapped when the reference is rendered.
    help: &'static str,
    fallback: Fallback,
    form: Form<T>,
    is_commented: bool,
}

impl<T> KeyRow<T> {
    /// Creates the row of a key with a scalar or a list.
    pub const fn value(
        name: &'static str,
        help: &'static str,
        fallback: Fallback,
        example: &'static str,
        read: Read<T>,
    ) -> KeyRow<T> {
        KeyRow { name, help, fallback, form: Form::Value { example, read }, is_commented: false }
    }

    /// Creates the row of a key that groups other keys.
    pub const fn section(name: &'static str, help: &'static str, example: &'static str, keys: &'static [KeyRow<T>]) -> KeyRow<T> {
        KeyRow { name, help, fallback: Fallback::Unstated, form: Form::Section { example, keys }, is_commented: false }
    }

    /// Creates the row of a key whose value has any other form.
    pub const fn custom(
        name: &'static str,
        help: &'static str,
        fallback: Fallback,
        example: fn() -> String,
        read: Read<T>,
    ) -> KeyRow<T> {
        KeyRow { name, help, fallback, form: Form::Custom { example, read }, is_commented: false }
    }

    /// Turns the key into a comment in the reference, because the key cannot be combined with another key of the reference.
    pub const fn commented(self) -> KeyRow<T> {
        KeyRow { name: self.name, help: self.help, fallback: self.fallback, form: self.form, is_commented: true }
    }
}

/// The texts that describe a mapping in errors.
pub(super) struct Mapping<'p> {
    /// The name of the mapping, such as `the file` or `keep`.
    pub name: &'p str,
    /// The prefix of the mapping's keys, such as `keep`; empty at the top level of the file.
    pub prefix: &'p str,
    /// An example of the mapping, on one line.
    pub example: &'p str,
}

/// Reads the keys of a mapping that are in the table `keys`, and merges their values into `target`. Reports unknown keys.
pub(super) fn read<T>(reader: &mut ConfigReader, node: &Node, mapping: &Mapping, keys: &[KeyRow<T>], target: &mut T) {
    let known: Vec<_> = keys.iter().map(|key| key.name).collect();
    let section = reader.section(node, mapping.name, &known, mapping.example);
    for key in keys {
        let Some(node) = section.get(key.name) else { continue };
        let full = if mapping.prefix.is_empty() { key.name.to_owned() } else { format!("{}.{}", mapping.prefix, key.name) };
        match key.form {
            Form::Value { read, .. } | Form::Custom { read, .. } => read(reader, node, &full, target),
            Form::Section { example, keys } => read_section(reader, node, &full, example, keys, target),
        }
    }
}

/// Reads the mapping that is the value of the key `name`; see [`read`].
pub(super) fn read_section<T>(
    reader: &mut ConfigReader,
    node: &Node,
    name: &str,
    example: &str,
    keys: &[KeyRow<T>],
    target: &mut T,
) {
    read(reader, node, &Mapping { name, prefix: name, example }, keys, target);
}

/// Renders a table as a part of the reference, which is YAML with comments.
pub(super) fn render<T>(keys: &[KeyRow<T>]) -> String {
    const WIDTH: usize = 126;
    let mut text = String::new();
    for key in keys {
        for paragraph in key.help.lines().map(str::to_owned).chain(default_sentence(key.fallback)) {
            match (text.lines().last(), paragraph.strip_prefix("Default: ")) {
                // The default becomes the last sentence of the last paragraph.
                (Some(last), Some(_)) if last.starts_with("# ") => {
                    let last = last.to_owned();
                    text.truncate(text.len() - last.len() - 1);
                    wrap(&mut text, &format!("{} {paragraph}", &last.get(2..).unwrap_or_default()), WIDTH);
                }
                _ => wrap(&mut text, &paragraph, WIDTH),
            }
        }
        let (value, nested) = match &key.form {
            Form::Value { example, .. } => match example.strip_prefix('\n') {
                Some(lines) => (String::new(), lines.to_owned()),
                None => (format!(" {example}"), String::new()),
            },
            Form::Section { keys, .. } => (String::new(), render(keys)),
            Form::Custom { example, .. } => (String::new(), example()),
        };
        let comment = if key.is_commented { "# " } else { "" };
        text.push_str(&format!("{comment}{}:{value}\n", key.name));
        nested.lines().for_each(|line| text.push_str(&if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }));
    }
    text
}

/// Renders the table of a whole file, with a blank line before each key.
#[cfg(test)]
pub(super) fn render_file<T>(keys: &[KeyRow<T>]) -> String {
    keys.iter().map(|key| format!("\n{}", render(std::slice::from_ref(key)))).collect()
}

fn default_sentence(fallback: Fallback) -> Option<String> {
    match fallback {
        Fallback::Unstated => None,
        Fallback::Is(text) | Fallback::Says(text) => Some(format!("Default: {text}.")),
    }
}

/// Appends a paragraph as a comment, and breaks lines between words so that no line exceeds `width` characters.
fn wrap(text: &mut String, paragraph: &str, width: usize) {
    let mut line = String::from("#");
    for word in paragraph.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > width {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    text.push_str(&line);
    text.push('\n');
}

/// Returns the full name and the default of every row of a table, including the rows of its sections.
#[cfg(test)]
pub(super) fn rows<T>(keys: &'static [KeyRow<T>], prefix: &str) -> Vec<(String, Fallback)> {
    let mut rows = Vec::new();
    for key in keys {
        let full = format!("{prefix}{}", key.name);
        if let Form::Section { keys, .. } = key.form {
            rows.extend(self::rows(keys, &format!("{full}.")));
        }
        rows.push((full, key.fallback));
    }
    rows
}
