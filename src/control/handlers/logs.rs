//! Requests for the output of processes: the existing lines, and new lines as they are written.

use std::{collections::VecDeque, path::Path};

use crate::{
    control::{
        authz::Needs,
        error::CommandError,
        request::{Context, LogFollower, Reply, Request, Stream},
    },
    model::{Access, Target},
    runtime::{self, LogLine, tail},
};

/// The request to read or follow the output of processes.
#[derive(Debug)]
pub struct LogsRead {
    /// The environment.
    pub target: Target,
    /// A process such as `web.1` or a process type such as `web`; all processes if absent.
    pub process: Option<String>,
    /// The maximum number of existing lines to return.
    pub lines: usize,
    /// True to return new lines, too, as processes write them.
    pub follow: bool,
}

impl Request for LogsRead {
    type View = Vec<String>;
    const NAME: &'static str = "logs";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::View)
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<Vec<String>>, CommandError> {
        let LogsRead { target, process, lines: count, follow } = self;
        let environment = control.environment(&target)?;
        // The subscription begins before the files are read, so that a line that is written meanwhile is not lost.
        let to_come = follow.then(|| control.pipeline().services().runtime.logs().subscribe());
        let directory = control.root().environment(&environment.project, &environment.name).log();
        let wanted =
            move |name: &str| process.as_deref().is_none_or(|process| name == process || name.split('.').next() == Some(process));
        let names = log_names(&directory).into_iter().filter(|name| wanted(name));
        let logs = names.map(|name| tail(&runtime::Logs::file(&directory, &name), count).unwrap_or_default());
        let mut past = merged(logs.collect());
        past.drain(..past.len().saturating_sub(count));
        let Some(lines) = to_come else { return Ok(past.into()) };
        let id = environment.id;
        let wanted = Box::new(move |line: &LogLine| line.environment == id && wanted(&line.process));
        Ok(Reply::Stream(Stream::Logs { past, follower: Box::new(LogFollower { lines, wanted }) }))
    }
}

/// Returns the names of the processes that have a log.
fn log_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter_map(|name| name.strip_suffix(".log").map(str::to_owned)).collect();
    names.sort();
    names
}

/// Merges the logs of several processes by the time at the beginning of each line. The lines of one process keep their order, even if
/// the clock was set back. Lines of the same millisecond are grouped by process.
fn merged(logs: Vec<Vec<String>>) -> Vec<String> {
    let mut logs: Vec<VecDeque<String>> = logs.into_iter().map(VecDeque::from).collect();
    let mut lines = Vec::with_capacity(logs.iter().map(VecDeque::len).sum());
    // If several logs have the same time, `min_by` returns the first of these logs, so the lines of one process stay together.
    while let Some(next) = logs.iter_mut().filter(|log| !log.is_empty()).min_by(|a, b| time(a.front()).cmp(time(b.front()))) {
        lines.extend(next.pop_front());
    }
    lines
}

/// Returns the time at the beginning of a line. Times in this format can be compared as text.
fn time(line: Option<&String>) -> &str {
    line.and_then(|line| line.split(' ').next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::merged;

    #[test]
    fn lines_of_one_process_keep_their_order_within_a_millisecond() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let web = lines(&["T1 web.1 Traceback", "T1 web.1 in main", "T1 web.1 Error", "T3 web.1 over"]);
        let worker = lines(&["T1 worker.1 zeta", "T1 worker.1 alpha", "T2 worker.1 between", "T0 worker.1 clock set back"]);
        let expected = lines(&[
            "T1 web.1 Traceback",
            "T1 web.1 in main",
            "T1 web.1 Error",
            "T1 worker.1 zeta",
            "T1 worker.1 alpha",
            "T2 worker.1 between",
            "T0 worker.1 clock set back",
            "T3 web.1 over",
        ]);
        assert_eq!(merged(vec![web, Vec::new(), worker]), expected);
        assert!(merged(Vec::new()).is_empty());
    }
}
