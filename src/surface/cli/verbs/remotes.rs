//! `remote`, and what the other side asks: `deliverable`.

use std::ops::Range;

use clap::{Subcommand, ValueEnum};

use crate::{
    control::{CommandError, Kind, Request, Target},
    model::{CommitId, PublicKey, ReleaseId, RemoteName},
    remote::Object,
};

/// Other servers and shared places.
#[derive(Debug, Subcommand)]
pub enum Remote {
    /// Add a place that deliverables are pulled from, or published to
    #[command(
        after_help = "Without --host-key or --trust a larder server is only looked at: you see its keys and the command that trusts them.\n\nExamples:\n  larder remote add shop staging ssh://larder@staging.example.com:2222/shop/staging\n  larder remote add shop shared s3://deliverables/ours --trust ed25519:...\n  larder remote add shop/staging shared file:///srv/deliverables --publish"
    )]
    Add {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// What you call the place
        name: RemoteName,
        /// ssh://larder@HOST:PORT/PROJECT[/ENVIRONMENT], file:///DIRECTORY, https://HOST/PATH or s3://BUCKET/PREFIX
        url: String,
        /// A key whose deliverables are accepted from there, as `larder key show` prints it there; may be repeated
        #[arg(long, value_name = "KEY")]
        trust: Vec<PublicKey>,
        /// For ssh: the host key that it must show, as `ssh-ed25519 AAAA...`
        #[arg(long, value_name = "LINE")]
        host_key: Option<String>,
        /// Publish what this environment cooks there
        #[arg(long)]
        publish: bool,
    },
    /// List the places of an environment
    List {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
    },
    /// Forget a place; what was pulled from it stays
    Remove {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// Which
        name: RemoteName,
    },
    /// Try a place, and say what works
    Check {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
        /// Which
        name: RemoteName,
    },
}

impl Remote {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(match self {
            Remote::Add { target, name, url, trust, host_key, publish } => {
                Request::RemoteAdd { target, name, url, host_key, trust, publish }
            }
            Remote::List { target } => Request::RemoteList { target },
            Remote::Remove { target, name } => Request::RemoteRemove { target, name },
            Remote::Check { target, name } => Request::RemoteCheck { target, name },
        })
    }
}

/// What other servers pull.
#[derive(Debug, Subcommand)]
pub enum Deliverable {
    /// List the releases that can be pulled, newest first
    List {
        /// The project, or PROJECT/ENVIRONMENT
        #[arg(value_name = "PROJECT")]
        target: Target,
    },
    /// Print size and digest of a file of a release
    Info {
        #[command(flatten)]
        which: Which,
    },
    /// Write a file of a release, or parts of it, to the standard output
    Get {
        #[command(flatten)]
        which: Which,
        /// Begin here, in bytes
        #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "parts")]
        offset: u64,
        /// Only these parts, one after another: OFFSET+LENGTH,...
        #[arg(long, value_name = "PARTS", value_delimiter = ',', value_parser = part)]
        parts: Vec<Range<u64>>,
        /// For a pack: a commit that you have; may be repeated
        #[arg(long = "have", value_name = "COMMIT")]
        haves: Vec<CommitId>,
    },
}

/// A file of a release.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The project, or PROJECT/ENVIRONMENT
    #[arg(value_name = "PROJECT")]
    target: Target,
    /// v42, a tag, a commit, or the release's id
    release: String,
    /// Which of its files
    #[arg(value_enum)]
    object: ObjectWord,
    /// For a delta: the release that it starts from, by its id
    #[arg(long, value_name = "RELEASE")]
    from: Option<ReleaseId>,
}

/// A file of a release.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ObjectWord {
    /// What it consists of, signed
    Manifest,
    /// Its files, tar + zstd
    Archive,
    /// What it went through where it ran
    Health,
    /// What turns an older release into it
    Delta,
    /// Its commit, as a pack of git
    Pack,
}

fn part(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("{text:?} is not OFFSET+LENGTH");
    let (offset, length) = text.split_once('+').ok_or_else(wrong)?;
    let number =
        |digits: &str| digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|c| c.is_ascii_digit())).ok_or_else(wrong);
    let (offset, length) = (number(offset)?, number(length)?);
    Ok(offset..offset.checked_add(length).ok_or_else(wrong)?)
}

impl Which {
    fn parse(self) -> Result<(Target, String, Object), CommandError> {
        let object = match (self.object, self.from) {
            (ObjectWord::Delta, Some(from)) => Object::Delta { from },
            (ObjectWord::Delta, None) => {
                return Err(
                    CommandError::new(Kind::Usage, "a delta starts from a release that you have").hint("name it: --from RELEASE")
                );
            }
            (_, Some(_)) => return Err(CommandError::new(Kind::Usage, "--from goes with a delta only")),
            (ObjectWord::Manifest, None) => Object::Manifest,
            (ObjectWord::Archive, None) => Object::Archive,
            (ObjectWord::Health, None) => Object::Health,
            (ObjectWord::Pack, None) => Object::Pack,
        };
        Ok((self.target, self.release, object))
    }
}

impl Deliverable {
    pub(super) fn request(self) -> Result<Request, CommandError> {
        Ok(match self {
            Deliverable::List { target } => Request::DeliverableList { target },
            Deliverable::Info { which } => {
                let (target, release, object) = which.parse()?;
                Request::DeliverableInfo { target, release, object }
            }
            Deliverable::Get { which, offset, parts, haves } => {
                let (target, release, object) = which.parse()?;
                let parts = if parts.is_empty() { Vec::from([std::ops::Range { start: offset, end: u64::MAX }]) } else { parts };
                Request::DeliverableGet { target, release, object, parts, haves }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_offset_and_length() {
        assert_eq!(part("10+5"), Ok(10..15));
        for bad in ["", "10", "10-5", "+5", "10+", "+10+5", "18446744073709551615+1", "1+-1"] {
            assert!(part(bad).is_err(), "{bad}");
        }
    }
}
