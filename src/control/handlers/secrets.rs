//! The requests that change the secrets of a project. Each change is a commit of the pillar, and starts the environments whose values differ.

use std::{collections::BTreeSet, fs::File, io::Read as _, os::fd::OwnedFd, sync::Arc};

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::{
    control::{
        audit::{AuditEntry, AuditOutcome},
        authz::{Caller, Needs},
        error::{CommandError, ErrorKind, no_environment, refused, run_blocking, usage},
        pillar_change::{OutputClient, PillarChange},
        request::{Context, LineStream, Reply, Request, Stream},
        state::Control,
    },
    git::{GitError, PillarCommit, PillarFiles},
    model::{Environment, Project, ProjectName, Target, UserName},
    pipeline::chain,
    secret::{
        AGE_SUFFIX, EncryptedText, MAX_SECRET, ProjectKey, RECIPIENTS_FILE, RecipientList, SecretError, SecretKey, SecretsFile,
        encrypted, is_sops_file, readable, reencrypted, reencrypted_file,
    },
};

/// The number of lines that wait for a slow client. Further lines are dropped.
const MAX_WAITING: usize = 4096;

/// The number of random bytes of a generated value.
const GENERATED: usize = 32;

/// The request to set, replace or remove a secret.
#[derive(Debug)]
pub struct SecretSet {
    /// The project for a value of all environments, or an environment.
    pub target: Target,
    /// The name.
    pub key: String,
    pub change: SecretChangeKind,
    /// False to keep the processes running with the old value until the next deployment.
    pub restart: bool,
}

/// The change of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretChangeKind {
    /// The caller's input is the value.
    Set,
    /// The caller's input is the new value of an existing secret.
    Rotate,
    /// A random value is the new value of an existing secret.
    Generate,
    /// The secret is removed.
    Unset,
}

/// The answer to a change that changed nothing.
#[derive(Debug, Serialize)]
pub struct SecretUnchanged {
    /// The project.
    pub project: ProjectName,
}

impl Request for SecretSet {
    type View = SecretUnchanged;
    const NAME: &'static str = "secret set";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.target.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<SecretUnchanged>, CommandError> {
        let SecretSet { target, key, change, restart } = self;
        let key: SecretKey = key.parse().map_err(|error| of_secret(&error))?;
        if let Some(name) = key.variable() {
            super::configuration::check_name(name)?;
        }
        let work = PillarWork::new(control, caller, &target, restart).await?;
        let file = SecretsFile::name(target.environment.as_ref());
        // Another person may change the secret while this request reads its input.
        let seen = work.secrets(&file)?.get(&key).map(str::to_owned);
        let verb = match change {
            SecretChangeKind::Set => "Set",
            SecretChangeKind::Rotate | SecretChangeKind::Generate => "Rotate",
            SecretChangeKind::Unset => "Remove",
        };
        if change != SecretChangeKind::Set && seen.is_none() {
            let error = CommandError::new(ErrorKind::NotFound, format!("{file} has no secret {key}"));
            return Err(error.hint(format!("list the secrets with `larder secret show {}`", target.project)));
        }
        let work = PillarWork { message: format!("{verb} the secret {key} in {file}"), ..work };
        let edit = move |value: Option<Zeroizing<Vec<u8>>>| -> EditFn {
            Box::new(move |work| work.edit_secret(&file, &key, seen.as_deref(), value))
        };
        match change {
            SecretChangeKind::Unset => Ok(work.start("secret unset", edit(None))),
            SecretChangeKind::Generate => Ok(work.start("secret rotate", edit(Some(generated()?)))),
            SecretChangeKind::Set | SecretChangeKind::Rotate => {
                let name = if change == SecretChangeKind::Set { "secret set" } else { "secret rotate" };
                let read = move |from: OwnedFd| -> BoxFuture<'static, _> {
                    Box::pin(async move {
                        let value = run_blocking(move || read_value(from)).await?;
                        Ok(work.start(name, edit(Some(value))))
                    })
                };
                Ok(Reply::Input(Box::new(read)))
            }
        }
    }
}

/// The request to encrypt all secrets of a project anew, or to change their recipients.
#[derive(Debug)]
pub struct RecipientsChange {
    /// The project.
    pub project: ProjectName,
    pub change: RecipientsChangeKind,
}

