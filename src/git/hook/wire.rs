//! The messages between a hook and the daemon: frames of a length (4 bytes, big endian) and postcard.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{git::source::RecipeFiles, model::CommitId};

/// The version of these messages; the hook of another version of larder is refused.
pub const VERSION: u32 = 3;
/// The largest frame, in bytes.
pub const FRAME_LIMIT: usize = 64 * 1024;
/// The most refs that one push may change.
pub const REFS_LIMIT: usize = 2000;
/// The longest name of a ref, in bytes.
pub const REFNAME_LIMIT: usize = 512;
/// The most push options in one push.
pub const OPTIONS_LIMIT: usize = 32;
/// The longest push option, in bytes.
pub const OPTION_LIMIT: usize = 1024;
/// How many refs or verdicts travel in one frame, so that none outgrows [`FRAME_LIMIT`].
pub const CHUNK: usize = 50;
/// How many bytes of a recipe travel in one frame.
pub const PART: usize = 32 * 1024;
/// Of how many commits of a push the recipe is sent along.
pub const RECIPE_COMMITS: usize = 4;
/// How many bytes these recipes may have together.
pub const RECIPE_BYTES: usize = 1 << 20;

/// A file of the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum RecipeFile {
    LarderYml,
    Procfile,
    AppJson,
    Buildpacks,
}

impl RecipeFile {
    /// All of them.
    pub(super) const ALL: [RecipeFile; 4] =
        [RecipeFile::LarderYml, RecipeFile::Procfile, RecipeFile::AppJson, RecipeFile::Buildpacks];

    /// Its path in the repository.
    pub(super) fn path(self) -> &'static str {
        match self {
            RecipeFile::LarderYml => "larder.yml",
            RecipeFile::Procfile => "Procfile",
            RecipeFile::AppJson => "app.json",
            RecipeFile::Buildpacks => ".buildpacks",
        }
    }

    /// Its place among the others.
    pub(super) fn of(self, files: &mut RecipeFiles) -> &mut Option<Vec<u8>> {
        match self {
            RecipeFile::LarderYml => &mut files.larder_yml,
            RecipeFile::Procfile => &mut files.procfile,
            RecipeFile::AppJson => &mut files.app_json,
            RecipeFile::Buildpacks => &mut files.buildpacks,
        }
    }
}

/// Which hook is calling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookKind {
    /// May refuse the push as a whole, before any object is kept.
    PreReceive,
    /// Decides over each ref.
    ProcReceive,
}

impl HookKind {
    /// The name of the hook's file.
    pub fn as_str(self) -> &'static str {
        match self {
            HookKind::PreReceive => "pre-receive",
            HookKind::ProcReceive => "proc-receive",
        }
    }

    /// The hook of that name.
    pub fn named(name: &str) -> Option<HookKind> {
        [HookKind::PreReceive, HookKind::ProcReceive].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One ref that the push wants to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefChange {
    /// What it names now; zero if it does not exist.
    pub old: CommitId,
    /// What it shall name; zero to delete it.
    pub new: CommitId,
    /// Its full name.
    pub refname: String,
}

/// What a hook asks, as the daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRequest {
    /// Which hook.
    pub kind: HookKind,
    /// The refs to be changed.
    pub refs: Vec<RefChange>,
    /// The number of further refs, whose names larder does not accept. The hook refuses each of them by itself.
    pub bad_names: usize,
    /// The push options (`git push -o`), as given.
    pub options: Vec<String>,
    /// Whether the client wants all refs or none.
    pub atomic: bool,
    /// The directory below `objects/` in which git keeps the new objects until pre-receive has accepted them.
    pub quarantine: Option<String>,
    /// The recipes of the pushed branches, from pre-receive only, as far as they could be read and are not too large.
    pub recipes: Vec<(CommitId, RecipeFiles)>,
}

/// The fate of one ref.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Done: the daemon has moved the ref itself.
    Ok,
    /// Done, but under another name and perhaps from and to other ids; the client prints these.
    OkAs {
        /// The name under which it was stored.
        refname: String,
    },
    /// git shall move the ref itself, as without a hook.
    FallThrough,
    /// Refused; the reason appears in git's rejected line.
    Refused {
        /// One line.
        reason: String,
    },
}

/// From hook to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ClientFrame {
    /// First of all.
    Hello { version: u32, token: [u8; 16], kind: HookKind, atomic: bool, quarantine: Option<String> },
    /// Some of the refs.
    Refs(Vec<RefChange>),
    /// The number of refs whose names larder does not accept; they are not among the others.
    BadNames(usize),
    /// A push option.
    Option(String),
    /// The next part of a file of a commit's recipe.
    Recipe { commit: CommitId, file: RecipeFile, part: Vec<u8> },
    /// That was all.
    Go,
    /// The hook refuses the push as a whole, for this reason.
    Refuse(String),
}

/// From daemon to hook.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ServerFrame {
    /// A line for the person who pushes.
    Line(String),
    /// Nothing new, still at work.
    Beat,
    /// The fate of some refs.
    Verdicts(Vec<(String, Verdict)>),
    /// Everything has been said; for pre-receive: accepted.
    Done,
    /// For pre-receive: every ref will be refused, each with its own reason; nothing of the push need be kept.
    Discard,
    /// The push as a whole is refused.
    Refused(String),
}

/// Returns true for ref names that larder accepts. Other names are refused one by one; they do not concern the refs beside them.
pub(super) fn is_refname(name: &str) -> bool {
    name.len() <= REFNAME_LIMIT && name.starts_with("refs/") && !name.contains(|c: char| c.is_control() || c == ' ')
}

/// Writes one frame, blocking.
pub(super) fn write_frame<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    to.write_all(&encode(frame)?)?;
    to.flush()
}

/// Reads one frame, blocking.
pub(super) fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut body = vec![0; checked(length)?];
    from.read_exact(&mut body)?;
    postcard::from_bytes(&body).map_err(invalid)
}

/// Writes one frame.
pub(super) async fn send<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), frame: &T) -> io::Result<()> {
    to.write_all(&encode(frame)?).await?;
    to.flush().await
}

/// Reads one frame.
pub(super) async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await?;
    let mut body = vec![0; checked(length)?];
    from.read_exact(&mut body).await?;
    postcard::from_bytes(&body).map_err(invalid)
}

fn encode<T: Serialize>(frame: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(frame).map_err(invalid)?;
    let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= FRAME_LIMIT);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the frame is too long"))?;
    Ok([length.to_be_bytes().as_slice(), &body].concat())
}

/// Checked before anything is allocated.
fn checked(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
    }
    Ok(length)
}

fn invalid(error: postcard::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_four_gigabytes_is_refused_before_it_is_allocated() {
        let error = read_frame::<ServerFrame>(&mut [0xff, 0xff, 0xff, 0xff, 1].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_largest_chunk_fits_a_frame() {
        let id: CommitId = "a".repeat(64).parse().unwrap();
        let change = RefChange { old: id.clone(), new: id, refname: "r".repeat(REFNAME_LIMIT) };
        assert!(encode(&ClientFrame::Refs(vec![change; CHUNK])).is_ok());
        let verdict = Verdict::Refused { reason: "\u{2026}".repeat(200) };
        assert!(encode(&ServerFrame::Verdicts(vec![("r".repeat(REFNAME_LIMIT), verdict); CHUNK])).is_ok());
    }
}
