//! The server that carries out a command: on this machine, or on another machine.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use super::{
    super::{
        command::TerminalUse,
        grammar::Cli,
        paint::Colours,
        socket::{self, CallError},
    },
    overview, session,
    sources::Sources,
    target::ClientTarget,
};
use crate::{
    control::{CommandError, ErrorKind},
    host::root::Root,
};

/// The server that carries out a command.
pub(super) enum Server {
    /// The server on this machine, with a connection to its control socket.
    Local(UnixStream),
    /// A server that `ssh` reaches.
    Remote(ClientTarget),
    /// All servers of the project, which were asked for their state, with the exit status.
    Several(u8),
}

/// Finds the server: the server that `--remote` names, or else the server of `--root`, or else the server in the default directory on this
/// machine, or else the only server that the repository or the user's file names.
pub(super) fn find(cli: &Cli, root: &Root) -> Result<Server, CommandError> {
    let directory = Path::new(".");
    if let Some(name) = &cli.remote {
        return Ok(Server::Remote(ClientTarget::named(name, &|| Sources::read(directory))?));
    }
    let error = match socket::connect(&root.control_socket()) {
        Ok(connection) => return Ok(Server::Local(connection)),
        Err(error) => error,
    };
    let is_absent = matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
    );
    if cli.root.is_none() && is_absent {
        let sources = Sources::read(directory)?;
        if let Some(limit) = cli.command.status_limit()
            && let Some(code) = overview::status(&sources, cli.json, cli.quiet, limit)?
        {
            return Ok(Server::Several(code));
        }
        if let Some(target) = ClientTarget::only(&sources)? {
            return Ok(Server::Remote(target));
        }
    }
    Err(unanswered(root, &CallError::Io(error)))
}

/// Sends the words and the descriptors of this process to the server on this machine; `file` takes the place of the standard output. Returns
/// the exit status.
pub(super) fn ask(
    root: &Root,
    connection: UnixStream,
    words: Vec<String>,
    file: Option<BorrowedFd<'_>>,
    terminal: TerminalUse,
) -> Result<u8, CommandError> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let colours = Colours::of_process();
    let colours = Colours { out: colours.out && file.is_none(), ..colours };
    let descriptors = [stdin.as_fd(), file.unwrap_or_else(|| stdout.as_fd()), stderr.as_fd()];
    let terminal = if terminal == TerminalUse::Session { session::terminal() } else { None };
    let code = socket::call(connection, words, colours, descriptors, terminal, session::show);
    code.map_err(|error| unanswered(root, &error))
}

fn unanswered(root: &Root, error: &CallError) -> CommandError {
    let CallError::Io(io_error) = error else { return CommandError::new(ErrorKind::Usage, error.to_string()) };
    match io_error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            CommandError::new(ErrorKind::NotFound, format!("no server runs in {}", root.path().display()))
                .hint(format!(
                    "start a server with `larder serve --root {}`, or name another directory with --root",
                    root.path().display()
                ))
                .hint("name a server on another machine with `larder -r ssh://larder@HOST:PORT/PROJECT ...`, with a git remote, or in ~/.config/larder/config.yml")
        }
        io::ErrorKind::PermissionDenied => CommandError::new(
            ErrorKind::Refused,
            format!("cannot use the control socket {}: permission denied", root.control_socket().display()),
        )
        .hint("use ssh with your own key: only root and the account that larder runs as may use the socket"),
        io::ErrorKind::UnexpectedEof => CommandError::new(ErrorKind::Internal, "the server stopped before it answered"),
        _ => CommandError::internal(io_error),
    }
}