/// The change of the recipients.
#[derive(Debug)]
pub enum RecipientsChangeKind {
    /// The recipients stay as they are.
    Reencrypt,
    /// A person or a machine can read the secrets from now on.
    Add {
        name: String,
        /// The key; without a key, the login keys of the user with this name.
        key: Option<String>,
    },
    /// A person can no longer read the secrets.
    Remove { name: String },
}

impl Request for RecipientsChange {
    type View = SecretUnchanged;
    const NAME: &'static str = "secret recipients";

    fn needs(&self) -> Needs {
        Needs::pillar(&self.project)
    }

    async fn handle(self, Context { control, caller }: &Context<'_>) -> Result<Reply<SecretUnchanged>, CommandError> {
        let RecipientsChange { project, change } = self;
        let target = Target { project, environment: None };
        let work = PillarWork::new(control, caller, &target, true).await?;
        match change {
            RecipientsChangeKind::Reencrypt => {
                let lines = work.sops_lines();
                let work = PillarWork { message: String::from("Encrypt all secrets anew"), lines, ..work };
                Ok(work.start("secret rotate", Box::new(|work| work.reencrypt(work.recipients()?, false))))
            }
            RecipientsChangeKind::Add { name, key } => {
                let keys = match key {
                    Some(key) => vec![key],
                    None => login_keys(control, &name)?,
                };
                let lines = work.sops_lines();
                let work = PillarWork { message: format!("Encrypt the secrets for {name}"), lines, ..work };
                Ok(work.start("secret recipients add", Box::new(move |work| work.add_recipient(&name, &keys))))
            }
            RecipientsChangeKind::Remove { name } => {
                let mut list = work.recipients()?;
                let removed = list.remove(&name);
                if removed.is_empty() {
                    let known: Vec<_> = list.iter().map(|known| known.name.clone()).collect();
                    let error = CommandError::new(ErrorKind::NotFound, format!("{name} is no recipient of {}", target.project));
                    return Err(match known.is_empty() {
                        true => error.hint("there are no recipients besides the server"),
                        false => error.hint(format!("the recipients are {}", known.join(", "))),
                    });
                }
                let keys = removed.into_iter().map(|known| known.key).collect();
                let mut lines = work.readable_lines(&name, &keys).await?;
                lines.extend(work.sops_lines());
                let work = PillarWork { message: format!("Encrypt the secrets without {name}"), lines, ..work };
                let edit: EditFn = Box::new(move |work| {
                    let mut list = work.recipients()?;
                    list.remove(&name);
                    work.reencrypt(list, true)
                });
                Ok(work.start("secret recipients remove", edit))
            }
        }
    }
}

/// Returns the login keys of a user.
fn login_keys(control: &Control, name: &str) -> Result<Vec<String>, CommandError> {
    let user: Option<UserName> = name.parse().ok();
    let registry = control.registry();
    let keys =
        user.and_then(|user| registry.user(&user)).map(|user| user.keys.iter().map(|key| key.line.clone()).collect::<Vec<_>>());
    match keys {
        Some(keys) if !keys.is_empty() => Ok(keys),
        _ => Err(usage(format!("there is no user {name} with a login key"))
            .hint("give the key with --key: a line that begins with age1, ssh-ed25519 or ssh-rsa")),
    }
}

/// The changed files of a pillar; `None` removes a file. The list is empty if nothing changes.
pub(super) type ChangedFiles = Vec<(String, Option<Vec<u8>>)>;

/// A function that changes the files of a pillar.
pub(super) type EditFn = Box<dyn FnOnce(&PillarWork) -> Result<ChangedFiles, CommandError> + Send>;

/// The pillar of a project, and a change that is about to be made.
#[derive(Clone)]
pub(super) struct PillarWork {
    control: Control,
    caller: Caller,
    project: Project,
    key: ProjectKey,
    /// The files of the branch `main`; `None` if nothing was pushed yet.
    head: Option<Arc<PillarFiles>>,
    restart: bool,
    /// The message of the commit.
    message: String,
    /// Lines for the caller, after the change.
    lines: Vec<String>,
}

