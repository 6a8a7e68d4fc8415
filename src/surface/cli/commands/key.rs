//! The command `larder key`, which manages keys.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text,
    },
    key_deploy::KeyDeployArgs,
};
use crate::{
    control::{
        self, CommandError, ErrorKind, KeyAdd, KeyAdded, KeyLimits, KeyList, KeyRemove, KeyRemoved, KeyScope, KeyShow, KeyTrust,
        KeyTrustView, KeyUntrust, KeyUntrusted, LoginKeyRow, ServerKeys, TrustRow,
    },
    model::{Access, Network, ProjectName, PublicKey, RemoteName, Target, UserName, sanitise_reason},
    surface::ssh::{PublicKeyInfo, keys},
};

/// Manage SSH keys of users, show this server's own keys, trust signing keys
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    Add(KeyAddArgs),
    Deploy(KeyDeployArgs),
    List(KeyListArgs),
    Remove(KeyRemoveArgs),
    Show(KeyShowArgs),
    Trust(KeyTrustArgs),
    Untrust(KeyUntrustArgs),
}

impl KeyVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            KeyVerb::Add(command) => asking.ask(command).await,
            KeyVerb::Deploy(command) => asking.ask(command).await,
            KeyVerb::List(command) => asking.ask(command).await,
            KeyVerb::Remove(command) => asking.ask(command).await,
            KeyVerb::Show(command) => asking.ask(command).await,
            KeyVerb::Trust(command) => asking.ask(command).await,
            KeyVerb::Untrust(command) => asking.ask(command).await,
        }
    }
}

/// Add an SSH key to a user
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder key add alice --key-file ~/.ssh/laptop.pub\n  ssh -p 2222 larder@HOST key add alice --key \"'$(cat ~/.ssh/laptop.pub)'\"\n  larder key add ci --key-file ci.pub --only shop/staging --from 192.0.2.0/24 --expires 90d"
)]
pub struct KeyAddArgs {
    /// Name of the user
    user: UserName,
    /// File with the public key, on the machine where you type this command
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    key_file: Option<PathBuf>,
    /// The public key itself, one line; over ssh, --key-file is not available
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    key: Option<String>,
    #[command(flatten)]
    limits: KeyLimitArgs,
}

/// Limits of logins with a key, and the name of the key.
#[derive(Debug, Default, clap::Args)]
pub struct KeyLimitArgs {
    /// Name of the key for people, such as laptop
    #[arg(long = "key-name", value_name = "TEXT", value_parser = key_name)]
    key_name: Option<String>,
    /// Accept a security key although larder cannot check that it is touched: a program on the user's machine can use the key without a touch
    #[arg(long)]
    no_touch_required: bool,
    #[command(flatten)]
    limits: LoginLimitArgs,
}

/// Limits of logins.
#[derive(Debug, Default, clap::Args)]
pub struct LoginLimitArgs {
    /// Refuse the key after this time: 12h, 30d, 2027-01-31 (its end in UTC) or 2027-01-31T18:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    expires: Option<Timestamp>,
    /// Accept the key from these addresses only, such as 192.0.2.0/24; may be repeated
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    from: Vec<Network>,
    /// Restrict the key to this project, or PROJECT/ENVIRONMENT, whatever rights its user has
    #[arg(long, value_name = "PROJECT")]
    only: Option<Target>,
    /// Greatest right of the key on --only
    #[arg(long, value_name = "RIGHT", requires = "only", default_value = "push")]
    right: KeyRight,
}

/// The greatest right of a restricted key.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum KeyRight {
    View,
    #[default]
    Push,
    Deploy,
    Operate,
}

impl LoginLimitArgs {
    pub(super) fn limits(self) -> KeyLimits {
        let right = match self.right {
            KeyRight::View => Access::View,
            KeyRight::Push => Access::Push,
            KeyRight::Deploy => Access::Deploy,
            KeyRight::Operate => Access::Operate,
        };
        let only = self.only.map(|on| KeyScope { on, right });
        KeyLimits { expires: self.expires, from: self.from, only, ..KeyLimits::default() }
    }
}

/// Parses the name of a key, which appears in lists.
fn key_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 60 || sanitise_reason(text) != text {
        return Err(String::from("expected one line of at most 60 bytes"));
    }
    Ok(text.to_owned())
}

