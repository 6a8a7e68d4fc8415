//! The client of the hook socket, `larder hook <name>`. git's receive-pack runs the client as a hook. The client sends git's request to the
//! server, and the server's answer to git. On any error, the client refuses the push and reports the reason.

use std::{
    ffi::OsString,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    pktline, recipe,
    registry::parse_token,
    wire::{
        ClientFrame, HookKind, MAX_CHUNK, MAX_OPTION, MAX_OPTIONS, MAX_PART, MAX_REFS, RecipeFile, RefChange, RefVerdict,
        ServerFrame, VERSION, is_refname, read_frame, write_frame,
    },
};
use crate::{
    git::{libgit::is_quarantine, source::RecipeFiles},
    model::{CommitId, sanitise_line, sanitise_reason},
};

/// The maximum time between two messages of the server, which sends a heartbeat every 20 seconds.
const MAX_SILENCE: Duration = Duration::from_secs(180);
/// The timeout of a write to the server.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The environment variable that names git's quarantine, the directory of objects that are not accepted yet (git-receive-pack(1)).
const QUARANTINE: &str = "GIT_QUARANTINE_PATH";

/// The reason why a hook refuses a push without an answer from the server.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("cannot accept the push: {0} is not set; this repository accepts pushes only through its larder server")]
    NoEnvironment(&'static str),
    #[error("cannot accept the push: {0} is not a push token (expected 32 hexadecimal digits)")]
    BadToken(&'static str),
    #[error("cannot connect to the larder server at {path}: {source}; check that `larder serve` is running")]
    Unreachable { path: PathBuf, source: io::Error },
    #[error(
        "cannot read the verdict: the connection to the larder server failed; run `larder deploy PROJECT --follow` to see the outcome"
    )]
    Gone(#[source] io::Error),
    #[error("cannot read git's request: {0}")]
    Git(String),
    #[error("cannot accept the push: the push changes more than {MAX_REFS} refs; push them in smaller groups")]
    TooManyRefs,
    #[error("cannot accept the push: the push has more than {MAX_OPTIONS} options, or an option of more than {MAX_OPTION} bytes")]
    TooManyOptions,
}

/// The maximum length of a line with a ref change, in bytes: git's own limit for a packet.
const MAX_LINE: u64 = 65_520;
/// The reason that is reported for a ref whose name larder does not accept.
const BAD_NAME: &str = "this ref name is not allowed (expected UTF-8 text of at most 512 bytes)";

/// The request that git has sent to the hook.
#[derive(Debug, Default)]
struct GitRequest {
    refs: Vec<RefChange>,
    /// The names of refs that larder does not accept. The client refuses these refs itself.
    bad_names: Vec<Vec<u8>>,
    options: Vec<String>,
    atomic: bool,
    quarantine: Option<String>,
    recipes: Vec<(CommitId, RecipeFiles)>,
}

/// The answer of the server.
enum Answer {
    Verdicts(Vec<(String, RefVerdict)>),
    Discard,
    Refused(String),
}

/// Runs `larder hook <name>`. `env` returns the value of an environment variable. Returns the exit code.
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
            // If some objects cannot be removed, they stay until `git gc`, like the objects of a push that proc-receive refuses.
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
    let request = read_proc_receive(stdin, stdout);
    let answer = ask(HookKind::ProcReceive, &request, stderr, env).unwrap_or_else(|error| Answer::Refused(error.to_string()));
    let Ok(request) = request else {
        // Without git's request there are no refs to write verdicts for. git refuses all refs if the hook fails.
        if let Answer::Refused(why) = answer {
            say(stderr, &format!(" !     refused: {why}"));
        }
        return 1;
    };
    let written = request.refs.iter().try_for_each(|change| write_verdict(stdout, &change.refname, &answer));
    let refused = request
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
        Answer::Discard => return refuse(stdout, "the answer of the larder server is not an answer to proc-receive"),
        Answer::Verdicts(verdicts) => verdicts.iter().find(|(name, _)| name == refname).map(|(_, verdict)| verdict),
    };
    match verdict {
        None => refuse(stdout, "the larder server gave no verdict for this ref"),
        Some(RefVerdict::Refused { reason }) => refuse(stdout, reason),
        Some(RefVerdict::Ok) => pktline::write(stdout, format!("ok {refname}").as_bytes()),
        Some(RefVerdict::OkAs { refname: stored }) => {
            pktline::write(stdout, format!("ok {refname}").as_bytes())?;
            pktline::write(stdout, format!("option refname {stored}").as_bytes())
        }
        Some(RefVerdict::FallThrough) => {
            pktline::write(stdout, format!("ok {refname}").as_bytes())?;
            pktline::write(stdout, b"option fall-through")
        }
    }
}

