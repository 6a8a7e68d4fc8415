//! `Procfile`: one `type: command` per line.

use indexmap::IndexMap;

use super::{
    error::{ConfigError, shown},
    value::CommandLine,
    yaml::{self, Limits},
};
use crate::model::ProcessType;

const FILE: &str = "Procfile";
const EXPECTED: &str = "a line such as `web: python app.py`";
/// How many processes a project may have.
const MOST_PROCESSES: usize = 100;

/// The processes of a Procfile, in its order; `release` among them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Procfile {
    /// The command of each process.
    pub processes: IndexMap<ProcessType, CommandLine>,
}

impl Procfile {
    /// Reads a Procfile; all its problems are reported together.
    pub fn parse(bytes: &[u8]) -> Result<Procfile, Vec<ConfigError>> {
        let text = yaml::utf8(FILE, bytes, Limits::RECIPE).map_err(|error| vec![error])?;
        let mut lines: IndexMap<ProcessType, (u32, CommandLine)> = IndexMap::new();
        let mut problems = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Ok((process, command)) => {
                    if let Some((first, _)) = lines.get(&process) {
                        let problem = format!("the process {:?} is there twice", process.as_str());
                        let hint = format!("it is first on line {first}; remove or rename one");
                        problems.push(ConfigError::new(FILE, problem).at_line(number).hint(hint));
                    } else {
                        lines.insert(process, (number, command));
                    }
                }
                Err(problem) => problems.push(problem.at_line(number)),
            }
            if problems.len() >= 20 {
                break;
            }
            if lines.len() > MOST_PROCESSES {
                let problem = format!("there are more than {MOST_PROCESSES} processes");
                problems.push(ConfigError::new(FILE, problem).at_line(number).hint("start some of them from one command"));
                break;
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Procfile { processes: lines.into_iter().map(|(process, (_, command))| (process, command)).collect() })
    }
}

fn parse_line(line: &str) -> Result<(ProcessType, CommandLine), ConfigError> {
    let Some((name, command)) = line.split_once(':') else {
        return Err(ConfigError::new(FILE, format!("{} has no colon", shown(line))).expected(EXPECTED));
    };
    let process = name.trim_end().parse::<ProcessType>().map_err(|_| {
        ConfigError::new(FILE, format!("{} is not a process type", shown(name)))
            .expected(EXPECTED)
            .hint("a type has 1 to 63 letters, digits, dashes and underscores, and starts with a letter")
    })?;
    let command = command
        .trim()
        .parse::<CommandLine>()
        .map_err(|why| ConfigError::new(FILE, format!("{process}: {why}")).expected(EXPECTED))?;
    Ok((process, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_blank_lines_and_windows_line_ends_are_fine_and_order_is_kept() {
        let procfile =
            Procfile::parse(b"\xef\xbb\xbf# ours\r\nweb: bin/web -p $PORT\r\n\r\nworker : a:b # c\r\nrelease: x").unwrap();
        let found: Vec<_> = procfile.processes.iter().map(|(name, command)| (name.as_str(), command.as_str())).collect();
        assert_eq!(found, [("web", "bin/web -p $PORT"), ("worker", "a:b # c"), ("release", "x")]);
        assert_eq!(Procfile::parse(b"").unwrap(), Procfile::default());
    }

    #[test]
    fn every_bad_line_is_reported() {
        let problems = Procfile::parse(b"web: a\nweb: b\njust a command\n2x: c\nworker:\nx: a\0b\n").unwrap_err();
        let lines: Vec<_> = problems.iter().map(|problem| problem.line.unwrap()).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6]);
    }
}
