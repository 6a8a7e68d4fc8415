//! The grammar of the command line: global options, the commands that run locally, and the parser.

use std::{net::SocketAddr, path::PathBuf};

use clap::{CommandFactory as _, Parser, Subcommand, builder::TypedValueParser as _, error::ErrorKind};

use super::{
    client::arguments::{DevArgs, InitArgs, OpenArgs, PushArgs},
    command::TerminalUse,
    commands::Verb,
    groups, habits, quickstart,
};
use crate::model::sanitise_line;

/// The smallest similarity of two words, from 0 to 1, at which one of them may be a misspelling of the other.
const SIMILAR: f64 = 0.8;

/// Push-to-deploy: staging cooks, the larder keeps, production serves
///
/// larder is a git server that builds each push, keeps the result as a release, runs the release, and rejects the push if the release is
/// not healthy. Try `larder quickstart`. The same commands work on the server, over ssh (`ssh -p PORT larder@HOST status`) and from a
/// laptop (`larder -r prod status`).
#[derive(Debug, Parser)]
#[command(name = "larder", version, propagate_version = true, disable_help_subcommand = false, infer_subcommands = false)]
pub struct Cli {
    /// Directory of the server
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "LARDER_ROOT",
        value_name = "DIR",
        help = "Directory of the server [default: /srv/larder]"
    )]
    pub root: Option<PathBuf>,
    /// Run the command over ssh, on the server of this environment, git remote or address
    #[arg(long, short = 'r', global = true, help_heading = "Everywhere", value_name = "NAME")]
    pub remote: Option<String>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Print answers and errors only: no progress, no notes, and of a deployment only the lines of its failure
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
    /// Command to carry out
    #[command(subcommand)]
    pub command: CliCommand,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// A command that the server carries out.
    #[command(flatten)]
    Verb(Verb),
    /// A command that this process carries out.
    #[command(flatten)]
    Local(Local),
}

impl CliCommand {
    /// Returns the file on the caller's machine to which the command writes, instead of to the standard output.
    pub(super) fn output(&self) -> Option<&std::path::Path> {
        match self {
            CliCommand::Verb(verb) => verb.output(),
            CliCommand::Local(_) => None,
        }
    }

    /// Returns the time limit of each server, if the command is `status`.
    pub(super) fn status_limit(&self) -> Option<std::time::Duration> {
        match self {
            CliCommand::Verb(Verb::Status(status)) => Some(std::time::Duration::from_secs(status.timeout.into())),
            _ => None,
        }
    }

    /// Returns true if the command opens an editor on this machine.
    pub(super) fn opens_editor(&self) -> bool {
        matches!(self, CliCommand::Verb(Verb::Secret(noun)) if noun.opens_editor())
    }

    /// Returns the use that the command makes of a terminal.
    pub(super) fn terminal(&self) -> TerminalUse {
        match self {
            CliCommand::Verb(verb) if verb.is_interactive() => TerminalUse::Session,
            CliCommand::Verb(verb) if verb.may_ask() => TerminalUse::Question,
            _ => TerminalUse::None,
        }
    }
}

/// Commands that this process carries out.
#[derive(Debug, Subcommand)]
pub enum Local {
    /// Start a server in a separate directory, and push an example to it over ssh
    Quickstart(quickstart::Args),
    Dev(DevArgs),
    Init(InitArgs),
    Push(PushArgs),
    Open(OpenArgs),
    /// Run the server
    Serve(ServeArgs),
    /// Print completions for a shell: `larder completions bash > /etc/bash_completion.d/larder`
    Completions {
        /// Name of the shell
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command: `larder man /usr/share/man/man1`
    Man {
        /// Directory of the pages, which is created if it does not exist
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print the manual page: `larder manual > /usr/share/man/man1/larder.1`
    #[command(hide = true)]
    Manual,
    /// Run the server role; only the keeper runs this command
    #[command(hide = true)]
    Server(ServeArgs),
}

/// The addresses to listen on. An absent address is taken from the server file.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(
    after_help = "Other settings are read from DIR/larder.yml, if the file exists.\nWhen the server is ready, it prints one line, `ready ssh=HOST:PORT http=HOST:PORT`.\nIf larder runs as root, every environment has its own users; otherwise everything runs as you, and projects are not isolated.\n\nExample: larder serve --root /srv/larder --ssh :2222 --http :80"
)]
pub struct ServeArgs {
    /// Address for ssh, where pushes arrive; port 0 picks a free port
    #[arg(long, value_name = "ADDR", value_parser = clap::builder::NonEmptyStringValueParser::new().try_map(address))]
    pub ssh: Option<SocketAddr>,
    /// Address for HTTP; port 0 picks a free port
    #[arg(long, value_name = "ADDR", value_parser = clap::builder::NonEmptyStringValueParser::new().try_map(address))]
    pub http: Option<SocketAddr>,
}

