//! The command `larder secret`: sets, shows and rotates secrets of the pillar, and changes their recipients.

use clap::Subcommand;

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text::table,
    },
    arguments::Words,
    secret_edit::SecretEditArgs,
};
use crate::{
    control::{
        CommandError, ErrorKind, RecipientsChange, RecipientsChangeKind, RecipientsShow, RecipientsView, SecretChangeKind,
        SecretSet, SecretShow, SecretUnchanged, SecretView,
    },
    model::{ProjectName, Target},
};

#[derive(Debug, Subcommand)]
#[command(
    after_help = "A secret is a value of the pillar that is encrypted in the format of age. The server decrypts it in memory, and processes get it like other values of the pillar. API_TOKEN is a variable of the processes; a name with a dot, such as database.password, is a key of the pillar.\n\nEach change is a commit of the pillar, and starts the environments whose values differ, with the same checks as a push of the pillar."
)]
/// Set, show and rotate encrypted values of the pillar
pub enum SecretVerb {
    Set(SecretSetArgs),
    Unset(SecretUnsetArgs),
    Show(SecretShowArgs),
    Edit(SecretEditArgs),
    Rotate(SecretRotateArgs),
    Recipients(RecipientsArgs),
}

impl SecretVerb {
    /// Returns true if the command opens an editor on the caller's machine.
    pub(in crate::surface::cli) fn opens_editor(&self) -> bool {
        matches!(self, SecretVerb::Edit(edit) if edit.opens_editor())
    }

    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            SecretVerb::Set(command) => asking.ask(command).await,
            SecretVerb::Unset(command) => asking.ask(command).await,
            SecretVerb::Show(command) => asking.ask(command).await,
            SecretVerb::Edit(command) => command.ask(asking).await,
            SecretVerb::Rotate(command) => command.ask(asking).await,
            SecretVerb::Recipients(command) => command.ask(asking).await,
        }
    }
}

fn usage(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorKind::Usage, message)
}

/// Returns the target and the only name.
fn one_name(words: Words, command: &str) -> Result<(Target, String), CommandError> {
    let (target, words) = words.target_and_rest()?;
    let mut words = words.into_iter();
    match (words.next(), words.next()) {
        (Some(name), None) if !name.contains('=') => Ok((target, name)),
        (Some(_), None) => Err(usage("a value on the command line would be visible to other users of the machine").hint(
            format!("write the value to the standard input: printf %s \"$TOKEN\" | larder secret {command} shop API_TOKEN"),
        )),
        _ => Err(usage("exactly one secret must be named").hint(format!("as in `larder secret {command} shop API_TOKEN`"))),
    }
}

fn unchanged(view: &SecretUnchanged) -> Shown {
    Shown::Done(format!("nothing to change in the pillar of {}", view.project))
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The value is read from the standard input, unchanged: a newline at its end belongs to the value. It may have at most 64 KiB of text without NUL. With PROJECT alone, the value is for all environments; with PROJECT/ENVIRONMENT, for one.\n\nIf another person has changed the same secret since the command began, the command is refused.\n\nExamples:\n  printf %s \"$TOKEN\" | larder secret set shop API_TOKEN\n  printf %s \"$PASSWORD\" | larder secret set shop/staging database.password"
)]
/// Set a secret, and start the environments with it
pub struct SecretSetArgs {
    #[command(flatten)]
    words: Words,
    /// Keep the processes running with the old value until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl Command for SecretSetArgs {
    type Request = SecretSet;

    fn request(self) -> Result<SecretSet, CommandError> {
        let (target, key) = one_name(self.words, "set")?;
        Ok(SecretSet { target, key, change: SecretChangeKind::Set, restart: !self.no_restart })
    }

    fn show(view: &SecretUnchanged) -> Shown {
        unchanged(view)
    }
}

/// Remove a secret, and start the environments without it
#[derive(Debug, clap::Args)]
#[command(after_help = "Earlier commits of the pillar keep the encrypted value.\n\nExample: larder secret unset shop API_TOKEN")]
pub struct SecretUnsetArgs {
    #[command(flatten)]
    words: Words,
    /// Keep the processes running with the old value until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl Command for SecretUnsetArgs {
    type Request = SecretSet;

    fn request(self) -> Result<SecretSet, CommandError> {
        let (target, key) = one_name(self.words, "unset")?;
        Ok(SecretSet { target, key, change: SecretChangeKind::Unset, restart: !self.no_restart })
    }

    fn show(view: &SecretUnchanged) -> Shown {
        unchanged(view)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without NAME, the names and files are listed, also of values that were encrypted by hand. With NAME, the value is written unchanged, without a newline at its end. Each look at a value is in the audit log.\n\nExamples:\n  larder secret show shop\n  larder secret show shop/production API_TOKEN"
)]
/// List the secrets, or show the value of one secret
pub struct SecretShowArgs {
    #[command(flatten)]
    words: Words,
}

impl Command for SecretShowArgs {
    type Request = SecretShow;

