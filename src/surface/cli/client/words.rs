//! The words of a command before they are sent to a server: files become values, options of this program are removed, and the environment of
//! the client is added.

use std::{fs, io};

use clap::{Arg, CommandFactory as _, error::ErrorKind as ClapError};

use super::super::grammar::{Cli, normalised, takes_value};
use crate::{
    control::{CommandError, ErrorKind},
    model::Target,
    surface::ssh::{KeyError, keys},
};

/// Replaces `--key-file FILE` by `--key KEY`. The local program reads the files with the caller's own rights, because the server must not
/// read files that a caller names.
pub(super) fn inline_key_files(words: Vec<String>) -> Result<Vec<String>, CommandError> {
    let (ours, theirs) = words.split_at(own_words(&words));
    let mut inlined = Vec::with_capacity(words.len());
    let mut ours = ours.iter();
    while let Some(word) = ours.next() {
        let file = match word.strip_prefix("--key-file") {
            Some("") => ours.next().map(String::as_str),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        match file {
            None => inlined.push(word.clone()),
            Some(file) => {
                let text = fs::read_to_string(file).map_err(|error| {
                    let refused = CommandError::new(ErrorKind::NotFound, format!("cannot read the key file {file}: {error}"));
                    match error.kind() {
                        io::ErrorKind::NotFound => {
                            refused.hint("make a key with `ssh-keygen -t ed25519`, and name its file that ends in .pub")
                        }
                        _ => refused,
                    }
                })?;
                // A private key is refused here, because it must not leave the machine.
                if let Err(error @ KeyError::Private) = keys::parse_line(&text) {
                    return Err(CommandError::new(ErrorKind::Usage, format!("cannot use the key file {file}: {error}")));
                }
                inlined.extend([String::from("--key"), text.trim().to_owned()]);
            }
        }
    }
    inlined.extend_from_slice(theirs);
    Ok(inlined)
}

/// Returns the number of words that belong to larder. The words after `--` or after `run PROJECT` are a command of the project. The options
/// of that command are not options of larder.
fn own_words(words: &[String]) -> usize {
    let (mut verb, mut run, mut named) = (false, false, false);
    let mut at = 0;
    while let Some(word) = words.get(at) {
        match word.as_str() {
            "--" => return at,
            "-a" | "--app" => {
                named = true;
                at += 1;
            }
            "-r" | "--remote" | "--root" | "--restore-point" => at += 1,
            option if option.starts_with('-') => named |= option.starts_with("-a") || option.starts_with("--app="),
            "run" if !verb => (verb, run) = (true, true),
            _ if run => return if named { at } else { at.saturating_add(1) },
            _ => verb = true,
        }
        at += 1;
    }
    words.len()
}

/// Removes `--output FILE` from the words.
pub(super) fn without_output(words: Vec<String>) -> Vec<String> {
    let mut kept = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "-o" || word == "--output" {
            words.next();
        } else if !(word.starts_with("--output=") || word.starts_with("-o")) {
            kept.push(word);
        }
    }
    kept
}

/// Removes `--remote REMOTE` from the words.
pub(super) fn without_remote(words: &[String]) -> Vec<String> {
    let (ours, theirs) = words.split_at(own_words(words));
    let mut kept = Vec::new();
    let mut ours = ours.iter();
    while let Some(word) = ours.next() {
        if word == "-r" || word == "--remote" {
            ours.next();
        } else if !word.starts_with("--remote=") && !word.starts_with("-r") {
            kept.push(word.clone());
        }
    }
    kept.extend_from_slice(theirs);
    kept
}

/// Adds the environment of the client to a command that concerns an environment and names none. Other words stay unchanged.
pub(super) fn with_environment(words: Vec<String>, environment: &Target) -> Vec<String> {
    let Ok(mut words) = normalised(&words) else { return words };
    let mut cli = Cli::command();
    cli.build();
    let (leaf, at) = leaf(&cli, &words);
    let first = leaf.get_positionals().next();
    let has_app = leaf.get_arguments().any(|argument| argument.get_id() == "app");
    let parsed = Cli::command().try_get_matches_from(std::iter::once("larder").chain(words.iter().map(String::as_str)));
    match parsed {
        Ok(_) if has_app && !is_named(leaf, words.get(at..).unwrap_or_default()) => {
            words.splice(at..at, [String::from("--app"), environment.to_string()]);
        }
        Err(error) if error.kind() == ClapError::MissingRequiredArgument && first.is_some_and(is_environment) => {
            words.insert(at, environment.to_string());
        }
        _ => {}
    }
    words
}