/// Parses `127.0.0.1:2222`, `[::1]:2222`, or `:2222` for all IPv4 addresses.
fn address(text: String) -> Result<SocketAddr, String> {
    let full = text.strip_prefix(':').map(|port| format!("0.0.0.0:{port}")).unwrap_or_else(|| text.clone());
    full.parse().map_err(|_| format!("{text:?} is not an address; expected IP:PORT, such as 127.0.0.1:2222 or 0.0.0.0:22"))
}

/// Parses a command line without the program's name.
pub fn parse(words: &[String]) -> Result<Cli, clap::Error> {
    let words: Vec<_> = std::iter::once(String::from("larder")).chain(normalised(words)?).collect();
    let parsed = Cli::try_parse_from(&words);
    match parsed {
        // The groups are rendered only if they are shown.
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand) => {
            Err(groups::with_groups(Cli::command()).try_get_matches_from(&words).err().unwrap_or(error))
        }
        parsed => parsed,
    }
}

/// Converts `project:create shop` into `project create shop`, and a command of Heroku or Dokku into the command of larder. Returns an error
/// with an instruction if larder has no such command.
pub(super) fn normalised(words: &[String]) -> Result<Vec<String>, clap::Error> {
    let cli = Cli::command();
    let verb = verb_index(&cli, words);
    let words = habits::translated(words.to_vec(), verb).map_err(|(given, instruction)| {
        clap::Error::raw(ErrorKind::InvalidSubcommand, format!("larder has no command {given}\nhint: {instruction}\n"))
    })?;
    let Some(word) = words.get(verb) else { return Ok(words) };
    if cli.find_subcommand(word).is_some() || word == "help" || word.starts_with('-') {
        return Ok(words);
    }
    let parts = word.split_once(':').map(|(noun, rest)| (noun.to_owned(), rest.to_owned()));
    match parts {
        Some((noun, rest)) if cli.find_subcommand(&noun).is_some_and(clap::Command::has_subcommands) => {
            let mut words = words;
            words.splice(verb..=verb, [noun, rest]);
            Ok(words)
        }
        _ => Err(unknown(&cli, word)),
    }
}

/// Returns the error of a word that is no command, with the most similar command of larder, Heroku or Dokku.
fn unknown(cli: &clap::Command, word: &str) -> clap::Error {
    let nouns = cli.get_subcommands().filter(|command| !command.is_hide_set());
    let verbs = nouns.flat_map(|noun| {
        let joined = noun.get_subcommands().map(|verb| format!("{}:{}", noun.get_name(), verb.get_name()));
        std::iter::once(noun.get_name().to_owned()).chain(joined)
    });
    let known = verbs.chain(habits::HABITS.iter().map(|(word, _)| (*word).to_owned()));
    let scored = known.map(|known| (strsim::jaro_winkler(&word.to_lowercase(), &known), known));
    let similar = scored.filter(|(score, _)| *score >= SIMILAR).max_by(|(a, _), (b, _)| a.total_cmp(b));
    let hint = match similar {
        Some((_, known)) => format!("did you mean `larder {known}`?"),
        None => String::from("list the commands with `larder help`"),
    };
    let word: String = sanitise_line(word).chars().take(60).collect();
    clap::Error::raw(ErrorKind::InvalidSubcommand, format!("larder has no command {word}\nhint: {hint}\n"))
}

/// Returns the index of the first word that is neither a global option nor its value.
fn verb_index(cli: &clap::Command, words: &[String]) -> usize {
    let mut index = 0_usize;
    while let Some(word) = words.get(index).filter(|word| word.starts_with('-')) {
        index = index.saturating_add(if takes_value(cli, word) { 2 } else { 1 });
    }
    index
}

/// Returns true if a word is an option of a command whose value is the next word.
pub(super) fn takes_value(command: &clap::Command, word: &str) -> bool {
    let is_it = |argument: &clap::Arg| {
        let is_long = word.strip_prefix("--").is_some_and(|name| argument.get_long() == Some(name));
        let is_short = word.len() == 2 && word.starts_with('-') && argument.get_short() == word.chars().nth(1);
        (is_long || is_short) && argument.get_action().takes_values()
    };
    command.get_arguments().any(is_it)
}

