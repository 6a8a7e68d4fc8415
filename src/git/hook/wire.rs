//! The messages between a hook and the server. Each message is a frame: a length (4 bytes, big endian) and a postcard value.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{git::source::RecipeFiles, model::CommitId};

/// The version of the messages between hook and server. The server refuses a hook with another version.
pub const VERSION: u32 = 5;
/// The maximum size of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// The maximum number of refs in a push.
pub const MAX_REFS: usize = 2000;
/// The maximum length of a ref name, in bytes.
pub const MAX_REFNAME: usize = 512;
/// The maximum number of push options.
pub const MAX_OPTIONS: usize = 32;
/// The maximum length of a push option, in bytes.
pub const MAX_OPTION: usize = 1024;
/// The maximum number of refs or verdicts in one frame, so that no frame exceeds [`MAX_FRAME`].
pub const MAX_CHUNK: usize = 50;
/// The maximum size of a part of a recipe in one frame, in bytes.
pub const MAX_PART: usize = 32 * 1024;
/// The maximum number of pushed commits whose recipes are sent.
pub const MAX_RECIPE_COMMITS: usize = 4;
/// The maximum total size of the recipes of a push, in bytes.
pub const MAX_RECIPE_BYTES: usize = 1 << 20;

/// A file of the recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum RecipeFile {
    LarderYml,
    Procfile,
    AppJson,
    Buildpacks,
    PillarSample,
}

impl RecipeFile {
    /// All files of the recipe.
    pub(super) const ALL: [RecipeFile; 5] =
        [RecipeFile::LarderYml, RecipeFile::Procfile, RecipeFile::AppJson, RecipeFile::Buildpacks, RecipeFile::PillarSample];

    /// Returns the path of the file in the repository.
    pub(super) fn path(self) -> &'static str {
        match self {
            RecipeFile::LarderYml => "larder.yml",
            RecipeFile::Procfile => "Procfile",
            RecipeFile::AppJson => "app.json",
            RecipeFile::Buildpacks => ".buildpacks",
            RecipeFile::PillarSample => RecipeFiles::PILLAR_SAMPLE,
        }
    }

    /// Returns the field of `files` for this file.
    pub(super) fn of(self, files: &mut RecipeFiles) -> &mut Option<Vec<u8>> {
        match self {
            RecipeFile::LarderYml => &mut files.larder_yml,
            RecipeFile::Procfile => &mut files.procfile,
            RecipeFile::AppJson => &mut files.app_json,
            RecipeFile::Buildpacks => &mut files.buildpacks,
            RecipeFile::PillarSample => &mut files.pillar_sample,
        }
    }
}

/// The kind of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookKind {
    /// pre-receive, which can refuse a whole push before any object is kept.
    PreReceive,
    /// proc-receive, which accepts or refuses each ref.
    ProcReceive,
}

impl HookKind {
    /// Returns the file name of the hook.
    pub fn as_str(self) -> &'static str {
        match self {
            HookKind::PreReceive => "pre-receive",
            HookKind::ProcReceive => "proc-receive",
        }
    }

    /// Returns the hook with this file name.
    pub fn named(name: &str) -> Option<HookKind> {
        [HookKind::PreReceive, HookKind::ProcReceive].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// The change of one ref in a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefChange {
    /// The current value; the null id if the ref does not exist.
    pub old: CommitId,
    /// The requested value; the null id deletes the ref.
    pub new: CommitId,
    /// The full name of the ref.
    pub refname: String,
}

/// A complete request of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRequest {
    /// The hook that sends the request.
    pub kind: HookKind,
    /// The refs that the push changes.
    pub refs: Vec<RefChange>,
    /// The number of refs whose names larder does not accept. The hook refuses these refs itself.
    pub bad_names: usize,
    /// The push options (`git push -o`), unchanged.
    pub options: Vec<String>,
    /// True if the client requests an atomic push, which changes all refs or none.
    pub atomic: bool,
    /// The name of git's quarantine, the directory below `objects/` with the pushed objects that pre-receive has not accepted yet.
    pub quarantine: Option<String>,
    /// The recipes of at most [`MAX_RECIPE_COMMITS`] pushed branches, except unreadable and oversized recipes. Only pre-receive sends
    /// recipes.
    pub recipes: Vec<(CommitId, RecipeFiles)>,
}

