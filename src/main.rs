//! The command line: parses the arguments, runs the command, and returns its exit code.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use larder::{
    backup,
    control::{CommandError, ErrorKind},
    dev,
    git::hook,
    host::root::Root,
    pipeline::chain,
    runtime::static_server,
    serve,
    server::{self, ServerError},
    surface::cli::{self, Cli, CliCommand, Local, client, quickstart},
    workers,
};

/// The root directory if neither `--root` nor `LARDER_ROOT` names a directory.
const DEFAULT_ROOT: &str = "/srv/larder";

fn main() -> ExitCode {
    if let Some(code) = inner(std::env::args_os().skip(1).collect()) {
        return code;
    }
    log_to_stderr();
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let error = match cli::parse(&words) {
        Ok(cli) => return run(cli, words).unwrap_or_else(failed),
        Err(error) => error,
    };
    // From a laptop, the project of a command may be missing, because the name of the server stands for it.
    if let Some(cli) = client::parse_without_project(&words, &error)
        && let Ok(code) = run(cli, words)
    {
        return code;
    }
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Prints an error and returns its exit code.
fn failed(error: CommandError) -> ExitCode {
    let _ = io::stderr().write_all(cli::painted_error(&error).as_bytes());
    ExitCode::from(error.kind.exit_code())
}

/// Runs the internal commands: workers, git's hooks, the check of the server file, the static server, and the client of `larder db shell`. Each
/// push starts several workers and hooks. Internal commands bypass the command line parser and the log filter, because the construction of the
/// parser and the filter takes longer than some of these commands. Returns `None` if the words are not an internal command.
fn inner(words: Vec<OsString>) -> Option<ExitCode> {
    let mut words = words.into_iter();
    let first = words.next()?;
    match (first.to_str()?, words.len()) {
        ("worker", 1) => {
            log_warnings();
            Some(workers::main(words.next()?.to_str()?))
        }
        // git passes the path of the hook's file, whose first line starts this program.
        ("hook", 1) => Some(run_hook(Path::new(&words.next()?).file_name()?.to_str()?)),
        (serve::CHECK, 1) => {
            log_warnings();
            let root = PathBuf::from(words.next()?);
            Some(absolute(&root).and_then(|root| serve::check(&root)).unwrap_or_else(failed))
        }
        (backup::OFFSITE_WORKER, 0) => Some(ExitCode::from(backup::offsite_main())),
        ("database-shell", 0) => Some(ExitCode::from(backup::database_shell())),
        (dev::BUILD_COMMAND, 0) => {
            log_warnings();
            Some(dev::build_main())
        }
        (dev::RUN_COMMAND, 0) => Some(dev::run_main()),
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
        CliCommand::Verb(_) => Ok(ExitCode::from(client::run(&cli, words, &root)?)),
        CliCommand::Local(Local::Serve(args)) => serve::main(root, args),
        CliCommand::Local(Local::Quickstart(args)) => quickstart::main(cli.root.as_deref(), &args),
        CliCommand::Local(Local::Dev(args)) => dev::main(&args),
        CliCommand::Local(Local::Init(args)) => client::init(&args, cli.json, cli.quiet).map(ExitCode::from),
        CliCommand::Local(Local::Push(args)) => client::push(&args, cli.remote.as_deref(), cli.quiet).map(ExitCode::from),
        CliCommand::Local(Local::Open(args)) => {
            client::open(&args, cli.remote.as_deref(), cli.json, cli.quiet).map(ExitCode::from)
        }
        CliCommand::Local(Local::Server(_)) => server::main(root).map_err(server_failed),
        CliCommand::Local(Local::Completions { shell }) => Ok(printed(cli::completions(shell, &mut io::stdout()))),
        CliCommand::Local(Local::Man { directory }) => {
            cli::manual_pages(&directory).map(|()| ExitCode::SUCCESS).map_err(|error| {
                let why = format!("cannot write the manual pages into {}: {error}", directory.display());
                CommandError::new(ErrorKind::Refused, why)
            })
        }
        CliCommand::Local(Local::Manual) => Ok(printed(cli::manual(&mut io::stdout()))),
    }
}

/// Returns the exit code of a command that prints. A closed pipe counts as success.
fn printed(result: io::Result<()>) -> ExitCode {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// Converts a server error into a command error. The exit code of the command error tells the keeper if the configuration is invalid.
fn server_failed(error: ServerError) -> CommandError {
    let kind = if matches!(error, ServerError::Config(_)) { ErrorKind::Configuration } else { ErrorKind::Internal };
    let command = CommandError::new(kind, chain(&error));
    match error.hint() {
        Some(hint) => command.hint(hint),
        None => command,
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> CommandError {
    CommandError::new(ErrorKind::Internal, chain(error))
}

/// Returns the root with an absolute path, because processes with different working directories use this path.
fn absolute(path: &Path) -> Result<Root, CommandError> {
    let absolute: PathBuf = std::path::absolute(path).map_err(|error| internal(&error))?;
    Ok(Root::new(absolute))
}

/// Enables logging to stderr. The variable `LARDER_LOG` sets the level.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LARDER_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,larder=info,russh=error"));
    // With internal errors, a line that cannot be written to a file on a full disk would be a panic of the thread that logs.
    let log = tracing_subscriber::fmt().with_writer(io::stderr).log_internal_errors(false);
    // A file and systemd's journal get plain lines.
    let has_colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    log.with_ansi(has_colours).with_env_filter(filter).with_target(false).init();
}

/// Enables minimal logging for short-lived processes: only warnings and errors.
fn log_warnings() {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .log_internal_errors(false)
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .with_target(false)
        .init();
}
