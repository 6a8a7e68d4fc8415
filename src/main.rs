//! The program: parses the command line, runs the command and maps its result to an exit code.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use larder::{
    control::{CommandError, Kind},
    git::hook,
    host::root::Root,
    pipeline::chain,
    runtime::static_server,
    server,
    surface::cli::{self, Cli, Command, Local, client, quickstart},
    workers,
};

/// The root of a server without `--root` and `LARDER_ROOT`.
const DEFAULT_ROOT: &str = "/srv/larder";

fn main() -> ExitCode {
    if let Some(code) = inner(std::env::args_os().skip(1).collect()) {
        return code;
    }
    log_to_stderr();
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let cli = match cli::parse(&words) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    run(cli, words).unwrap_or_else(|error| {
        let _ = io::stderr().write_all(cli::error_text(&error).as_bytes());
        ExitCode::from(error.kind.exit_code())
    })
}

/// Runs a program that the keeper, git or the static buildpack starts, several times in each push. They are distinguished by plain
/// words, because building the grammar of the command line and its log filter takes longer than the work of some of them.
fn inner(words: Vec<OsString>) -> Option<ExitCode> {
    let mut words = words.into_iter();
    let first = words.next()?;
    match (first.to_str()?, words.len()) {
        ("worker", 1) => {
            log_warnings();
            Some(workers::main(words.next()?.to_str()?))
        }
        // The argument is the path of the hook's file, whose first line starts this program.
        ("hook", 1) => Some(run_hook(Path::new(&words.next()?).file_name()?.to_str()?)),
        ("static-server", _) => {
            log_warnings();
            Some(static_server::main(words))
        }
        _ => None,
    }
}

fn run_hook(name: &str) -> ExitCode {
    let (mut stdin, mut stdout, mut stderr) = (io::stdin(), io::stdout(), io::stderr());
    ExitCode::from(hook::main(name, &mut stdin, &mut stdout, &mut stderr, &|name| std::env::var_os(name)))
}

fn run(cli: Cli, words: Vec<String>) -> Result<ExitCode, CommandError> {
    let root = absolute(cli.root.as_deref().unwrap_or(Path::new(DEFAULT_ROOT)))?;
    match cli.command {
        Command::Verb(_) => Ok(ExitCode::from(client::run(&cli, words, &root)?)),
        Command::Local(Local::Serve(args)) => larder::serve::main(root, args),
        Command::Local(Local::Quickstart(args)) => quickstart::main(cli.root.as_deref(), &args),
        Command::Local(Local::Server(_)) => server::main(root).map_err(|error| internal(&error)),
        Command::Local(Local::Completions { shell }) => Ok(printed(cli::completions(shell, &mut io::stdout()))),
        Command::Local(Local::Manual) => Ok(printed(cli::manual(&mut io::stdout()))),
    }
}

/// Returns the exit code after printing. A closed pipe counts as success.
fn printed(result: io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> CommandError {
    CommandError::new(Kind::Internal, chain(error))
}

/// Returns the root as an absolute path, because processes with other working directories use it.
fn absolute(path: &Path) -> Result<Root, CommandError> {
    let absolute: PathBuf = std::path::absolute(path).map_err(|error| internal(&error))?;
    Ok(Root::new(absolute))
}

/// Logs to standard error. `LARDER_LOG=debug` adds details.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LARDER_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,larder=info,russh=error"));
    tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter).with_target(false).init();
}

/// Minimal logging for short-lived workers.
fn log_warnings() {
    tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(tracing::Level::WARN).with_target(false).init();
}
