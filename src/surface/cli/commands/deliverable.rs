//! The commands `larder deliverable ...`, which other servers run when they pull. The help does not list these commands.

use std::ops::Range;

use clap::{Subcommand, ValueEnum};

use super::{
    super::{
        command::{Asked, Asking, Command, Shown},
        text::{self, moment},
    },
    arguments::OnTarget,
};
use crate::{
    control::{CommandError, DeliverableGet, DeliverableInfo, DeliverableList, ErrorKind},
    model::{CommitId, ReleaseId, Target},
    remote::{Blob, Object, Offer},
};

/// List and read the releases that other servers may pull
#[derive(Debug, Subcommand)]
pub enum DeliverableVerb {
    List(DeliverableListArgs),
    Info(DeliverableInfoArgs),
    Get(DeliverableGetArgs),
}

impl DeliverableVerb {
    pub(in crate::surface::cli) async fn ask(self, asking: Asking<'_>) -> Result<Asked, CommandError> {
        match self {
            DeliverableVerb::List(command) => asking.ask(command).await,
            DeliverableVerb::Info(command) => asking.ask(command).await,
            DeliverableVerb::Get(command) => asking.ask(command).await,
        }
    }
}

/// List the releases that can be pulled, newest first
#[derive(Debug, clap::Args)]
pub struct DeliverableListArgs {
    #[command(flatten)]
    on: OnTarget,
}

impl Command for DeliverableListArgs {
    type Request = DeliverableList;

    fn request(self) -> Result<DeliverableList, CommandError> {
        Ok(DeliverableList { target: self.on.target })
    }

    fn show(rows: &Vec<Offer>) -> Shown {
        let line = |row: &Offer| {
            let number = row.number.map(|number| number.to_string()).unwrap_or_default();
            vec![
                row.environment.to_string(),
                format!("{number}{}", if row.live { " *" } else { "" }),
                row.commit.short().to_owned(),
                row.tag.clone().unwrap_or_default(),
                moment(row.created),
                format!("{} KiB", row.archive_bytes.div_ceil(1024)),
                row.release.to_string(),
            ]
        };
        let header = ["ENVIRONMENT", "RELEASE", "COMMIT", "TAG", "BUILT (UTC)", "ARCHIVE", "ID"];
        Shown::Page(text::table(&header, rows.iter().map(line).collect()))
    }
}

/// The arguments that name a file of a release.
#[derive(Debug, clap::Args)]
pub struct ObjectArgs {
    #[command(flatten)]
    on: OnTarget,
    /// Release: v42, a tag, a commit, or the id of the release
    release: String,
    /// File of the release
    #[arg(value_enum)]
    object: ObjectWord,
    /// For a delta: the id of the release that the delta starts from
    #[arg(long, value_name = "RELEASE")]
    from: Option<ReleaseId>,
}

/// A file of a release.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ObjectWord {
    /// The signed manifest
    Manifest,
    /// The archive, tar + zstd
    Archive,
    /// The health record of the release
    Health,
    /// The delta that turns an older release into this release
    Delta,
    /// The commit of the release, as a pack of git
    Pack,
}

impl ObjectArgs {
    fn parse(self) -> Result<(Target, String, Object), CommandError> {
        let object = match (self.object, self.from) {
            (ObjectWord::Delta, Some(from)) => Object::Delta { from },
            (ObjectWord::Delta, None) => {
                let error = CommandError::new(ErrorKind::Usage, "cannot make a delta: --from is missing");
                return Err(error.hint("name a release that you have: --from RELEASE"));
            }
            (_, Some(_)) => {
                return Err(CommandError::new(ErrorKind::Usage, "cannot use --from: only a delta starts from another release"));
            }
            (ObjectWord::Manifest, None) => Object::Manifest,
            (ObjectWord::Archive, None) => Object::Archive,
            (ObjectWord::Health, None) => Object::Health,
            (ObjectWord::Pack, None) => Object::Pack,
        };
        Ok((self.on.target, self.release, object))
    }
}

/// Print size and digest of a file of a release
#[derive(Debug, clap::Args)]
pub struct DeliverableInfoArgs {
    #[command(flatten)]
    object: ObjectArgs,
}

impl Command for DeliverableInfoArgs {
    type Request = DeliverableInfo;

    fn request(self) -> Result<DeliverableInfo, CommandError> {
        let (target, release, object) = self.object.parse()?;
        Ok(DeliverableInfo { target, release, object })
    }

    fn show(blob: &Blob) -> Shown {
        Shown::Page(format!("{} bytes, {}\n", blob.bytes, blob.digest))
    }
}

/// Write a file of a release, or parts of it, to the standard output
#[derive(Debug, clap::Args)]
pub struct DeliverableGetArgs {
    #[command(flatten)]
    object: ObjectArgs,
    /// Offset of the first byte
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "parts")]
    offset: u64,
    /// Write only these parts, in this order: OFFSET+LENGTH,...
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = part)]
    parts: Vec<Range<u64>>,
    /// For a pack: a commit that you have; may be repeated
    #[arg(long = "have", value_name = "COMMIT")]
    haves: Vec<CommitId>,
}

impl Command for DeliverableGetArgs {
    type Request = DeliverableGet;

    fn request(self) -> Result<DeliverableGet, CommandError> {
        let (target, release, object) = self.object.parse()?;
        let whole = || Vec::from([Range { start: self.offset, end: u64::MAX }]);
        let parts = if self.parts.is_empty() { whole() } else { self.parts };
        Ok(DeliverableGet { target, release, object, parts, haves: self.haves })
    }

    // The answer to this request is a stream of the file's bytes, so there is no view to show.
    fn show((): &()) -> Shown {
        Shown::Page(String::new())
    }
}

fn part(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not a part of a file; expected OFFSET+LENGTH");
    let (offset, length) = text.split_once('+').ok_or_else(wrong)?;
    let number =
        |digits: &str| digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|c| c.is_ascii_digit())).ok_or_else(wrong);
    let (offset, length) = (number(offset)?, number(length)?);
    Ok(offset..offset.checked_add(length).ok_or_else(wrong)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_is_offset_and_length() {
        assert_eq!(part("10+5"), Ok(10..15));
        for bad in ["", "10", "10-5", "+5", "10+", "+10+5", "18446744073709551615+1", "1+-1"] {
            assert!(part(bad).is_err(), "{bad}");
        }
    }
}