impl PillarWork {
    /// Reads the pillar of a project.
    pub(super) async fn new(
        control: &Control,
        caller: &Caller,
        target: &Target,
        restart: bool,
    ) -> Result<PillarWork, CommandError> {
        let project = control.project(caller, &target.project, &Needs::pillar(&target.project))?;
        if target.environment.as_ref().is_some_and(|name| !project.environments.iter().any(|one| one.name == *name)) {
            return Err(no_environment(&project, target));
        }
        let pipeline = control.pipeline();
        let head = pipeline.pillar_head(project.id).await.map_err(|error| CommandError::internal(&error))?;
        let key = pipeline.project_key(project.id).map_err(|error| of_secret(&error))?;
        let (control, caller) = (control.clone(), caller.clone());
        Ok(PillarWork { control, caller, project, key, head, restart, message: String::new(), lines: Vec::new() })
    }

    /// Sets the message of the commit.
    pub(super) fn with_message(self, message: String) -> PillarWork {
        PillarWork { message, ..self }
    }

    pub(super) fn key(&self) -> &ProjectKey {
        &self.key
    }

    /// Returns the files of the pillar.
    pub(super) fn files(&self) -> &[(String, Vec<u8>)] {
        self.head.as_ref().map(|head| head.files.as_slice()).unwrap_or_default()
    }