/// Parses a time span from now, a day, or a moment, which must be in the future.
fn moment(text: &str) -> Result<Timestamp, String> {
    let wrong = || format!("{text:?} is not a time (expected for example 12h, 30d, 2027-01-31 or 2027-01-31T18:00:00Z)");
    let now = Timestamp::now();
    let span = |text: &str| {
        let unit = match text.chars().last()? {
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return None,
        };
        let count: i64 = text.get(..text.len().checked_sub(1)?)?.parse().ok().filter(|count| *count >= 0)?;
        now.checked_add(SignedDuration::from_secs(count.checked_mul(unit)?)).ok()
    };
    let day = |text: &str| {
        let day: jiff::civil::Date = text.parse().ok()?;
        let end = day.tomorrow().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        (text.len() == "2027-01-31".len()).then(|| end.timestamp())
    };
    let moment = span(text).or_else(|| day(text)).or_else(|| text.parse().ok()).ok_or_else(wrong)?;
    if moment > now { Ok(moment) } else { Err(format!("{text:?} is in the past")) }
}

/// List the login keys of a user with their limits; without a user, your own keys
#[derive(Debug, clap::Args)]
pub struct KeyListArgs {
    /// Name of the user
    user: Option<UserName>,
}

impl Command for KeyListArgs {
    type Request = KeyList;

    fn request(self) -> Result<KeyList, CommandError> {
        Ok(KeyList { name: self.user })
    }

    fn show(rows: &Vec<LoginKeyRow>) -> Shown {
        let line = |row: &LoginKeyRow| {
            let limits = described_key(row);
            vec![row.user.to_string(), row.limits.name.clone().unwrap_or_default(), row.fingerprint.clone(), limits]
        };
        Shown::Page(text::table(&["USER", "NAME", "KEY", "LIMITS"], rows.iter().map(line).collect()))
    }
}

/// Describes the limits of a key in one line.
pub(super) fn described(limits: &KeyLimits) -> String {
    let mut parts = Vec::new();
    if let Some(KeyScope { on, right }) = &limits.only {
        parts.push(format!("only {right} on {on}"));
    }
    if let Some(expires) = limits.expires {
        parts.push(format!("until {}", expires.strftime("%Y-%m-%d %H:%M UTC")));
    }
    if !limits.from.is_empty() {
        parts.push(format!("from {}", limits.from.iter().map(Network::to_string).collect::<Vec<_>>().join(", ")));
    }
    parts.join("; ")
}

/// Describes the limits of a login key in one line. The touch of no security key is checked, also not of a key that was added by a version of
/// larder without the option `--no-touch-required`.
pub(super) fn described_key(row: &LoginKeyRow) -> String {
    let touch = keys::is_security_key(&row.kind).then(|| String::from("touch not checked"));
    let parts: Vec<_> = [described(&row.limits)].into_iter().chain(touch).filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

impl Command for KeyAddArgs {
    type Request = KeyAdd;

    fn request(self) -> Result<KeyAdd, CommandError> {
        let key = read_key(self.key_file, self.key, self.limits)?;
        let missing = || CommandError::new(ErrorKind::Usage, "cannot add a key: no key is given").hint("give --key-file FILE");
        Ok(KeyAdd { name: self.user, key: key.ok_or_else(missing)? })
    }

    fn show(view: &KeyAdded) -> Shown {
        Shown::Done(format!("{} may log in with {}", view.name, view.fingerprint))
    }
}

/// Parses the login key of a command, with the limits of logins with this key.
pub(super) fn read_key(
    file: Option<PathBuf>,
    key: Option<String>,
    limits: KeyLimitArgs,
) -> Result<Option<control::Key>, CommandError> {
    let KeyLimitArgs { key_name: name, no_touch_required, limits } = limits;
    let Some(key) = parsed_key(file, key)? else { return Ok(None) };
    if keys::is_security_key(&key.algorithm) && !no_touch_required {
        let kind = key.algorithm;
        return Err(CommandError::new(
            ErrorKind::Refused,
            format!("cannot add a {kind} key: larder cannot check that the security key is touched for each login"),
        )
        .hint("accept the key without this check: add --no-touch-required")
        .hint(
            "require the touch at a jump host instead, and accept the key from there only: see `Security keys` in docs/access.md",
        ));
    }
    let limits = KeyLimits { name, no_touch_required, ..limits.limits() };
    Ok(Some(control::Key { fingerprint: key.fingerprint_sha256, line: key.openssh_line, limits }))
}

/// Parses the key of a command. The server reads no file that a caller names, so the local program replaces `--key-file` by `--key`
/// before it sends the command.
pub(super) fn parsed_key(file: Option<PathBuf>, key: Option<String>) -> Result<Option<PublicKeyInfo>, CommandError> {
    if let Some(file) = file {
        return Err(CommandError::new(
            ErrorKind::Usage,
            format!("cannot read {}: the file is on your machine, not on the server", file.display()),
        )
        .hint("send the key itself, quoted a second time for the server: --key \"'$(cat FILE)'\"")
        .hint("let the local program read the file instead: `larder -r REMOTE ... --key-file FILE`"));
    }
    let Some(text) = key else { return Ok(None) };
    let key = keys::parse_line(&text).map_err(|error| {
        CommandError::new(ErrorKind::Usage, error.to_string())
            .hint("give the public key as one line, such as `ssh-ed25519 AAAA... name`")
    })?;
    Ok(Some(key))
}

/// Remove a key, refuse logins with this key, and close connections that it opened
#[derive(Debug, clap::Args)]
pub struct KeyRemoveArgs {
    /// Fingerprint, SHA256:..., as `larder user list` shows it
    fingerprint: String,
}

impl Command for KeyRemoveArgs {
    type Request = KeyRemove;

    fn request(self) -> Result<KeyRemove, CommandError> {
        Ok(KeyRemove { fingerprint: self.fingerprint })
    }

    fn show(view: &KeyRemoved) -> Shown {
        Shown::Done(format!("{} can no longer log in with {}", view.name, view.fingerprint))
    }
}

/// Show this server's own keys: the SSH host key, the signing key, the pull key
#[derive(Debug, clap::Args)]
pub struct KeyShowArgs {}

impl Command for KeyShowArgs {
    type Request = KeyShow;

    fn request(self) -> Result<KeyShow, CommandError> {
        Ok(KeyShow)
    }

    fn show(keys: &ServerKeys) -> Shown {
        let mut text = format!("host key     {}\n             {}\nsigning key  {}\n", keys.host, keys.fingerprint, keys.signing);
        if let Some(pull) = &keys.pull {
            text.push_str(&format!("pull key     {pull}\n"));
        }
        Shown::Page(text)
    }
}

/// Accept deliverables that a key has signed; without a key, list the trusted keys
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On the server that cooks, `larder key show` prints the key.\n\nExample: larder key trust shop ed25519:... --name staging"
)]
pub struct KeyTrustArgs {
    /// Project that accepts the deliverables
    project: ProjectName,
    /// Signing key, ed25519:..., as `larder key show` prints it
    key: Option<PublicKey>,
    /// Name for the key [default: staging]
    #[arg(long)]
    name: Option<RemoteName>,
}

