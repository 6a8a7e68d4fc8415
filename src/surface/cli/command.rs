//! The [`Command`] trait of commands that the server carries out, and the path from parsed arguments to an answer.

use std::os::fd::OwnedFd;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::control::{Caller, CommandError, Confirmation, Control, Needs, Reply, Request, Stream, UploadFn};

/// A command that the server carries out: parsed arguments that become a request, and the text of the answer.
pub(super) trait Command: Sized {
    /// The request that the arguments become.
    type Request: Request;

    /// Creates the request. Returns an error for invalid arguments that clap cannot detect.
    fn request(self) -> Result<Self::Request, CommandError>;

    /// Renders the answer for people. `--json` prints the view itself.
    fn show(view: &ViewOf<Self>) -> Shown;

    /// Returns the exit status for an answer.
    fn exit_code(_view: &ViewOf<Self>) -> u8 {
        0
    }
}

/// The use that a command makes of its caller's terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminalUse {
    /// The command only writes.
    None,
    /// The command asks for a confirmation.
    Question,
    /// A command of the project runs in the terminal.
    Session,
}

/// The view of a command's request.
pub(super) type ViewOf<C> = <<C as Command>::Request as Request>::View;

/// An answer for people.
pub(super) enum Shown {
    /// A listing or a page.
    Page(String),
    /// A short text about the change that the command made. With `--json`, this text is the field `done` of the view.
    Done(String),
    /// Text that another program reads, such as a patch. The text is written unchanged, except to a terminal.
    Verbatim(String),
}

/// An answer that is ready to be written.
pub(super) struct CommandAnswer {
    pub text: String,
    pub format: Format,
    /// The exit status.
    pub code: u8,
}

/// The kind of an answer's text, which determines if control characters are removed from the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON, in which control characters are escaped.
    Json,
    /// Text for people.
    Text,
    /// Text for another program.
    Verbatim,
}

/// The outcome of a request: an answer, a function that makes an answer from an upload, a stream, or a confirmation.
pub(super) enum CommandOutcome {
    Answer(CommandAnswer),
    Upload(UploadFn<CommandAnswer>),
    /// A function that reads the caller's input, and then returns the next outcome.
    Input(CommandInput),
    Stream(Stream),
    Confirm(CommandConfirmation),
}

/// A function that reads the caller's input from a descriptor.
pub(super) type CommandInput = Box<dyn FnOnce(OwnedFd) -> BoxFuture<'static, Result<CommandOutcome, CommandError>> + Send>;

/// The confirmation of a command. The command continues after a person has typed `word`.
pub(super) struct CommandConfirmation {
    /// The answer that states the consequences. With `--json`, or without a terminal, the command only writes this answer.
    pub answer: CommandAnswer,
    pub word: String,
    pub proceed: Box<dyn FnOnce() -> BoxFuture<'static, Result<CommandOutcome, CommandError>> + Send>,
}

/// A request that was authorized, with its outcome so far.
pub(super) struct Asked {
    /// The rights that the caller must have until the end of the output.
    pub needs: Needs,
    /// The outcome; `None` if only the needed rights were asked for.
    pub outcome: Option<CommandOutcome>,
}

/// The purpose for which a command becomes a request.
#[derive(Clone, Copy)]
pub(super) enum Asking<'a> {
    /// The request is carried out.
    Run {
        control: &'a Control,
        caller: &'a Caller,
        /// True to render the answer as JSON.
        json: bool,
    },
    /// Only the rights that the request needs are determined.
    Needs,
}

impl Asking<'_> {
    /// Passes a command's request to its handler and renders the answer, or only determines the rights that the request needs.
    pub async fn ask<C: Command + 'static>(self, command: C) -> Result<Asked, CommandError> {
        let request = command.request()?;
        let needs = request.needs();
        let outcome = match self {
            Asking::Run { control, caller, json } => Some(outcome::<C>(control.handle(caller, request).await?, json)),
            Asking::Needs => None,
        };
        Ok(Asked { needs, outcome })
    }
}

fn outcome<C: Command + 'static>(reply: Reply<ViewOf<C>>, json: bool) -> CommandOutcome {
    match reply {
        Reply::View(view) => CommandOutcome::Answer(render::<C>(&view, json)),
        Reply::Upload(upload) => CommandOutcome::Upload(Box::new(move |input| {
            Box::pin(async move { upload(input).await.map(|view| render::<C>(&view, json)) })
        })),
        Reply::Input(input) => CommandOutcome::Input(Box::new(move |from| {
            Box::pin(async move { input(from).await.map(|reply| outcome::<C>(reply, json)) })
        })),
        Reply::Stream(stream) => CommandOutcome::Stream(stream),
        Reply::Confirm(confirmation) => {
            let Confirmation { view, word, proceed } = *confirmation;
            let proceed = move || -> BoxFuture<'static, _> {
                Box::pin(async move { proceed().await.map(|reply| outcome::<C>(reply, json)) })
            };
            CommandOutcome::Confirm(CommandConfirmation { answer: render::<C>(&view, json), word, proceed: Box::new(proceed) })
        }
    }
}

fn render<C: Command>(view: &ViewOf<C>, json: bool) -> CommandAnswer {
    let code = C::exit_code(view);
    let shown = C::show(view);
    if json {
        // Serialising a view fails only for a map whose keys are not strings, and no view has such a map.
        let mut value = serde_json::to_value(view).unwrap_or_default();
        if let (Shown::Done(done), Value::Object(fields)) = (&shown, &mut value) {
            fields.insert(String::from("done"), json!(done.trim_end()));
        }
        return CommandAnswer { text: format!("{value:#}\n"), format: Format::Json, code };
    }
    let (text, format) = match shown {
        Shown::Page(text) => (text, Format::Text),
        Shown::Done(text) => (format!("{}\n", text.trim_end()), Format::Text),
        Shown::Verbatim(text) => (text, Format::Verbatim),
    };
    CommandAnswer { text, format, code }
}