    fn file(&self, name: &str) -> Option<&[u8]> {
        self.files().iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes.as_slice())
    }

    pub(super) fn secrets(&self, file: &str) -> Result<SecretsFile, CommandError> {
        let bytes = self.file(file);
        if bytes.is_some_and(|bytes| is_sops_file(file, bytes)) {
            return Err(refused(format!("{file} is in the format of SOPS, which the server only reads"))
                .hint(format!("change the value in a clone of the pillar with `sops {file}`, commit it, and push")));
        }
        let parsed = bytes.map(|bytes| SecretsFile::parse(file, bytes)).transpose();
        Ok(parsed.map_err(|error| CommandError::new(ErrorKind::Configuration, error.to_string()))?.unwrap_or_default())
    }

    pub(super) fn recipients(&self) -> Result<RecipientList, CommandError> {
        let bytes = self.file(RECIPIENTS_FILE).unwrap_or_default();
        RecipientList::parse(bytes, &self.key).map_err(|error| of_secret(&error))
    }

    /// Sets or removes a secret. `seen` is the encrypted value when the request arrived.
    fn edit_secret(
        &self,
        file: &str,
        key: &SecretKey,
        seen: Option<&str>,
        value: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<ChangedFiles, CommandError> {
        let mut secrets = self.secrets(file)?;
        let now = secrets.get(key);
        let plain = |text: &str| EncryptedText::parse(text).ok().flatten().and_then(|value| value.decrypt(&self.key).ok());
        let current = now.and_then(plain);
        let is_same = current.as_ref().map(|current| current.as_bytes()) == value.as_ref().map(|value| value.as_slice());
        if now.is_some() == value.is_some() && is_same {
            return Ok(Vec::new());
        }
        if now != seen && current.as_ref() != seen.and_then(plain).as_ref() {
            return Err(refused(format!("{key} was changed meanwhile")).hint(format!(
                "look at the new value with `larder secret show {} {key}`, and repeat the command if your value is right",
                self.project.name
            )));
        }
        match value {
            Some(value) => {
                let text = encrypted(&value, &self.key, &self.recipients()?).map_err(|error| of_secret(&error))?;
                secrets.set(key.clone(), text).map_err(|error| of_secret(&error))?;
            }
            None => drop(secrets.unset(key)),
        }
        self.with_recipients(vec![(file.to_owned(), Some(secrets.to_text().into_bytes()))])
    }

    /// Adds the list of recipients to changed files, if the pillar has no list. The program age reads the recipients from this file, so it names
    /// at least the server.
    pub(super) fn with_recipients(&self, mut files: ChangedFiles) -> Result<ChangedFiles, CommandError> {
        if self.file(RECIPIENTS_FILE).is_none() {
            files.push((RECIPIENTS_FILE.to_owned(), Some(self.recipients()?.to_text(&self.key).into_bytes())));
        }
        Ok(files)
    }

    fn add_recipient(&self, name: &str, keys: &[String]) -> Result<ChangedFiles, CommandError> {
        let mut list = self.recipients()?;
        let (mut added, mut reasons) = (false, Vec::new());
        for key in keys {
            match list.add(name, key, &self.key) {
                Ok(is_new) => added |= is_new,
                Err(why) => reasons.push(why),
            }
        }
        match (added, reasons.into_iter().next()) {
            (false, Some(why)) => Err(usage(format!("cannot add {name}: {why}"))
                .hint("give a key that age supports with --key: age1..., ssh-ed25519 or ssh-rsa with at least 2048 bits")),
            (false, None) => Ok(Vec::new()),
            (true, _) => self.reencrypt(list, true),
        }
    }

    /// Encrypts all secrets of the pillar for `list`.
    fn reencrypt(&self, list: RecipientList, changes_list: bool) -> Result<ChangedFiles, CommandError> {
        let mut files = Vec::new();
        for (name, bytes) in self.files().iter().filter(|(name, _)| name.ends_with(AGE_SUFFIX)) {
            let again = reencrypted_file(bytes, &self.key, &list).map_err(|error| {
                let shown = CommandError::new(ErrorKind::Configuration, format!("{name}: {error}"));
                error.hint().into_iter().fold(shown, CommandError::hint)
            })?;
            files.push((name.clone(), Some(again)));
        }
        let of_values = |name: &str, bytes: &[u8]| name.ends_with(".yml") && !is_sops_file(name, bytes);
        for (name, bytes) in self.files().iter().filter(|(name, bytes)| of_values(name, bytes)) {
            let text = String::from_utf8_lossy(bytes);
            let again = reencrypted(&text, &self.key, &list).map_err(|(line, error)| {
                let shown = CommandError::new(ErrorKind::Configuration, format!("{name} line {line}: {error}"));
                error.hint().into_iter().fold(shown, CommandError::hint)
            })?;
            if again.1 > 0 {
                files.push((name.clone(), Some(again.0.into_bytes())));
            }
        }
        if changes_list {
            files.push((RECIPIENTS_FILE.to_owned(), Some(list.to_text(&self.key).into_bytes())));
        }
        Ok(files)
    }

    /// Returns lines about the files whose recipients only the program sops can change.
    fn sops_lines(&self) -> Vec<String> {
        let files = self.files().iter().filter(|(name, bytes)| name.ends_with(".yml") && is_sops_file(name, bytes));
        let line = |name: &String| {
            format!("{name} is in the format of SOPS and was not changed: change its recipients with `sops updatekeys {name}`")
        };
        files.map(|(name, _)| line(name)).collect()
    }

    /// Returns lines about the secrets that the holder of `keys` could read.
    async fn readable_lines(&self, name: &str, keys: &BTreeSet<String>) -> Result<Vec<String>, CommandError> {
        let Some(head) = &self.head else { return Ok(Vec::new()) };
        let repositories = &self.control.pipeline().services().repositories;
        let history = repositories.pillar_history(self.project.id, head.commit.clone()).await;
        let history = history.map_err(|error| CommandError::internal(&error))?;
        let found = readable(history.files(), keys, &self.key);
        if found.is_empty() {
            return Ok(vec![format!("No secret was encrypted for {name}.")]);
        }
        let mut lines = vec![format!("{name} could read these secrets, also in earlier commits of the pillar:")];
        for secret in &found {
            let state = if secret.is_current { "the present value: rotate it" } else { "an earlier value" };
            lines.push(format!("  {} in {} ({state})", secret.key, secret.file));
        }
        if found.iter().any(|secret| secret.is_current) {
            lines.push(format!("Rotate with: larder secret rotate {} NAME", self.project.name));
        }
        Ok(lines)
    }

    /// Makes the change in a task, which continues if the caller disconnects. Returns the output of the task.
    pub(super) fn start(self, what: &'static str, edit: EditFn) -> Reply<SecretUnchanged> {
        let (sender, lines) = mpsc::channel(MAX_WAITING);
        let ended = tokio::spawn(async move {
            let on = format!("{}/pillar", self.project.name);
            let entry = AuditEntry::new(&self.caller, what, on, Some(self.message.clone()));
            let control = self.control.clone();
            control.audit(entry.clone()).await;
            let done = self.make(edit, &Screen(sender)).await;
            if let Err(error) = &done {
                control.audit(entry.ended(AuditOutcome::Failed, &error.message)).await;
            }
            done
        });
        Reply::Stream(Stream::Lines(Box::new(LineStream { lines, ended })))
    }

    async fn make(mut self, edit: EditFn, screen: &Screen) -> Result<(), CommandError> {
        let internal = |error: &(dyn std::error::Error + 'static)| CommandError::internal(error);
        let control = self.control.clone();
        let (pipeline, id) = (control.pipeline(), self.project.id);
        let repositories = &pipeline.services().repositories;
        let _one_at_a_time = pipeline.lock_pillar(id).await;
        // The rights, the environments and the pillar may have changed while this request waited.
        let name = self.project.name.clone();
        self.project = control.project(&self.caller, &name, &Needs::pillar(&name))?;
        self.head = pipeline.pillar_head(id).await.map_err(|error| internal(&error))?;
        if self.head.is_none() {
            pipeline.make_pillar(id).await.map_err(|error| internal(&error))?;
        }
        let files = edit(&self)?;
        if files.is_empty() {
            screen.line("nothing to change: the pillar has this content already");
            return Ok(());
        }
        let parent = self.head.as_ref().map(|head| head.commit.clone());
        let author = self.caller.name();
        let new =
            PillarCommit { files, author: author.to_string(), message: self.message.clone(), time: Timestamp::now().as_second() };
        let commit = repositories.commit_pillar(id, parent.clone(), new).await.map_err(|error| internal(&error))?;
        let files = match repositories.read_pillar(id, Some(commit), parent, None).await {
            Ok(Some(files)) => Arc::new(files),
            Err(GitError::PillarRefused(refusal)) => return Err(refused(refusal.to_string()).hint(refusal.hint)),
            Err(error) => return Err(internal(&error)),
            Ok(None) => return Err(CommandError::new(ErrorKind::Internal, "the repository of the pillar is missing")),
        };
        control
            .check_pillar_files(&self.project, author.clone(), &files)
            .map_err(|rejection| rejection.lines.into_iter().fold(refused(rejection.reason), CommandError::hint))?;
        let restart = self.restart;
        let waits = move |_: &Environment| !restart;
        let short = files.commit.short().to_owned();
        let change = PillarChange { project: &self.project, by: author, before: self.head.clone(), files, waits: &waits };
        control.change_pillar(&change, screen).await.map_err(|why| CommandError::new(ErrorKind::Deployment, why))?;
        screen.line(&format!("-----> pillar {short}: {}", self.message));
        self.lines.iter().for_each(|line| screen.line(&format!("       {line}")));
        Ok(())
    }
}

/// The caller of a change, whose output waits in a channel.
struct Screen(mpsc::Sender<String>);

impl OutputClient for Screen {
    fn line(&self, line: &str) {
        let _ = self.0.try_send(line.to_owned());
    }

    fn gone(&self) -> BoxFuture<'static, ()> {
        let sender = self.0.clone();
        Box::pin(async move { sender.closed().await })
    }
}

