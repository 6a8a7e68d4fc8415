//! The hook's side: runs inside git's receive-pack, asks the daemon and repeats its answer. Fails closed: whatever goes wrong,
//! the push is refused with the reason.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    pktline, recipe,
    wire::{
        CHUNK, ClientFrame, HookKind, OPTION_LIMIT, OPTIONS_LIMIT, PART, REFS_LIMIT, RecipeFile, RefChange, ServerFrame, VERSION,
        Verdict, is_refname, read_frame, write_frame,
    },
};
use crate::{
    git::source::RecipeFiles,
    model::{CommitId, sanitise_line, sanitise_reason},
};

/// How long the daemon may say nothing at all; it sends a beat every few seconds.
const SILENCE: Duration = Duration::from_secs(180);
/// How long the daemon may take to read the question.
const QUESTION: Duration = Duration::from_secs(10);
/// Where git says where the objects are that it has not accepted yet.
const QUARANTINE: &str = "GIT_QUARANTINE_PATH";

/// Why a hook could not get an answer.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("{0} is not set: this repository only takes pushes through its larder server")]
    NoEnvironment(&'static str),
    #[error("{0} does not hold a push token")]
    BadToken(&'static str),
    #[error("the larder server cannot be reached at {path}: {source}; is `larder serve` running?")]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("the larder server went away before its verdict; `larder deploy PROJECT --follow` shows what became of it")]
    Gone(#[source] io::Error),
    #[error("git's question could not be read: {0}")]
    Git(String),
    #[error("the push changes more than {REFS_LIMIT} refs; push them in smaller groups")]
    TooManyRefs,
    #[error("the push has more than {OPTIONS_LIMIT} options, or one longer than {OPTION_LIMIT} bytes")]
    TooManyOptions,
}

/// The longest line with a change of a ref, in bytes: git's own limit for a packet.
const LINE_LIMIT: u64 = 65_520;
/// The reason for a ref whose name larder does not accept.
const BAD_NAME: &str = "this ref name is not allowed here: names are UTF-8 text of at most 512 bytes";

/// What git asked.
#[derive(Debug, Default)]
struct Question {
    refs: Vec<RefChange>,
    /// The names of further refs, which larder does not accept. They are refused one by one, without the daemon.
    bad_names: Vec<Vec<u8>>,
    options: Vec<String>,
    atomic: bool,
    quarantine: Option<String>,
    recipes: Vec<(CommitId, RecipeFiles)>,
}

/// What the daemon answered.
enum Answer {
    Verdicts(Vec<(String, Verdict)>),
    Discard,
    Refused(String),
}

/// Runs the hook `name`: `larder hook <name>`. `env` looks up an environment variable. Returns the exit code.
pub fn main(
    name: &str,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> u8 {
    match HookKind::named(name) {
        Some(HookKind::PreReceive) => pre_receive(stdin, stderr, env),
        Some(HookKind::ProcReceive) => proc_receive(stdin, stdout, stderr, env),
        None => {
            say(stderr, &format!(" !     larder has no {name} hook"));
            1
        }
    }
}

fn pre_receive(stdin: &mut dyn Read, stderr: &mut dyn Write, env: &dyn Fn(&str) -> Option<OsString>) -> u8 {
    match ask(HookKind::PreReceive, &read_pre_receive(stdin, env), stderr, env) {
        Ok(Answer::Verdicts(_)) => 0,
        Ok(Answer::Discard) => {
            // What cannot be removed now lies around like the objects of any refused push, until git packs the repository.
            let quarantine = env(QUARANTINE).map(PathBuf::from).filter(|path| quarantine_name(path).is_some());
            let _ = quarantine.map(|path| recipe::discard(&path));
            0
        }
        Ok(Answer::Refused(why)) => {
            if !why.is_empty() {
                say(stderr, &format!(" !     {why}"));
            }
            1
        }
        Err(error) => {
            say(stderr, &format!(" !     refused: {error}"));
            1
        }
    }
}

fn proc_receive(
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> u8 {
    let question = read_proc_receive(stdin, stdout);
    let answer = ask(HookKind::ProcReceive, &question, stderr, env).unwrap_or_else(|error| Answer::Refused(error.to_string()));
    let Ok(question) = question else {
        // The conversation with git itself is broken: git refuses the refs by itself when the hook fails.
        if let Answer::Refused(why) = answer {
            say(stderr, &format!(" !     refused: {why}"));
        }
        return 1;
    };
    let written = question.refs.iter().try_for_each(|change| write_verdict(stdout, &change.refname, &answer));
    let refused = question
        .bad_names
        .iter()
        .try_for_each(|name| pktline::write(stdout, &[b"ng ", name.as_slice(), b" ", BAD_NAME.as_bytes()].concat()));
    match written.and(refused).and_then(|()| pktline::flush(stdout)) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn write_verdict(stdout: &mut dyn Write, refname: &str, answer: &Answer) -> io::Result<()> {
    let refuse = |stdout: &mut dyn Write, reason: &str| {
        pktline::write(stdout, format!("ng {refname} {}", sanitise_reason(reason)).as_bytes())
    };
    let verdict = match answer {
        Answer::Refused(why) => return refuse(stdout, why),
        Answer::Discard => return refuse(stdout, "the larder server answered another question"),
        Answer::Verdicts(verdicts) => verdicts.iter().find(|(name, _)| name == refname).map(|(_, verdict)| verdict),
    };
    match verdict {
        None => refuse(stdout, "the larder server gave no verdict for this ref"),
        Some(Verdict::Refused { reason }) => refuse(stdout, reason),
        Some(Verdict::Ok) => pktline::write(stdout, format!("ok {refname}").as_bytes()),
        Some(Verdict::OkAs { refname: stored }) => {
            pktline::write(stdout, format!("ok {refname}").as_bytes())?;
            pktline::write(stdout, format!("option refname {stored}").as_bytes())
        }
        Some(Verdict::FallThrough) => {
            pktline::write(stdout, format!("ok {refname}").as_bytes())?;
            pktline::write(stdout, b"option fall-through")
        }
    }
}

/// Lines of `old new ref`; options and the quarantine arrive in the environment.
fn read_pre_receive(stdin: &mut dyn Read, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Question, HookError> {
    let mut question = Question::default();
    let mut lines = BufReader::new(stdin);
    loop {
        let mut line = Vec::new();
        let read =
            (&mut lines).take(LINE_LIMIT).read_until(b'\n', &mut line).map_err(|error| HookError::Git(error.to_string()))?;
        if read == 0 {
            break;
        }
        add_ref(&mut question, line.strip_suffix(b"\n").unwrap_or(&line))?;
    }
    let text = |name: &str| env(name).map(|value| value.to_string_lossy().into_owned());
    let count = text("GIT_PUSH_OPTION_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0usize);
    if count > OPTIONS_LIMIT {
        return Err(HookError::TooManyOptions);
    }
    for number in 0..count {
        add_option(&mut question, text(&format!("GIT_PUSH_OPTION_{number}")).unwrap_or_default())?;
    }
    question.quarantine = env(QUARANTINE).and_then(|path| quarantine_name(Path::new(&path)));
    // git starts hooks with this, relative to the directory that it starts them in.
    if let Some(repository) = env("GIT_DIR") {
        question.recipes = recipe::read(Path::new(&repository), question.quarantine.as_deref(), &question.refs);
    }
    Ok(question)
}

/// The name of git's directory for objects that are not accepted yet, if it is one.
fn quarantine_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    super::is_quarantine(name).then(|| name.to_owned())
}

/// Version and capabilities, answered; then the commands; then, if agreed upon, the push options.
fn read_proc_receive(stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<Question, HookError> {
    let broken = |error: io::Error| HookError::Git(error.to_string());
    let mut question = Question::default();
    let mut offered = Vec::new();
    while let Some(packet) = pktline::read(stdin).map_err(broken)? {
        if offered.is_empty() {
            offered = packet;
        }
    }
    let mut parts = offered.splitn(2, |byte| *byte == 0);
    if parts.next() != Some(b"version=1") {
        return Err(HookError::Git(String::from("this version of git speaks another proc-receive protocol")));
    }
    let capabilities = parts.next().unwrap_or_default();
    let has = |wanted: &[u8]| capabilities.split(|byte| *byte == b' ').any(|word| word == wanted);
    let with_options = has(b"push-options");
    question.atomic = has(b"atomic");
    let mut agreed = b"version=1".to_vec();
    if with_options || question.atomic {
        agreed.push(0);
        let words: Vec<&str> =
            [(with_options, "push-options"), (question.atomic, "atomic")].iter().filter(|(on, _)| *on).map(|(_, w)| *w).collect();
        agreed.extend_from_slice(words.join(" ").as_bytes());
    }
    pktline::write(stdout, &agreed).and_then(|()| pktline::flush(stdout)).map_err(broken)?;
    while let Some(packet) = pktline::read(stdin).map_err(broken)? {
        add_ref(&mut question, &packet)?;
    }
    if with_options {
        while let Some(packet) = pktline::read(stdin).map_err(broken)? {
            add_option(&mut question, String::from_utf8_lossy(&packet).into_owned())?;
        }
    }
    Ok(question)
}

fn add_ref(question: &mut Question, line: &[u8]) -> Result<(), HookError> {
    if question.refs.len().saturating_add(question.bad_names.len()) == REFS_LIMIT {
        return Err(HookError::TooManyRefs);
    }
    let wrong = || HookError::Git(format!("{:?} is not a change of a ref", sanitise_reason(&String::from_utf8_lossy(line))));
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut word = || words.next().ok_or_else(wrong);
    let (old, new, name) = (word()?, word()?, word()?);
    let id = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(wrong);
    let (old, new) = (id(old)?, id(new)?);
    match std::str::from_utf8(name) {
        Ok(refname) if is_refname(refname) => question.refs.push(RefChange { old, new, refname: refname.to_owned() }),
        _ => question.bad_names.push(name.to_owned()),
    }
    Ok(())
}

fn add_option(question: &mut Question, option: String) -> Result<(), HookError> {
    if question.options.len() == OPTIONS_LIMIT || option.len() > OPTION_LIMIT {
        return Err(HookError::TooManyOptions);
    }
    question.options.push(option);
    Ok(())
}

/// Sends the question to the daemon, writes the lines that it sends, and returns its answer. A question that could not be read is sent as
/// a refusal, so that the daemon knows how the push ended.
fn ask(
    kind: HookKind,
    question: &Result<Question, HookError>,
    stderr: &mut dyn Write,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Answer, HookError> {
    const TOKEN: &str = "LARDER_PUSH_TOKEN";
    const SOCKET: &str = "LARDER_HOOK_SOCKET";
    let path = PathBuf::from(env(SOCKET).filter(|path| !path.is_empty()).ok_or(HookError::NoEnvironment(SOCKET))?);
    let token = env(TOKEN).ok_or(HookError::NoEnvironment(TOKEN))?;
    let token = token.to_str().and_then(super::registry::parse_token).ok_or(HookError::BadToken(TOKEN))?;
    let stream = UnixStream::connect(&path).map_err(|source| HookError::Unreachable { path: path.clone(), source })?;
    stream.set_write_timeout(Some(QUESTION)).map_err(HookError::Gone)?;
    stream.set_read_timeout(Some(SILENCE)).map_err(HookError::Gone)?;
    let mut to = &stream;
    let mut put = |frame: ClientFrame| write_frame(&mut to, &frame).map_err(HookError::Gone);
    let (atomic, quarantine) = match question {
        Ok(question) => (question.atomic, question.quarantine.clone()),
        Err(_) => (false, None),
    };
    // A refused caller finds the answer waiting even when the daemon has already hung up on its question.
    let asked = put(ClientFrame::Hello { version: VERSION, token, kind, atomic, quarantine }).and_then(|()| match question {
        Ok(question) => send_question(question, &mut put),
        Err(error) => put(ClientFrame::Refuse(sanitise_reason(&error.to_string()))),
    });
    let mut from = BufReader::new(&stream);
    let mut verdicts = Vec::new();
    loop {
        match read_frame(&mut from) {
            Ok(ServerFrame::Line(line)) => say(stderr, &line),
            Ok(ServerFrame::Beat) => {}
            Ok(ServerFrame::Verdicts(more)) => verdicts.extend(more),
            Ok(ServerFrame::Discard) => return Ok(Answer::Discard),
            Ok(ServerFrame::Done) => return Ok(Answer::Verdicts(verdicts)),
            Ok(ServerFrame::Refused(why)) => return Ok(Answer::Refused(why)),
            Err(error) => return Err(asked.err().unwrap_or(HookError::Gone(error))),
        }
    }
}

fn send_question(question: &Question, put: &mut impl FnMut(ClientFrame) -> Result<(), HookError>) -> Result<(), HookError> {
    question.refs.chunks(CHUNK).try_for_each(|refs| put(ClientFrame::Refs(refs.to_vec())))?;
    put(ClientFrame::BadNames(question.bad_names.len()))?;
    question.options.iter().try_for_each(|option| put(ClientFrame::Option(option.clone())))?;
    question.recipes.iter().try_for_each(|(commit, files)| send_recipe(commit, files, put))?;
    put(ClientFrame::Go)
}

fn send_recipe(
    commit: &CommitId,
    files: &RecipeFiles,
    put: &mut impl FnMut(ClientFrame) -> Result<(), HookError>,
) -> Result<(), HookError> {
    let mut files = files.clone();
    for file in RecipeFile::ALL {
        let Some(content) = file.of(&mut files).take() else { continue };
        let empty = content.is_empty().then_some(&[][..]);
        for part in content.chunks(PART).chain(empty) {
            put(ClientFrame::Recipe { commit: commit.clone(), file, part: part.to_vec() })?;
        }
    }
    Ok(())
}

/// Writes a line for the person who pushes. That nobody reads it any more does not change the verdict.
fn say(stderr: &mut dyn Write, line: &str) {
    let mut line = sanitise_line(line);
    line.push('\n');
    let _ = stderr.write_all(line.as_bytes()).and_then(|()| stderr.flush());
}
