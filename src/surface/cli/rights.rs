//! The rights that commands need, for the page docs/access.md and for tests. A command states its rights in its request.

use clap::Subcommand as _;
use futures_util::FutureExt as _;

use super::{
    command::Asking,
    commands::Verb,
    grammar::{CliCommand, parse},
};
use crate::control::Needs;

/// Returns all commands that the server carries out, such as `whoami` and `backup take`, in the order of their registration. Hidden commands are
/// included.
pub fn commands() -> Vec<String> {
    fn add(command: &clap::Command, before: &str, all: &mut Vec<String>) {
        let name = format!("{before}{}", command.get_name());
        if !command.has_subcommands() {
            return all.push(name);
        }
        let before = format!("{name} ");
        command.get_subcommands().filter(|verb| verb.get_name() != "help").for_each(|verb| add(verb, &before, all));
    }
    let mut all = Vec::new();
    Verb::augment_subcommands(clap::Command::new("larder")).get_subcommands().for_each(|command| add(command, "", &mut all));
    all
}

/// Returns the rights that the command line `words` needs, or the error of a command line that is invalid or is not for the server.
pub fn needs(words: &[String]) -> Result<Needs, String> {
    let verb = match parse(words).map_err(|error| error.to_string())?.command {
        CliCommand::Verb(verb) => verb,
        CliCommand::Local(_) => return Err(String::from("the command runs on the caller's own machine")),
    };
    // Without a server, a command waits for nothing.
    let asked = verb.ask(Asking::Needs).now_or_never().ok_or("the command waits")?;
    Ok(asked.map_err(|error| error.to_string())?.needs)
}