/// Reads a value from the caller's input.
fn read_value(from: OwnedFd) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_SECRET.saturating_add(1)));
    let limit = u64::try_from(MAX_SECRET).unwrap_or(u64::MAX).saturating_add(1);
    File::from(from).take(limit).read_to_end(&mut value).map_err(|error| CommandError::internal(&error))?;
    match value.len() {
        0 => Err(usage("the value is empty")
            .hint("write the value to the standard input: printf %s \"$TOKEN\" | larder secret set ...")),
        size if size > MAX_SECRET => Err(of_secret(&SecretError::TooLarge { limit: MAX_SECRET })),
        _ => Ok(value),
    }
}

/// Returns a random value of 43 characters, which are letters, digits, `-` and `_`.
fn generated() -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let mut random = Zeroizing::new([0_u8; GENERATED]);
    let mut filled = 0;
    while let Some(rest) = random.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let read = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty());
        filled = filled.saturating_add(read.map_err(|error| CommandError::internal(&error))?);
    }
    Ok(Zeroizing::new(data_encoding::BASE64URL_NOPAD.encode(random.as_ref()).into_bytes()))
}

/// Returns the error of a secret that cannot be read or set.
pub(super) fn of_secret(error: &SecretError) -> CommandError {
    let kind = match error {
        SecretError::OtherRecipient { .. } | SecretError::Damaged(_) | SecretError::Recipient { .. } => ErrorKind::Configuration,
        SecretError::Encrypt(_) | SecretError::Key(_) => ErrorKind::Internal,
        _ => ErrorKind::Usage,
    };
    error.hint().into_iter().fold(CommandError::new(kind, chain(error)), CommandError::hint)
}
