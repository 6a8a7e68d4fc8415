//! The requests behind `larder secret edit`: the secrets of one file as text, and the change that an editor made to this text.

use std::{fs::File, io::Read as _, os::fd::OwnedFd};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::secrets::{ChangedFiles, EditFn, PillarWork, SecretUnchanged, of_secret};
use crate::{
    control::{
        audit::AuditEntry,
        authz::Needs,
        error::{CommandError, ErrorKind, refused, run_blocking, usage},
        request::{Context, Reply, Request},
    },
    model::{ProjectName, Target},
    secret::{PlainChange, PlainSecrets, SecretError, SecretsFile, encrypted},
};

/// The maximum size of an edit in bytes: two texts of a file, as JSON.
pub const MAX_EDIT: u64 = 8 << 20;

/// The maximum number of secrets that the message of the commit names.
const MAX_NAMED: usize = 5;

/// The request for the secrets of one file as text.
#[derive(Debug)]
pub struct SecretText {
    /// The project for the values of all environments, or an environment.
    pub target: Target,
}

/// The secrets of one file as text.
#[derive(Debug, Serialize)]
pub struct SecretTextView {
    /// The project.
    pub project: ProjectName,
    /// The file of the pillar.
    pub file: String,
    /// The text, in YAML.
    pub text: String,
}

impl Request for SecretText {
    type View = SecretTextView;
    const NAME: &'static str = "secret edit";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.target.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<SecretTextView>, CommandError> {
        let target = self.target;
        let work = PillarWork::new(control, caller, &target, true).await?;
        let file = SecretsFile::name(target.environment.as_ref());
        let on = format!("{}/pillar", target.project);
        control.audit(AuditEntry::new(caller, SecretText::NAME, on, Some(format!("look at {file}")))).await;
        let text = plain(&work, &file)?.to_text(&file).to_string();
        Ok(SecretTextView { project: target.project, file, text }.into())
    }
}

/// The request to make a change that an editor made. The caller's input is an [`EditedText`].
#[derive(Debug)]
pub struct SecretEdit {
    /// The project for the values of all environments, or an environment.
    pub target: Target,
    /// False to keep the processes running with the old values until the next deployment.
    pub restart: bool,
}

/// A text before and after it was edited.
#[derive(Serialize, Deserialize)]
pub struct EditedText {
    /// The text on which the edit was based.
    pub base: String,
    /// The text after the edit.
    pub text: String,
}

impl Drop for EditedText {
    fn drop(&mut self) {
        self.base.zeroize();
        self.text.zeroize();
    }
}

impl Request for SecretEdit {
    type View = SecretUnchanged;
    const NAME: &'static str = "secret edit";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.target.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<SecretUnchanged>, CommandError> {
        let SecretEdit { target, restart } = self;
        let work = PillarWork::new(control, caller, &target, restart).await?;
        let file = SecretsFile::name(target.environment.as_ref());
        let read = move |from: OwnedFd| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let edited = run_blocking(move || read_edit(from)).await?;
                let changes = changes(&file, &edited)?;
                if changes.is_empty() {
                    return Ok(Reply::View(SecretUnchanged { project: target.project }));
                }
                let work = work.with_message(message(&file, &changes));
                let edit: EditFn = Box::new(move |work| apply(work, &file, changes));
                Ok(work.start(SecretEdit::NAME, edit))
            })
        };
        Ok(Reply::Input(Box::new(read)))
    }
}

/// Decrypts the secrets of a file.
fn plain(work: &PillarWork, file: &str) -> Result<PlainSecrets, CommandError> {
    PlainSecrets::decrypted(&work.secrets(file)?, work.key()).map_err(|(key, error)| {
        let shown = of_secret(&error);
        CommandError { message: format!("{file}: {key}: {}", shown.message), ..shown }
    })
}

fn read_edit(from: OwnedFd) -> Result<EditedText, CommandError> {
    let mut input = Zeroizing::new(Vec::new());
    let limit = MAX_EDIT.saturating_add(1);
    File::from(from).take(limit).read_to_end(&mut input).map_err(|error| CommandError::internal(&error))?;
    if input.len() as u64 > MAX_EDIT {
        return Err(usage(format!("the edit has more than {MAX_EDIT} bytes")));
    }
    serde_json::from_slice(&input).map_err(|_| {
        usage("the input is not an edit: a JSON object with the texts `base` and `text`")
            .hint("run `larder secret edit PROJECT` on your own machine, which opens an editor")
    })
}

/// Returns the changes of an edit, with all limits checked.
fn changes(file: &str, edited: &EditedText) -> Result<Vec<PlainChange>, CommandError> {
    let parse = |text: &str| {
        PlainSecrets::parse(file, text.as_bytes()).map_err(|error| {
            let shown = CommandError::new(ErrorKind::Configuration, error.to_string());
            error.hint.into_iter().fold(shown, CommandError::hint)
        })
    };
    let changes = parse(&edited.base)?.changes(&parse(&edited.text)?);
    for name in changes.iter().filter(|change| change.after.is_some()).filter_map(|change| change.key.variable()) {
        // A line of the text is wrong, so that the editor opens again.
        super::configuration::check_name(name).map_err(|error| CommandError { kind: ErrorKind::Configuration, ..error })?;
    }
    Ok(changes)
}

fn message(file: &str, changes: &[PlainChange]) -> String {
    let mut names: Vec<_> = changes.iter().take(MAX_NAMED).map(|change| change.key.to_string()).collect();
    if changes.len() > MAX_NAMED {
        names.push(format!("{} more", changes.len().saturating_sub(MAX_NAMED)));
    }
    let noun = if changes.len() == 1 { "secret" } else { "secrets" };
    format!("Edit the {noun} {} in {file}", names.join(", "))
}

/// Makes the changes in the present file. A secret that another person has changed since the edit began is refused, and so is the whole edit.
fn apply(work: &PillarWork, file: &str, changes: Vec<PlainChange>) -> Result<ChangedFiles, CommandError> {
    let (mut secrets, now) = (work.secrets(file)?, plain(work, file)?);
    let recipients = work.recipients()?;
    let mut is_changed = false;
    // Removed keys make room for keys inside of them, and the other way round.
    let (removed, set): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| change.after.is_none());
    for PlainChange { key, before, after } in removed.into_iter().chain(set) {
        let current = now.get(&key);
        if current == after.as_ref() {
            continue;
        }
        if current != before.as_ref() {
            return Err(refused(format!("{key} was changed meanwhile; nothing was changed"))
                .hint("run the command again: the editor then shows the new value"));
        }
        is_changed = true;
        match after {
            Some(value) => {
                let text = encrypted(value.as_bytes(), work.key(), &recipients).map_err(|error| of_edit(&error))?;
                secrets.set(key, text).map_err(|error| of_edit(&error))?;
            }
            None => drop(secrets.unset(&key)),
        }
    }
    if !is_changed {
        return Ok(Vec::new());
    }
    work.with_recipients(vec![(file.to_owned(), Some(secrets.to_text().into_bytes()))])
}

/// Returns the error of a value, for which the editor opens again.
fn of_edit(error: &SecretError) -> CommandError {
    CommandError { kind: ErrorKind::Configuration, ..of_secret(error) }
}
