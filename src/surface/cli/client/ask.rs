//! Questions of the client itself to a server, whose answers are JSON.

use std::time::Duration;

use serde_json::Value;

use super::{super::command::TerminalUse, ssh::SshCall};
use crate::{
    control::{CommandError, ErrorKind},
    model::SshUrl,
};

/// The time within which a server answers a question that a person waits for. A question for the key of an unknown server counts.
const PATIENCE: Duration = Duration::from_secs(120);

/// The answer of a server to a question of the client.
#[derive(Debug)]
pub(super) struct ServerAnswer {
    /// The exit status of the command, or 255 if `ssh` failed.
    pub code: u8,
    /// The JSON of the answer; null if the command failed.
    pub value: Value,
    /// The error output.
    pub stderr: String,
}

impl ServerAnswer {
    /// Returns the error of a command that failed on the server, with the server's own sentences.
    pub(super) fn failed(&self, url: &SshUrl) -> CommandError {
        let mut lines = self.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
        if self.code == 255 {
            let why = lines.next_back().unwrap_or("ssh gave no reason");
            return CommandError::new(ErrorKind::Refused, format!("cannot reach {}: {why}", url.server()));
        }
        let kinds = [
            ErrorKind::Deployment,
            ErrorKind::Usage,
            ErrorKind::Refused,
            ErrorKind::NotFound,
            ErrorKind::Configuration,
            ErrorKind::Internal,
        ];
        let kind = kinds.into_iter().find(|kind| kind.exit_code() == self.code).unwrap_or(ErrorKind::Internal);
        let (mut message, mut hints) = (None, Vec::new());
        for line in lines {
            match (line.strip_prefix("error: "), line.strip_prefix("hint: ")) {
                (Some(text), _) if message.is_none() => message = Some(text),
                (_, Some(text)) => hints.push(text.to_owned()),
                _ => {}
            }
        }
        let message = message.unwrap_or("the server gave no reason");
        CommandError { kind, message: format!("{}: {message}", url.server()), hints }
    }
}

/// Runs a command with `--json` on a server. Returns its answer, also if the command fails.
pub(super) fn ask(url: &SshUrl, words: &[&str]) -> Result<ServerAnswer, CommandError> {
    let words: Vec<String> = std::iter::once("--json").chain(words.iter().copied()).map(str::to_owned).collect();
    let call = SshCall { url, words: &words, terminal: TerminalUse::None };
    let captured = call.capture(PATIENCE, true)?.ok_or_else(|| {
        let seconds = PATIENCE.as_secs();
        CommandError::new(ErrorKind::Refused, format!("cannot reach {}: no answer within {seconds} seconds", url.server()))
    })?;
    let value = if captured.code == 0 {
        serde_json::from_slice(&captured.stdout).map_err(|error| {
            CommandError::new(ErrorKind::Internal, format!("cannot read the answer of {}: {error}", url.server()))
        })?
    } else {
        Value::Null
    };
    Ok(ServerAnswer { code: captured.code, value, stderr: captured.stderr })
}

/// An environment of a project, as `project info` describes it.
#[derive(Debug, Clone)]
pub(super) struct KnownEnvironment {
    pub name: String,
    pub branch: String,
    pub is_default: bool,
    pub urls: Vec<String>,
}

/// Returns the environments of a project, or `None` if the server has no such project that the user may see.
pub(super) fn environments(url: &SshUrl, project: &str) -> Result<Option<Vec<KnownEnvironment>>, CommandError> {
    let answer = ask(url, &["project", "info", project])?;
    match answer.code {
        0 => {}
        4 => return Ok(None),
        _ => return Err(answer.failed(url)),
    }
    let row = answer.value.get(0).cloned().unwrap_or_default();
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(plain).unwrap_or_default();
    let environments = row.pointer("/project/environments").and_then(Value::as_array).cloned().unwrap_or_default();
    let known = environments.iter().enumerate().map(|(index, environment)| {
        let urls = row.pointer(&format!("/urls/{index}")).and_then(Value::as_array).cloned().unwrap_or_default();
        KnownEnvironment {
            name: text(environment.get("name")),
            branch: text(environment.get("branch")),
            is_default: environment.get("default").and_then(Value::as_bool).unwrap_or_default(),
            urls: urls.iter().map(|url| text(Some(url))).collect(),
        }
    });
    Ok(Some(known.collect()))
}

/// Returns text of a server without control characters, shortened.
pub(super) fn plain(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let is_mark = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}');
    text.chars().filter(|c| !c.is_control() && !is_mark(*c)).take(MAX_CHARS).collect()
}
