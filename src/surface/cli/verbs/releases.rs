//! `release`.

use clap::Subcommand;

use crate::{
    control::{CommandError, Request, Target},
    model::sanitise_reason,
};

/// What a release is, how two differ, which to keep.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "A release is named by its number (v42), a tag of its commit (v1.4.0), its id or the beginning of it, or its commit or the beginning of it. Where several are of one commit, the newest is meant. A name like v3 is always a number; refs/tags/v3 is the tag."
)]
pub enum Release {
    /// Show one release: commit, build, tag, digests, sizes, buildpacks, where it ran
    #[command(after_help = "Example: larder release show shop v42")]
    Show {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// The release; the live one where none is named
        #[arg(value_name = "RELEASE", value_parser = name)]
        release: Option<String>,
    },
    /// Show what differs between two releases: files with their sizes, and commits
    #[command(after_help = "Example: larder release diff shop v41 v42")]
    Diff {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// The older release
        #[arg(value_name = "FROM", value_parser = name)]
        from: String,
        /// The newer one; the live one where none is named
        #[arg(value_name = "TO", value_parser = name)]
        to: Option<String>,
    },
    /// Write a release with its proof to the standard output, in one file that another server can import
    #[command(after_help = "Example: larder release export shop v42 > shop-v42.tar")]
    Export {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// The release
        #[arg(value_name = "RELEASE", value_parser = name)]
        release: String,
    },
    /// Take a release from such a file, read from the standard input; nothing is deployed by that
    #[command(
        after_help = "Example: larder release import shop < shop-v42.tar\n\nAccepted is what is signed by a key that is trusted here: `larder key trust shop KEY`."
    )]
    Import {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
    },
    /// Keep a release, whatever the rules for pruning say
    Pin {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// The release
        #[arg(value_name = "RELEASE", value_parser = name)]
        release: String,
    },
    /// Let a pinned release be pruned like any other
    Unpin {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// The release
        #[arg(value_name = "RELEASE", value_parser = name)]
        release: String,
    },
}

/// Names go into messages; what could not be one of a release is refused here.
fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 250 || sanitise_reason(text) != text {
        return Err(String::from("this is not the name of a release; releases are v1, v2, ..."));
    }
    Ok(text.to_owned())
}

impl Release {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(match self {
            Release::Show { target, release } => Request::ReleaseShow { target, release },
            Release::Diff { target, from, to } => Request::ReleaseDiff { target, from, to },
            Release::Export { target, release } => Request::ReleaseExport { target, release },
            Release::Import { target } => Request::ReleaseImport { target },
            Release::Pin { target, release } => Request::ReleasePin { target, release, pinned: true },
            Release::Unpin { target, release } => Request::ReleasePin { target, release, pinned: false },
        })
    }
}