/// Writes completions for `shell`.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    // The completions are written to memory first, because the generator panics if it cannot write, for example to a closed pipe.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "larder", &mut text);
    out.write_all(&text)
}

/// Writes a manual page for each command into a directory.
pub fn manual_pages(directory: &std::path::Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
}

/// Writes the manual page.
pub fn manual(out: &mut dyn std::io::Write) -> std::io::Result<()> {
    clap_mangen::Man::new(Cli::command()).render(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_one_line_description() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.') && !about.contains('\n'), "{path}: {about:?}");
            command.get_subcommands().for_each(|command| check(command, &path));
        }
        check(&Cli::command(), "");
    }

    #[test]
    fn noun_and_verb_joined_by_a_colon_are_parsed() {
        for line in
            ["project:create shop --mode cooking", "project create shop --mode cooking", "--json project:list", "logs -a shop"]
        {
            assert!(parse(&words(line)).is_ok(), "{line}");
        }
        let unchanged = ["run shop rake db:migrate", "-r prod run shop rake db:migrate", "--root /x logs shop"];
        for line in unchanged {
            assert_eq!(normalised(&words(line)).unwrap(), words(line));
        }
    }

    #[test]
    fn commands_of_heroku_and_dokku_run_or_name_a_command_that_exists() {
        use habits::{HABITS, Habit};
        let known: Vec<_> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        let parses = |line: &str| {
            let words = shlex::split(line).unwrap();
            match parse(&words) {
                Ok(_) => true,
                // Other arguments are given by the user.
                Err(error) => matches!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument | ErrorKind::DisplayVersion | ErrorKind::DisplayHelp
                ),
            }
        };
        for (index, (given, habit)) in HABITS.iter().enumerate() {
            assert!(!known.iter().any(|known| known == given), "{given} is a command of larder");
            assert!(HABITS[..index].iter().all(|(other, _)| other != given), "{given} appears twice");
            match habit {
                Habit::Same(replacement) => {
                    assert!(parses(replacement), "{given}: {replacement}");
                    let line = format!("--json -r prod {given} shop");
                    let expected = format!("--json -r prod {replacement} shop");
                    assert_eq!(normalised(&words(&line)).unwrap().join(" "), expected);
                }
                Habit::Scale => {
                    let line = format!("{given} web=2 worker=1 -a shop");
                    assert_eq!(normalised(&words(&line)).unwrap().join(" "), "ps --scale web=2 --scale worker=1 -a shop");
                    assert!(parses(&line));
                }
                Habit::Instead(instruction) => {
                    let error = parse(&words(&format!("{given} shop"))).unwrap_err();
                    let shown = error.to_string();
                    assert_eq!(error.exit_code(), 2);
                    let expected = format!("error: larder has no command {given}\nhint: {instruction}\n");
                    assert_eq!(shown, expected);
                    let commands: Vec<_> =
                        instruction.split('`').skip(1).step_by(2).filter_map(|code| code.strip_prefix("larder ")).collect();
                    assert!(
                        !commands.is_empty() || instruction.contains("docs/") || instruction.contains("`git "),
                        "{given}: {instruction}"
                    );
                    assert!(commands.iter().all(|line| parses(line)), "{given}: {commands:?}");
                    let pages = instruction.split('(').filter_map(|part| part.split_once(')').map(|(page, _)| page));
                    for page in pages.filter(|page| page.starts_with("docs/")) {
                        assert!(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(page).exists(), "{given}: {page}");
                    }
                }
            }
        }
        // The words of a command of the project are not commands of larder.
        assert_eq!(normalised(&words("run shop -- tail -f x")).unwrap(), words("run shop -- tail -f x"));
    }

    #[test]
    fn misspelled_command_gets_a_suggestion() {
        for (line, suggested) in [
            ("projekt list", "project"),
            ("relases", "releases"),
            ("project:creat shop", "create"),
            ("projct:create shop", "project:create"),
            ("confg:set A=b", "config:set"),
            ("ps:scael web=2", "ps:scale"),
            ("buildpack:add x", "buildpacks:add"),
            ("Status", "status"),
            ("--json -r prod stauts", "status"),
        ] {
            let error = parse(&words(line)).unwrap_err();
            let shown = error.to_string();
            assert!(error.exit_code() == 2 && shown.contains(suggested), "{line}: {shown}");
        }
        let error = parse(&words("qqqq\u{1b}[2J")).unwrap_err().to_string();
        assert!(error.contains("larder has no command qqqq") && error.contains("`larder help`"), "{error}");
        assert!(!error.contains("\u{1b}[2J"), "{error:?}");
    }
}
