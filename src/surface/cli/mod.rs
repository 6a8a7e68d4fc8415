//! The command line. The same commands work on the server, through the control socket, and from other machines, over ssh.
//!
//! `noun verb` and `noun:verb` mean the same. The server parses the words of every command (`session`). The local program (`client`) also
//! parses the words before it calls the server, so that help and usage errors need no server.

pub mod client;
mod command;
mod commands;
mod confirm;
mod grammar;
mod groups;
mod habits;
mod interactive;
mod paint;
pub mod quickstart;
mod rights;
mod screen;
pub mod session;
pub mod socket;
mod text;

pub use self::{
    client::arguments::DevArgs,
    grammar::{Cli, CliCommand, Local, ServeArgs, completions, manual, manual_pages, parse},
    paint::{Colours, painted_error},
    rights::{commands as server_commands, needs as command_needs},
    text::error as error_text,
};
