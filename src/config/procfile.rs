//! Parses the files with one entry per line: the `Procfile` (`type: command`) and `.buildpacks`.

use indexmap::IndexMap;

use super::{
    error::{ConfigError, shown},
    reader::MAX_PROBLEMS,
    value::{BuildpackRef, CommandLine},
    yaml::{self, FileLimits},
};
use crate::model::ProcessType;

const FILE: &str = "Procfile";
const EXPECTED: &str = "a line such as `web: python app.py`";
const BUILDPACKS_FILE: &str = ".buildpacks";
/// The maximum number of processes in a Procfile.
const MAX_PROCESSES: usize = 100;

/// The processes of a Procfile in the order of the file, including `release`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Procfile {
    /// The command of each process type.
    pub processes: IndexMap<ProcessType, CommandLine>,
}

impl Procfile {
    /// Parses a Procfile. The first 20 problems of the file are reported together.
    pub fn parse(bytes: &[u8]) -> Result<Procfile, Vec<ConfigError>> {
        let text = yaml::utf8(FILE, bytes, FileLimits::RECIPE).map_err(|error| vec![error])?;
        let mut lines: IndexMap<ProcessType, (u32, CommandLine)> = IndexMap::new();
        let mut problems = Vec::new();
        for (number, line) in entries(text) {
            match parse_line(line) {
                Ok((process, command)) => {
                    if let Some((first, _)) = lines.get(&process) {
                        let problem = format!("the process {:?} is defined twice", process.as_str());
                        let hint = format!("remove or rename this process, or the process on line {first}");
                        problems.push(ConfigError::new(FILE, problem).at_line(number).hint(hint));
                    } else {
                        lines.insert(process, (number, command));
                    }
                }
                Err(problem) => problems.push(problem.at_line(number)),
            }
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
            if lines.len() > MAX_PROCESSES {
                let problem = format!("there are more than {MAX_PROCESSES} processes");
                problems.push(ConfigError::new(FILE, problem).at_line(number).hint("start several processes with one command"));
                break;
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Procfile { processes: lines.into_iter().map(|(process, (_, command))| (process, command)).collect() })
    }
}

/// Parses `.buildpacks`, which has a name, a directory or a pinned address per line. The first [`MAX_PROBLEMS`] problems are reported
/// together.
pub(super) fn parse_buildpacks(bytes: &[u8]) -> Result<Vec<BuildpackRef>, Vec<ConfigError>> {
    let text = yaml::utf8(BUILDPACKS_FILE, bytes, FileLimits::RECIPE).map_err(|error| vec![error])?;
    let mut buildpacks = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in entries(text) {
        match line.parse::<BuildpackRef>() {
            Ok(buildpack) => buildpacks.push(buildpack),
            Err(why) => {
                problems.push(ConfigError::new(BUILDPACKS_FILE, why).at_line(number).expected(BuildpackRef::EXPECTED));
            }
        }
        if problems.len() >= MAX_PROBLEMS {
            break;
        }
        if buildpacks.len() > BuildpackRef::MAX {
            let expected = format!("at most {} buildpacks", BuildpackRef::MAX);
            problems.push(ConfigError::new(BUILDPACKS_FILE, "the file has too many lines").at_line(number).expected(expected));
            break;
        }
    }
    if problems.is_empty() { Ok(buildpacks) } else { Err(problems) }
}

/// Returns the lines of a file with their numbers, without comments and blank lines.
fn entries(text: &str) -> impl Iterator<Item = (u32, &str)> {
    (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn parse_line(line: &str) -> Result<(ProcessType, CommandLine), ConfigError> {
    let Some((name, command)) = line.split_once(':') else {
        return Err(ConfigError::new(FILE, format!("{} has no colon", shown(line))).expected(EXPECTED));
    };
    let process = name.trim_end().parse::<ProcessType>().map_err(|_| {
        ConfigError::new(FILE, format!("{} is not a process type", shown(name)))
            .expected(EXPECTED)
            .hint("use 1 to 63 letters, digits, dashes and underscores, starting with a letter")
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
    fn procfile_with_comments_and_crlf_keeps_its_order() {
        let procfile =
            Procfile::parse(b"\xef\xbb\xbf# ours\r\nweb: bin/web -p $PORT\r\n\r\nworker : a:b # c\r\nrelease: x").unwrap();
        let found: Vec<_> = procfile.processes.iter().map(|(name, command)| (name.as_str(), command.as_str())).collect();
        assert_eq!(found, [("web", "bin/web -p $PORT"), ("worker", "a:b # c"), ("release", "x")]);
        assert_eq!(Procfile::parse(b"").unwrap(), Procfile::default());
    }

    #[test]
    fn every_bad_line_of_a_procfile_is_reported() {
        let problems = Procfile::parse(b"web: a\nweb: b\njust a command\n2x: c\nworker:\nx: a\0b\n").unwrap_err();
        let lines: Vec<_> = problems.iter().map(|problem| problem.line.unwrap()).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn buildpacks_file_with_one_buildpack_per_line_is_read() {
        assert_eq!(parse_buildpacks(b"# first\r\nnode\r\n\r\nheroku/python").unwrap().len(), 2);
        assert_eq!(parse_buildpacks(b"node\ngit@host:x\n").unwrap_err()[0].line, Some(2));
    }

    #[test]
    fn twenty_bad_lines_are_reported_without_an_error_about_too_many_lines() {
        let bad = "git@host:x\n".repeat(25);
        let problems = parse_buildpacks(bad.as_bytes()).unwrap_err();
        let lines: Vec<_> = problems.iter().filter_map(|problem| problem.line).collect();
        assert_eq!(lines, (1..=20).collect::<Vec<_>>());
        assert!(problems.iter().all(|problem| !problem.to_string().contains("too many")), "{problems:?}");
        let many = parse_buildpacks("node\n".repeat(40).as_bytes()).unwrap_err();
        assert!(many.len() == 1 && many[0].to_string().contains("too many"), "{many:?}");
        let problems = Procfile::parse("no colon\n".repeat(25).as_bytes()).unwrap_err();
        assert_eq!(problems.len(), 20);
    }
}
