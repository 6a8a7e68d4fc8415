//! The client: finds the server that carries out a command, and sends the words of the command there.
//!
//! On the server itself, the words go through the control socket. From other machines, they go through the user's own `ssh`. The function to
//! read first is [`run`]; `target` finds the server, and `ssh` builds the command line of `ssh`.

pub(super) mod arguments;
mod ask;
mod edit;
mod init;
mod output;
mod overview;
mod pillar;
mod server;
mod session;
mod sources;
mod ssh;
mod target;
mod terminal;
mod words;

use std::os::fd::AsFd;

pub use self::init::{init, open, push};
use self::{
    output::OutputFile,
    server::Server,
    ssh::SshCall,
    words::{inline_key_files, with_environment, without_output, without_remote},
};
use super::grammar::{self, Cli};
use crate::{control::CommandError, host::root::Root};

/// Parses words in which only the project is missing, which the client adds before it sends the words. `error` is the error of the parser.
/// Returns `None` for other words.
pub fn parse_without_project(words: &[String], error: &clap::Error) -> Option<Cli> {
    if error.kind() != clap::error::ErrorKind::MissingRequiredArgument {
        return None;
    }
    let placeholder = "project".parse().ok()?;
    grammar::parse(&with_environment(words.to_vec(), &placeholder)).ok()
}

/// Sends `words` to the server that carries out the command. Returns the exit status.
pub fn run(cli: &Cli, words: Vec<String>, root: &Root) -> Result<u8, CommandError> {
    if cli.command.opens_editor() {
        return edit::run(&words, cli.json);
    }
    let words = inline_key_files(words)?;
    let output = cli.command.output();
    let file = output.map(OutputFile::create).transpose()?;
    let sent = if output.is_some() { without_output(words) } else { words };
    let code = match server::find(cli, root)? {
        Server::Several(code) => return Ok(code),
        Server::Local(connection) => {
            let descriptor = file.as_ref().map(|output| output.file.as_fd());
            server::ask(root, connection, sent, descriptor, cli.command.terminal())?
        }
        Server::Remote(target) => {
            target.announce(cli.quiet);
            let words = without_remote(&sent);
            let words = match target.environment() {
                Some(environment) => with_environment(words, &environment),
                None => words,
            };
            let call = SshCall { url: &target.url, words: &words, terminal: cli.command.terminal() };
            match &file {
                None => call.run()?,
                Some(output) => call.run_into(output.file.try_clone().map_err(|error| output.failed(&error))?, cli.quiet)?,
            }
        }
    };
    match file {
        Some(output) if code == 0 => output.keep()?,
        _ => {}
    }
    Ok(code)
}
