//! [`Notification`]: an event as data for a reader. Texts may come from projects; [`Notification::cleaned`] removes control characters and
//! limits all lengths.

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{NotificationKind, ProjectName, plain_line};

/// The maximum length of a sentence, in characters.
const MAX_SENTENCE: usize = 500;
/// The maximum length of the title of a commit, in characters.
const MAX_TITLE: usize = 150;
/// The maximum length of a line of output, in characters.
const MAX_LINE: usize = 300;
/// The maximum number of lines of output.
const MAX_LINES: usize = 30;
/// The maximum number of commits, and of other rows.
const MAX_ROWS: usize = 20;
/// The maximum number of lines of a list with a heading.
const MAX_SECTION: usize = 60;

/// An event as data for a reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notification {
    /// The id of the event, unique on this server.
    pub id: String,
    /// The kind.
    pub kind: NotificationKind,
    /// The time of the event.
    pub at: Timestamp,
    /// The project; `None` if the notification concerns the whole server.
    pub project: Option<ProjectName>,
    /// The environment, as `project/environment`.
    pub environment: Option<String>,
    /// The full id of the commit, and the branch, of a deployment.
    pub commit: Option<(String, String)>,
    /// The subject of a mail, without the environment.
    pub subject: String,
    /// The event in one sentence.
    pub headline: String,
    /// The release that serves visitors now, in one sentence.
    pub serves: Option<String>,
    /// The failure.
    pub failure: Option<FailureReport>,
    /// Further lists, each with a heading.
    pub sections: Vec<DetailList>,
    /// The heading above the changes.
    pub changes_title: String,
    /// The changes, newest first.
    pub changes: Vec<CommitChange>,
    /// True if there are more changes.
    pub more_changes: bool,
    /// Further facts, each with a label.
    pub facts: Vec<(String, String)>,
    /// The address of the application.
    pub url: Option<String>,
    /// The next steps of the reader.
    pub advice: Vec<Advice>,
}

/// A list with a heading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DetailList {
    /// The heading.
    pub title: String,
    /// The lines.
    pub lines: Vec<String>,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureReport {
    /// The phase of the deployment.
    pub phase: String,
    /// The sentence of the tool that failed.
    pub why: String,
    /// Instructions for the person who must act on the failure.
    pub hints: Vec<String>,
    /// The last lines of output before the failure.
    pub output: Vec<String>,
}

/// A commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommitChange {
    /// The first digits of the commit.
    pub commit: String,
    /// The title of the commit.
    pub title: String,
    /// The author.
    pub author: String,
}

/// A next step of the reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The purpose, as a sentence without a full stop.
    pub text: String,
    /// The command.
    pub command: Option<String>,
}

impl Notification {
    /// Creates a notification with a headline, and without details.
    pub fn new(id: String, kind: NotificationKind, at: Timestamp, subject: String, headline: String) -> Notification {
        Notification {
            id,
            kind,
            at,
            project: None,
            environment: None,
            commit: None,
            subject,
            headline,
            serves: None,
            failure: None,
            sections: Vec::new(),
            changes_title: String::new(),
            changes: Vec::new(),
            more_changes: false,
            facts: Vec::new(),
            url: None,
            advice: Vec::new(),
        }
    }

    /// Returns the notification with clean texts: without control characters, colours and marks that change the reading order, and with
    /// limited lengths. No text contains a line break.
    pub(super) fn cleaned(mut self) -> Notification {
        let sentence = |text: &mut String| *text = plain_line(text, MAX_SENTENCE);
        self.id.retain(|c| c.is_ascii_graphic());
        for text in [&mut self.subject, &mut self.headline, &mut self.changes_title].into_iter().chain(&mut self.serves) {
            sentence(text);
        }
        self.url.iter_mut().for_each(sentence);
        if let Some(failure) = &mut self.failure {
            sentence(&mut failure.phase);
            sentence(&mut failure.why);
            failure.hints.truncate(MAX_ROWS);
            failure.hints.iter_mut().for_each(sentence);
            let left_out = failure.output.len().saturating_sub(MAX_LINES);
            failure.output.drain(..left_out);
            failure.output.iter_mut().for_each(|line| *line = plain_line(line, MAX_LINE));
        }
        self.sections.truncate(MAX_ROWS);
        for DetailList { title, lines } in &mut self.sections {
            sentence(title);
            lines.truncate(MAX_SECTION);
            lines.iter_mut().for_each(sentence);
        }
        self.more_changes |= self.changes.len() > MAX_ROWS;
        self.changes.truncate(MAX_ROWS);
        for CommitChange { commit, title, author } in &mut self.changes {
            *commit = plain_line(commit, MAX_TITLE);
            *title = plain_line(title, MAX_TITLE);
            *author = plain_line(author, MAX_TITLE);
        }
        self.facts.truncate(MAX_ROWS);
        for (label, value) in &mut self.facts {
            sentence(label);
            sentence(value);
        }
        self.advice.truncate(MAX_ROWS);
        for Advice { text, command } in &mut self.advice {
            sentence(text);
            command.iter_mut().for_each(sentence);
        }
        self
    }
}
