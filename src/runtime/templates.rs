//! Templates: files of a release that are rendered with the values of its configuration before its processes start.
//!
//! This code runs as the environment's run user inside the sandbox. Every path is opened below `/app` without following a link, so that a
//! rendered file is never written outside, and never into persistent data.

use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    io::{self, Read as _, Write},
    os::fd::OwnedFd,
    path::Path,
};

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Serde};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2, renameat, unlinkat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// The maximum size of a template, and of a rendered file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// The maximum number of instructions of a template.
const FUEL: u64 = 10_000_000;
/// The name of a rendered file until it is complete.
const DRAFT: &str = ".larder-rendered";
/// The maximum number of undefined names in an error.
const MAX_NAMES: usize = 3;

/// Templates, and the values with which they are rendered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateJob {
    /// The templates.
    pub files: Vec<TemplateFile>,
    /// The values, as JSON.
    pub values: String,
    /// The values that only the processes may read: a file that contains one of them must not be readable by others.
    pub secrets: Vec<String>,
    /// True if the files are printed and not written.
    pub preview: bool,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateFile {
    /// The path of the template below `/app`.
    pub from: String,
    /// The path of the rendered file below `/app`.
    pub to: String,
    /// The mode of the rendered file.
    pub mode: u32,
}

/// Shows no values.
impl fmt::Debug for TemplateJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TemplateJob").field("files", &self.files).field("preview", &self.preview).finish_non_exhaustive()
    }
}

/// The reason why a file cannot be rendered. No reason contains a value.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("cannot read the values: {0}")]
    Values(serde_json::Error),
    #[error("cannot render {from}: {why}")]
    Template { from: String, why: String },
    #[error("cannot write {to}: {why}")]
    Target { to: String, why: String },
    #[error("cannot print the rendered files: {0}")]
    Print(io::Error),
}

/// Renders the files of a job.
pub fn work(job: &TemplateJob, app: &Path, output: &mut impl Write) -> Result<(), TemplateError> {
    let values: serde_json::Value = serde_json::from_str(&job.values).map_err(TemplateError::Values)?;
    let top = openat(CWD, app, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| TemplateError::Target { to: app.display().to_string(), why: error.to_string() })?;
    for file in &job.files {
        let text = render(&top, file, &values)?;
        if job.preview {
            let title = if job.files.len() > 1 { format!("==> {} <==\n", file.to) } else { String::new() };
            let written = output.write_all(title.as_bytes()).and_then(|()| output.write_all(text.as_bytes()));
            written.map_err(TemplateError::Print)?;
            continue;
        }
        if file.mode & 0o077 != 0 && job.secrets.iter().any(|secret| text.contains(secret.as_str())) {
            let why = format!(
                "the file contains values of the configuration, and its mode is {:04o}; use the mode \"0600\"",
                file.mode
            );
            return Err(TemplateError::Target { to: file.to.clone(), why });
        }
        write(&top, file, &text).map_err(|error| TemplateError::Target { to: file.to.clone(), why: reason(error) })?;
    }
    Ok(())
}

fn render(top: &OwnedFd, file: &TemplateFile, values: &serde_json::Value) -> Result<String, TemplateError> {
    let wrong = |why: String| TemplateError::Template { from: file.from.clone(), why };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat2(top, file.from.as_str(), flags, Mode::empty(), BELOW).map_err(|error| match error {
        Errno::NOENT => wrong(String::from("the file does not exist in the release")),
        error => wrong(reason(error)),
    })?;
    let opened = File::from(opened);
    let metadata = opened.metadata().map_err(|error| wrong(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(wrong(match metadata.is_file() {
            true => format!("the file has {} bytes (limit {MAX_FILE})", metadata.len()),
            false => String::from("this is not a regular file"),
        }));
    }
    let mut source = String::new();
    opened.take(MAX_FILE).read_to_string(&mut source).map_err(|_| wrong(String::from("the text is not UTF-8")))?;
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.map_err(|error| wrong(error.to_string()))?);
    environment.set_fuel(Some(FUEL));
    // Values are not escaped for HTML: most files are configuration.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let explained = |error: &minijinja::Error, names: &[String]| {
        let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
        let what = match error.kind() {
            ErrorKind::UndefinedError if !names.is_empty() => {
                format!("{} {} no value", names.join(", "), if names.len() == 1 { "has" } else { "have" })
            }
            ErrorKind::OutOfFuel => String::from("the template does not end"),
            // The details of other errors of the syntax contain parts of the template, and no values.
            ErrorKind::SyntaxError => error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
            kind => kind.to_string(),
        };
        wrong(format!("{line}{what}"))
    };
    let template = environment.template_from_named_str(&file.from, &source).map_err(|error| explained(&error, &[]))?;
    let mut text = Limited(Vec::new());
    let rendered = template.render_captured_to(Value::from(Serde(values)), &mut text);
    if text.0.len() as u64 > MAX_FILE {
        return Err(wrong(format!("the rendered file has more than {MAX_FILE} bytes")));
    }
    if let Err(error) = rendered {
        let names: BTreeSet<String> =
            template.undeclared_variables(true).into_iter().filter(|name| !is_defined(values, name)).collect();
        return Err(explained(&error, &names.into_iter().take(MAX_NAMES).collect::<Vec<_>>()));
    }
    String::from_utf8(text.0).map_err(|_| wrong(String::from("the rendered text is not UTF-8")))
}