impl Command for KeyTrustArgs {
    type Request = KeyTrust;

    fn request(self) -> Result<KeyTrust, CommandError> {
        Ok(KeyTrust { project: self.project, key: self.key, name: self.name })
    }

    fn show(view: &KeyTrustView) -> Shown {
        match view {
            KeyTrustView::List(rows) => {
                let line = |row: &TrustRow| vec![row.on.clone(), row.name.clone(), row.key.to_string()];
                Shown::Page(text::table(&["ACCEPTS FOR", "NAME", "KEY"], rows.iter().map(line).collect()))
            }
            KeyTrustView::Trusted(row) => Shown::Done(format!("{} accepts deliverables that {} has signed", row.on, row.key)),
        }
    }
}

/// Revoke a trusted signing key; releases that were accepted stay
#[derive(Debug, clap::Args)]
pub struct KeyUntrustArgs {
    /// Project that trusts the key
    project: ProjectName,
    /// Signing key, ed25519:...
    key: PublicKey,
}

impl Command for KeyUntrustArgs {
    type Request = KeyUntrust;

    fn request(self) -> Result<KeyUntrust, CommandError> {
        Ok(KeyUntrust { project: self.project, key: self.key })
    }

    fn show(view: &KeyUntrusted) -> Shown {
        Shown::Done(format!("{} accepts no further deliverables that {} has signed", view.project, view.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touch_of_each_security_key_is_shown_as_not_checked() {
        let row = |kind: &str, limits: KeyLimits| {
            let row = LoginKeyRow {
                user: "ann".parse().unwrap(),
                kind: kind.to_owned(),
                fingerprint: String::from("SHA256:x"),
                limits,
                certificate: None,
            };
            described_key(&row)
        };
        let from = || KeyLimits { from: vec!["192.0.2.7".parse().unwrap()], ..KeyLimits::default() };
        for kind in ["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"] {
            assert_eq!(row(kind, KeyLimits::default()), "touch not checked", "a key of an earlier version has no mark");
            assert_eq!(row(kind, KeyLimits { no_touch_required: true, ..from() }), "from 192.0.2.7; touch not checked");
        }
        assert_eq!(row("ssh-ed25519", from()), "from 192.0.2.7");
    }
}