    fn request(self) -> Result<SecretShow, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let mut words = words.into_iter();
        match (words.next(), words.next()) {
            (key, None) => Ok(SecretShow { target, key }),
            _ => Err(usage("more than one secret is named").hint("name one secret, or none to list all")),
        }
    }

    fn show(view: &SecretView) -> Shown {
        if let Some(value) = &view.value {
            return Shown::Verbatim(value.clone());
        }
        if view.secrets.is_empty() {
            return Shown::Page(format!("{} has no secrets here\n", view.project));
        }
        let row = |row: &crate::control::SecretRow| {
            vec![row.key.clone(), format!("{}:{}", row.file, row.line), row.problem.clone().unwrap_or_default()]
        };
        Shown::Page(table(&["SECRET", "FILE", "PROBLEM"], view.secrets.iter().map(row).collect()))
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With NAME, the secret must exist, and the new value is read from the standard input, or is random with --generate. All processes are started with it, and no request fails. Without NAME, all secrets are encrypted anew for the present recipients, and no process is started.\n\nExamples:\n  printf %s \"$NEW\" | larder secret rotate shop API_TOKEN\n  larder secret rotate shop SESSION_KEY --generate\n  larder secret rotate shop"
)]
/// Replace the value of a secret, or encrypt all secrets anew
pub struct SecretRotateArgs {
    #[command(flatten)]
    words: Words,
    /// Use a random value of 43 characters
    #[arg(long)]
    generate: bool,
    /// Keep the processes running with the old value until the next deployment
    #[arg(long)]
    no_restart: bool,
}

impl SecretRotateArgs {
    async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        let (target, words) = self.words.target_and_rest()?;
        let mut words = words.into_iter();
        let change = if self.generate { SecretChangeKind::Generate } else { SecretChangeKind::Rotate };
        match (words.next(), words.next()) {
            (Some(key), None) => asking.ask(Rotate(SecretSet { target, key, change, restart: !self.no_restart })).await,
            (None, None) if !self.generate && target.environment.is_none() => {
                let change = RecipientsChange { project: target.project, change: RecipientsChangeKind::Reencrypt };
                asking.ask(ChangeRecipients(change)).await
            }
            (None, None) => Err(usage("no secret is named").hint("name the secret, as in `larder secret rotate shop API_TOKEN`")),
            _ => Err(usage("more than one secret is named").hint("name one secret, or only the project to encrypt all anew")),
        }
    }
}

/// The rotation of one secret.
struct Rotate(SecretSet);

impl Command for Rotate {
    type Request = SecretSet;

    fn request(self) -> Result<SecretSet, CommandError> {
        Ok(self.0)
    }

    fn show(view: &SecretUnchanged) -> Shown {
        unchanged(view)
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The server can always read the secrets, with the key of the project, which is listed first. A recipient can read them in a clone of the pillar without the server: age -d -i ~/.ssh/id_ed25519. `add` without --key uses the login keys of the user with this name. age supports the keys age1..., ssh-ed25519, and ssh-rsa with at least 2048 bits.\n\n`remove` encrypts all secrets anew, and lists the secrets that the person could read, also in earlier commits: replace these values with `secret rotate`.\n\nExamples:\n  larder secret recipients shop\n  larder secret recipients add shop bob\n  larder secret recipients add shop backup --key age1...\n  larder secret recipients remove shop bob"
)]
/// List, add or remove the keys that can read the secrets
pub struct RecipientsArgs {
    /// list, add or remove; then the project, and the name of the recipient
    #[arg(value_names = ["ACTION", "PROJECT", "NAME"], num_args = 0..=3)]
    words: Vec<String>,
    /// Project, instead of the argument PROJECT
    #[arg(long, short = 'a', value_name = "PROJECT")]
    app: Option<Target>,
    /// Public key, for add: age1..., ssh-ed25519 or ssh-rsa
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

impl RecipientsArgs {
    async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        let mut words = self.words;
        let is_action = |word: &String| ["list", "add", "remove"].contains(&word.as_str());
        // The action may come before or after the project, as in `config set shop` and `edits shop drop`.
        let at = words.iter().take(2).position(is_action);
        let action = at.map_or_else(|| String::from("list"), |at| words.remove(at));
        let mut words = words.into_iter();
        let target = match self.app {
            Some(app) => Some(app),
            None => words.next().map(|word| word.parse::<Target>().map_err(|error| usage(error.to_string()))).transpose()?,
        };
        let missing = || usage("no project is named").hint("name a project, as in `larder secret recipients shop`");
        let project: ProjectName = match target.ok_or_else(missing)? {
            Target { project, environment: None } => project,
            Target { project, .. } => {
                return Err(usage("all environments of a project have the same recipients")
                    .hint(format!("name the project {project} alone")));
            }
        };
        let name = match (words.next(), words.next()) {
            (name, None) => name,
            (_, Some(_)) => return Err(usage("more than one recipient is named")),
        };
        let change = match (action.as_str(), name, self.key) {
            ("list", None, None) => return asking.ask(ListRecipients(RecipientsShow { project })).await,
            ("add", Some(name), key) => RecipientsChangeKind::Add { name, key },
            ("remove", Some(name), None) => RecipientsChangeKind::Remove { name },
            _ => {
                return Err(usage("the recipient or the action is missing")
                    .hint("as in `larder secret recipients add shop bob` or `larder secret recipients remove shop bob`"));
            }
        };
        asking.ask(ChangeRecipients(RecipientsChange { project, change })).await
    }
}

/// A change of the recipients.
struct ChangeRecipients(RecipientsChange);

impl Command for ChangeRecipients {
    type Request = RecipientsChange;

    fn request(self) -> Result<RecipientsChange, CommandError> {
        Ok(self.0)
    }

    fn show(view: &SecretUnchanged) -> Shown {
        unchanged(view)
    }
}

/// The list of the recipients.
struct ListRecipients(RecipientsShow);

impl Command for ListRecipients {
    type Request = RecipientsShow;

    fn request(self) -> Result<RecipientsShow, CommandError> {
        Ok(self.0)
    }

    fn show(view: &RecipientsView) -> Shown {
        let row = |row: &crate::control::RecipientRow| vec![row.name.clone(), row.key.clone()];
        Shown::Page(table(&["NAME", "KEY"], view.recipients.iter().map(row).collect()))
    }
}