fn is_defined(values: &serde_json::Value, name: &str) -> bool {
    name.split('.').try_fold(values, |value, key| value.get(key)).is_some()
}

/// A buffer that refuses more than [`MAX_FILE`] bytes.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() as u64 > MAX_FILE {
            return Err(io::Error::other("the rendered file is too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Paths stay below the directory, and contain no link.
const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Writes a file, which replaces a file of the release. Missing directories are created.
fn write(top: &OwnedFd, file: &TemplateFile, text: &str) -> Result<(), Errno> {
    let (directories, name) = file.to.rsplit_once('/').unwrap_or(("", &file.to));
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut parent = openat2(top, ".", flags, Mode::empty(), BELOW)?;
    for directory in directories.split('/').filter(|directory| !directory.is_empty()) {
        match mkdirat(&parent, directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        parent = openat2(&parent, directory, flags, Mode::empty(), BELOW)?;
    }
    match unlinkat(&parent, DRAFT, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let draft = openat2(&parent, DRAFT, flags, Mode::from_raw_mode(0o600), BELOW)?;
    let mut draft = File::from(draft);
    draft.write_all(text.as_bytes()).map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
    fchmod(&draft, Mode::from_raw_mode(file.mode))?;
    // A symlink of the release at this name is replaced, and not followed.
    renameat(&parent, DRAFT, &parent, name)
}

fn reason(error: Errno) -> String {
    match error {
        Errno::LOOP | Errno::XDEV => {
            String::from("the path leads through a link, so the file could be outside of the application")
        }
        Errno::NOTDIR => String::from("a file is in the place of a directory"),
        Errno::ISDIR | Errno::EXIST => String::from("a directory is in the place of the file"),
        error => io::Error::from(error).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn job(to: &str, mode: u32) -> TemplateJob {
        TemplateJob {
            files: vec![TemplateFile { from: String::from("t.j2"), to: to.to_owned(), mode }],
            values: String::from(r#"{"database": {"host": "db1", "password": "hunter2hunter2"}, "list": [1, 2]}"#),
            secrets: vec![String::from("hunter2hunter2")],
            preview: false,
        }
    }

    fn app(template: &str) -> tempfile::TempDir {
        let app = tempfile::tempdir().unwrap();
        fs::write(app.path().join("t.j2"), template).unwrap();
        app
    }

    #[test]
    fn file_is_rendered_with_its_mode() {
        let app = app("host={{ database.host }}\n{% for x in list %}{{ x }};{% endfor %}<&>\n");
        for mode in [0o600, 0o644] {
            work(&job("config/deep/app.conf", mode), app.path(), &mut Vec::new()).unwrap();
            let path = app.path().join("config/deep/app.conf");
            assert_eq!(fs::read_to_string(&path).unwrap(), "host=db1\n1;2;<&>\n");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
        let mut output = Vec::new();
        work(&TemplateJob { preview: true, ..job("other", 0o600) }, app.path(), &mut output).unwrap();
        assert_eq!(output, b"host=db1\n1;2;<&>\n");
        assert!(!app.path().join("other").exists());
    }

    #[test]
    fn undefined_value_and_endless_template_are_errors_without_values() {
        for (template, why) in [
            ("a\n{{ database.hosst }}{{ database.password }}", "cannot render t.j2: line 2: database.hosst has no value"),
            ("{{ nothing }}", "line 1: nothing has no value"),
            ("{{ database.host", "cannot render t.j2: line 1: "),
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
                "does not end",
            ),
            ("{% for a in range(9999) %}{{ \"x\" * 1000 }}{% endfor %}", "more than 1048576 bytes"),
            ("{% include \"/etc/passwd\" %}", "cannot render t.j2"),
            ("{{ database.password + 1 }}", "line 1: "),
        ] {
            let error = work(&job("x", 0o600), app(template).path(), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
        }
        let app = tempfile::tempdir().unwrap();
        let error = work(&job("x", 0o600), app.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("does not exist in the release"), "{error}");
    }

    #[test]
    fn nothing_is_written_through_a_link_or_outside() {
        let outside = tempfile::tempdir().unwrap();
        let app = app("{{ database.host }}");
        std::os::unix::fs::symlink(outside.path(), app.path().join("media")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("target"), app.path().join("link")).unwrap();
        fs::create_dir(app.path().join("directory")).unwrap();
        for to in ["media/x", "../x", "directory"] {
            let error = work(&job(to, 0o600), app.path(), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot write {to}: ")), "{error}");
        }
        // A link at the name itself is replaced.
        work(&job("link", 0o600), app.path(), &mut Vec::new()).unwrap();
        assert!(fs::symlink_metadata(app.path().join("link")).unwrap().is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        fs::remove_file(app.path().join("t.j2")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", app.path().join("t.j2")).unwrap();
        assert!(work(&job("x", 0o600), app.path(), &mut Vec::new()).unwrap_err().to_string().contains("leads through a link"));
    }

    #[test]
    fn file_with_a_secret_is_readable_by_its_owner_only() {
        let app = app("password={{ database.password }}\n");
        let error = work(&job("x", 0o640), app.path(), &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("its mode is 0640; use the mode \"0600\"") && !error.contains("hunter2"), "{error}");
        work(&job("x", 0o600), app.path(), &mut Vec::new()).unwrap();
        assert!(!format!("{:?}", job("x", 0o600)).contains("hunter2"));
    }
}
