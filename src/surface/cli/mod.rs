//! The command line. The same words work on the server, through the control socket, and over ssh.
//!
//! `noun verb` and `noun:verb` mean the same. The server parses the words in both cases (`session`); the local program (`client`)
//! parses them first, so that help and usage errors need no server.

pub mod client;
mod command;
mod commands;
mod grammar;
pub mod quickstart;
pub mod session;
pub mod socket;
mod text;

pub use self::{
    grammar::{Cli, Command, Local, ServeArgs, completions, manual, parse},
    text::error as error_text,
};