/// Reads git's request to pre-receive: lines `old new ref`, and environment variables with push options and quarantine (githooks(5)).
fn read_pre_receive(stdin: &mut dyn Read, env: &dyn Fn(&str) -> Option<OsString>) -> Result<GitRequest, HookError> {
    let mut request = GitRequest::default();
    let mut lines = BufReader::new(stdin);
    loop {
        let mut line = Vec::new();
        let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line).map_err(|error| HookError::Git(error.to_string()))?;
        if read == 0 {
            break;
        }
        add_ref(&mut request, line.strip_suffix(b"\n").unwrap_or(&line))?;
    }
    let text = |name: &str| env(name).map(|value| value.to_string_lossy().into_owned());
    let count = text("GIT_PUSH_OPTION_COUNT").and_then(|count| count.parse().ok()).unwrap_or(0usize);
    if count > MAX_OPTIONS {
        return Err(HookError::TooManyOptions);
    }
    for number in 0..count {
        add_option(&mut request, text(&format!("GIT_PUSH_OPTION_{number}")).unwrap_or_default())?;
    }
    request.quarantine = env(QUARANTINE).and_then(|path| quarantine_name(Path::new(&path)));
    // `GIT_DIR` may be relative to the current directory, which is the directory in which git starts hooks.
    if let Some(repository) = env("GIT_DIR") {
        request.recipes = recipe::read(Path::new(&repository), request.quarantine.as_deref(), &request.refs);
    }
    Ok(request)
}

/// Returns the last component of `path`, if `path` is a quarantine directory of git.
fn quarantine_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    is_quarantine(name).then(|| name.to_owned())
}

/// Reads git's request to proc-receive (githooks(5)): negotiates version and capabilities, reads the ref changes, and reads the push
/// options if git sends any.
fn read_proc_receive(stdin: &mut dyn Read, stdout: &mut dyn Write) -> Result<GitRequest, HookError> {
    let broken = |error: io::Error| HookError::Git(error.to_string());
    let mut request = GitRequest::default();
    let mut offered = Vec::new();
    while let Some(packet) = pktline::read(stdin).map_err(broken)? {
        if offered.is_empty() {
            offered = packet;
        }
    }
    let mut parts = offered.splitn(2, |byte| *byte == 0);
    if parts.next() != Some(b"version=1") {
        return Err(HookError::Git(String::from("git does not support version 1 of the proc-receive protocol")));
    }
    let capabilities = parts.next().unwrap_or_default();
    let has = |wanted: &[u8]| capabilities.split(|byte| *byte == b' ').any(|word| word == wanted);
    let with_options = has(b"push-options");
    request.atomic = has(b"atomic");
    let mut agreed = b"version=1".to_vec();
    if with_options || request.atomic {
        agreed.push(0);
        let words: Vec<&str> =
            [(with_options, "push-options"), (request.atomic, "atomic")].iter().filter(|(on, _)| *on).map(|(_, w)| *w).collect();
        agreed.extend_from_slice(words.join(" ").as_bytes());
    }
    pktline::write(stdout, &agreed).and_then(|()| pktline::flush(stdout)).map_err(broken)?;
    while let Some(packet) = pktline::read(stdin).map_err(broken)? {
        add_ref(&mut request, &packet)?;
    }
    if with_options {
        while let Some(packet) = pktline::read(stdin).map_err(broken)? {
            add_option(&mut request, String::from_utf8_lossy(&packet).into_owned())?;
        }
    }
    Ok(request)
}