/// Returns the command that the words name, and the index of the first word after its name.
fn leaf<'c>(cli: &'c clap::Command, words: &[String]) -> (&'c clap::Command, usize) {
    let (mut command, mut at) = (cli, 0);
    let mut index = 0;
    while let Some(word) = words.get(index) {
        if takes_value(command, word) {
            index += 1;
        } else if !word.starts_with('-') {
            let Some(next) = command.find_subcommand(word) else { break };
            (command, at) = (next, index.saturating_add(1));
        }
        index += 1;
    }
    (command, at)
}

fn is_environment(argument: &Arg) -> bool {
    argument.is_required_set()
        && argument.get_value_names().is_some_and(|names| names.first().is_some_and(|name| name == "PROJECT"))
}

/// Returns true if the words after the name of a command name an environment. The words after `--` are a command of the project.
fn is_named(command: &clap::Command, words: &[String]) -> bool {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" => return false,
            "-a" | "--app" => return true,
            word if word.starts_with("--app=") || (word.starts_with("-a") && !word.starts_with("--")) => return true,
            word if takes_value(command, word) => drop(words.next()),
            word if word.starts_with('-') => {}
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_of_the_client_is_added_where_a_command_names_none() {
        let added = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            with_environment(words, &"shop/staging".parse().unwrap()).join(" ")
        };
        for (line, expected) in [
            ("logs", "logs --app shop/staging"),
            ("logs -f -n 5", "logs --app shop/staging -f -n 5"),
            ("--json releases", "--json releases --app shop/staging"),
            ("ps --scale web=2", "ps --app shop/staging --scale web=2"),
            ("run -- ls -a /", "run --app shop/staging -- ls -a /"),
            ("run --restore-point latest -- ls", "run --app shop/staging --restore-point latest -- ls"),
            ("db shell", "db shell shop/staging"),
            ("db:list", "db list --app shop/staging"),
            ("logs shop", "logs shop"),
            ("logs -a shop", "logs -a shop"),
            ("logs --app=shop", "logs --app=shop"),
            ("run shop -- ls", "run shop -- ls"),
            ("run -a shop ls", "run -a shop ls"),
            ("status", "status"),
            ("user list", "user list"),
            ("project info", "project info"),
            ("user grant alice", "user grant alice"),
            ("logs --nonsense", "logs --nonsense"),
        ] {
            assert_eq!(added(line), expected, "{line}");
        }
    }

    #[test]
    fn key_file_is_inlined() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pub");
        fs::write(&file, "ssh-ed25519 AAAA me\n").unwrap();
        let words = vec![String::from("user"), format!("--key-file={}", file.display())];
        assert_eq!(inline_key_files(words).unwrap(), ["user", "--key", "ssh-ed25519 AAAA me"]);
        let missing = inline_key_files(vec![String::from("--key-file"), String::from("/nonexistent")]).unwrap_err();
        assert!(missing.hints.iter().any(|hint| hint.contains("ssh-keygen")), "{missing:?}");
    }

    #[test]
    fn private_key_file_is_refused_locally() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
        let error = inline_key_files(vec![String::from("--key-file"), file.display().to_string()]).unwrap_err();
        assert!(error.to_string().contains("PRIVATE") && !error.to_string().contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn options_of_a_project_command_stay_unchanged() {
        for line in
            ["run shop -- tool --key-file x -r y", "run shop tool --key-file x -r y", "run -a shop tool --key-file x -r y"]
        {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(inline_key_files(words.clone()).unwrap(), words);
            assert_eq!(without_remote(&words), words);
            let remote: Vec<_> = ["-r", "prod"].map(str::to_owned).into_iter().chain(words.clone()).collect();
            assert_eq!(without_remote(&remote), words);
        }
        let words: Vec<_> = "ps shop -r prod --scale web=2".split(' ').map(str::to_owned).collect();
        assert_eq!(without_remote(&words), ["ps", "shop", "--scale", "web=2"]);
    }
}
