//! The command line: one grammar, locally through the control socket and over ssh.
//!
//! `noun verb`, and `noun:verb` for fingers that know Heroku. The words are read by the server in both cases ([`session`]); the
//! local program only looks at them first, so that help and typing errors need no server.

pub mod client;
pub mod quickstart;
mod render;
mod render_drift;
mod render_releases;
mod screen;
pub mod serve;
pub mod session;
pub mod socket;
mod verbs;

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use verbs::Verb;

/// Push-to-deploy: staging cooks, the larder keeps, production serves.
///
/// larder is a git server that builds what is pushed, keeps the result as a release, runs it, and says no when the new code does
/// not serve. Try `larder quickstart`. The same words work on the server, over ssh (`ssh -p PORT larder@HOST status`) and by git remote
/// (`larder -r prod status`).
#[derive(Debug, Parser)]
#[command(name = "larder", version, propagate_version = true, disable_help_subcommand = false, infer_subcommands = false)]
pub struct Cli {
    /// The server's directory.
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        env = "LARDER_ROOT",
        value_name = "DIR",
        help = "The server's directory [default: /srv/larder]"
    )]
    pub root: Option<PathBuf>,
    /// Ask the server behind this git remote, over ssh
    #[arg(long, short = 'r', global = true, help_heading = "Everywhere", value_name = "REMOTE")]
    pub remote: Option<String>,
    /// Print JSON instead of text
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Everything that can be typed.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// For the server to answer.
    #[command(flatten)]
    Verb(Verb),
    /// For the local machine.
    #[command(flatten)]
    Local(Local),
}

/// Commands that run here and not in the server.
#[derive(Debug, Subcommand)]
pub enum Local {
    /// Serve an example project in a directory of its own, pushed through real ssh and git
    Quickstart(quickstart::Args),
    /// Run the server
    Serve(serve::Args),
    /// Print completions for a shell: `larder completions bash > /etc/bash_completion.d/larder`
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Manual,
    /// A hook of git; only receive-pack calls it
    #[command(hide = true)]
    Hook {
        /// Which hook
        name: String,
    },
    /// A worker; only the keeper starts it
    #[command(hide = true)]
    Worker {
        /// Which kind
        role: String,
    },
    /// The server role; only the keeper starts it
    #[command(hide = true)]
    Server(serve::Args),
    /// The file server of the static buildpack
    #[command(hide = true, trailing_var_arg = true, disable_help_flag = true)]
    StaticServer {
        /// Its own options
        #[arg(allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// Reads words as a person typed them, without the program's name.
pub fn parse(words: &[String]) -> Result<Cli, clap::Error> {
    // The file server is a project's process with options of its own; its `--root` is not the server's directory.
    if let Some((first, rest)) = words.split_first()
        && first == "static-server"
    {
        let args = rest.iter().map(Into::into).collect();
        return Ok(Cli { root: None, remote: None, json: false, command: Command::Local(Local::StaticServer { args }) });
    }
    Cli::try_parse_from(std::iter::once(String::from("larder")).chain(colons(words)))
}

/// `project:create shop` is `project create shop`.
fn colons(words: &[String]) -> Vec<String> {
    let nouns: Vec<_> = Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let mut split = Vec::with_capacity(words.len());
    let mut verb_seen = false;
    for word in words {
        match word.split_once(':') {
            Some((noun, verb)) if !verb_seen && nouns.iter().any(|known| known == noun) => {
                split.extend([noun.to_owned(), verb.to_owned()]);
                verb_seen = true;
            }
            _ => {
                verb_seen |= nouns.contains(word);
                split.push(word.clone());
            }
        }
    }
    split
}

/// Completions for `shell`.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    // The generator panics where it cannot write; a reader that has seen enough is no reason to.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "larder", &mut text);
    out.write_all(&text)
}

/// The manual page.
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
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn heroku_fingers_are_understood() {
        for line in
            ["project:create shop --mode cooking", "project create shop --mode cooking", "--json project:list", "logs -a shop"]
        {
            assert!(parse(&words(line)).is_ok(), "{line}");
        }
        assert_eq!(colons(&words("run shop rake db:migrate")), words("run shop rake db:migrate"));
    }

    #[test]
    fn the_file_server_gets_all_of_its_options() {
        let cli = parse(&words("static-server --root dist --json --port 80")).unwrap();
        assert!(cli.root.is_none() && !cli.json);
        let Command::Local(Local::StaticServer { args }) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(args, ["--root", "dist", "--json", "--port", "80"]);
    }

    #[test]
    fn a_typing_error_names_what_was_meant() {
        let error = parse(&words("projekt list")).unwrap_err().to_string();
        assert!(error.contains("project"), "{error}");
    }
}