fn add_ref(request: &mut GitRequest, line: &[u8]) -> Result<(), HookError> {
    if request.refs.len().saturating_add(request.bad_names.len()) == MAX_REFS {
        return Err(HookError::TooManyRefs);
    }
    let wrong = || {
        HookError::Git(format!(
            "{:?} is not a change of a ref (expected OLD NEW REF)",
            sanitise_reason(&String::from_utf8_lossy(line))
        ))
    };
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut word = || words.next().ok_or_else(wrong);
    let (old, new, name) = (word()?, word()?, word()?);
    let id = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(wrong);
    let (old, new) = (id(old)?, id(new)?);
    match std::str::from_utf8(name) {
        Ok(refname) if is_refname(refname) => request.refs.push(RefChange { old, new, refname: refname.to_owned() }),
        _ => request.bad_names.push(name.to_owned()),
    }
    Ok(())
}

fn add_option(request: &mut GitRequest, option: String) -> Result<(), HookError> {
    if request.options.len() == MAX_OPTIONS || option.len() > MAX_OPTION {
        return Err(HookError::TooManyOptions);
    }
    request.options.push(option);
    Ok(())
}

/// Sends the request to the server, prints the server's lines, and returns the server's answer. If the request could not be read, this
/// function sends a refusal instead of the request, so that the server records the push as refused.
fn ask(
    kind: HookKind,
    request: &Result<GitRequest, HookError>,
    stderr: &mut dyn Write,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Answer, HookError> {
    const TOKEN: &str = "LARDER_PUSH_TOKEN";
    const SOCKET: &str = "LARDER_HOOK_SOCKET";
    let path = PathBuf::from(env(SOCKET).filter(|path| !path.is_empty()).ok_or(HookError::NoEnvironment(SOCKET))?);
    let token = env(TOKEN).ok_or(HookError::NoEnvironment(TOKEN))?;
    let token = token.to_str().and_then(parse_token).ok_or(HookError::BadToken(TOKEN))?;
    let stream = UnixStream::connect(&path).map_err(|source| HookError::Unreachable { path: path.clone(), source })?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT)).map_err(HookError::Gone)?;
    stream.set_read_timeout(Some(MAX_SILENCE)).map_err(HookError::Gone)?;
    let mut to = &stream;
    let mut put = |frame: ClientFrame| write_frame(&mut to, &frame).map_err(HookError::Gone);
    let (atomic, quarantine) = match request {
        Ok(request) => (request.atomic, request.quarantine.clone()),
        Err(_) => (false, None),
    };
    // A write error is not returned at once. A server that refuses the request early closes its receiving side, and this process can still
    // read the answer.
    let asked = put(ClientFrame::Hello { version: VERSION, token, kind, atomic, quarantine }).and_then(|()| match request {
        Ok(request) => send_request(request, &mut put),
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

fn send_request(request: &GitRequest, put: &mut impl FnMut(ClientFrame) -> Result<(), HookError>) -> Result<(), HookError> {
    request.refs.chunks(MAX_CHUNK).try_for_each(|refs| put(ClientFrame::Refs(refs.to_vec())))?;
    put(ClientFrame::BadNames(request.bad_names.len()))?;
    request.options.iter().try_for_each(|option| put(ClientFrame::Option(option.clone())))?;
    request.recipes.iter().try_for_each(|(commit, files)| send_recipe(commit, files, put))?;
    put(ClientFrame::Go)
}

fn send_recipe(
    commit: &CommitId,
    files: &RecipeFiles,
    put: &mut impl FnMut(ClientFrame) -> Result<(), HookError>,
) -> Result<(), HookError> {
    let mut files = files.clone();
    put(ClientFrame::RecipeOf(commit.clone()))?;
    for file in RecipeFile::ALL {
        let Some(content) = file.of(&mut files).take() else { continue };
        let empty = content.is_empty().then_some(&[][..]);
        for part in content.chunks(MAX_PART).chain(empty) {
            put(ClientFrame::Recipe { commit: commit.clone(), file, part: part.to_vec() })?;
        }
    }
    Ok(())
}

/// Writes a line for the user who pushes. Errors are ignored, because the verdict does not depend on the user's connection.
fn say(stderr: &mut dyn Write, line: &str) {
    let mut line = sanitise_line(line);
    line.push('\n');
    let _ = stderr.write_all(line.as_bytes()).and_then(|()| stderr.flush());
}