/// The verdict on one ref.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefVerdict {
    /// The ref is accepted, and the server has moved the ref itself.
    Ok,
    /// The commit is accepted under another ref name, which the client prints.
    OkAs {
        /// The name under which the commit was stored.
        refname: String,
    },
    /// The ref is accepted, and git moves the ref itself, as without a hook.
    FallThrough,
    /// The ref is refused. The reason appears in git's rejected line.
    Refused {
        /// The reason, in one line.
        reason: String,
    },
}

/// A message from a hook to the server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ClientFrame {
    /// The first message.
    Hello { version: u32, token: [u8; 16], kind: HookKind, atomic: bool, quarantine: Option<String> },
    /// The next refs.
    Refs(Vec<RefChange>),
    /// The number of refs whose names larder does not accept. `Refs` does not contain these refs.
    BadNames(usize),
    /// A push option.
    Option(String),
    /// A commit whose recipe was read. The frames [`ClientFrame::Recipe`] with the content of its files follow.
    RecipeOf(CommitId),
    /// The next part of a recipe file.
    Recipe { commit: CommitId, file: RecipeFile, part: Vec<u8> },
    /// The end of the request.
    Go,
    /// The hook refuses the push as a whole, for this reason.
    Refuse(String),
}

/// A message from the server to a hook.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ServerFrame {
    /// A line for the pusher.
    Line(String),
    /// A heartbeat, which shows that the server still works on its answer.
    Beat,
    /// The verdicts on the next refs.
    Verdicts(Vec<(String, RefVerdict)>),
    /// The end of the answer. For pre-receive, this message means that the push is accepted.
    Done,
    /// The answer to pre-receive if proc-receive will refuse every ref with its own reason. The hook deletes the pushed objects.
    Discard,
    /// The whole push is refused, for this reason.
    Refused(String),
}

/// Returns true for ref names that larder accepts. A ref with another name is refused, and the other refs of the push are not affected.
pub(super) fn is_refname(name: &str) -> bool {
    name.len() <= MAX_REFNAME && name.starts_with("refs/") && !name.contains(|c: char| c.is_control() || c == ' ')
}

/// Writes one frame, and blocks the thread until the frame is written.
pub(super) fn write_frame<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    to.write_all(&encode(frame)?)?;
    to.flush()
}

/// Reads one frame, and blocks the thread until the frame has arrived.
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
    let length = u32::try_from(body.len()).ok().filter(|length| *length as usize <= MAX_FRAME);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the frame is too long"))?;
    Ok([length.to_be_bytes().as_slice(), &body].concat())
}

/// Checks the length of a frame before memory is allocated for it.
fn checked(length: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the frame has {length} bytes; at most {MAX_FRAME} are allowed"),
        ));
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
    fn oversized_frame_is_rejected_before_allocation() {
        let error = read_frame::<ServerFrame>(&mut [0xff, 0xff, 0xff, 0xff, 1].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn largest_chunk_fits_into_a_frame() {
        let id: CommitId = "a".repeat(64).parse().unwrap();
        let change = RefChange { old: id.clone(), new: id, refname: "r".repeat(MAX_REFNAME) };
        assert!(encode(&ClientFrame::Refs(vec![change; MAX_CHUNK])).is_ok());
        let verdict = RefVerdict::Refused { reason: "\u{2026}".repeat(200) };
        assert!(encode(&ServerFrame::Verdicts(vec![("r".repeat(MAX_REFNAME), verdict); MAX_CHUNK])).is_ok());
    }
}
