//! The command `larder whoami`, which shows the caller's name and rights.

use super::{
    super::{
        command::{Command, Shown},
        text,
    },
    key::described_key,
};
use crate::control::{self, CommandError, WhoamiView};

/// Show your user name, your key, and your rights on projects and environments
#[derive(Debug, clap::Args)]
pub struct WhoamiArgs {}

impl Command for WhoamiArgs {
    type Request = control::Whoami;

    fn request(self) -> Result<control::Whoami, CommandError> {
        Ok(control::Whoami)
    }

    fn show(view: &WhoamiView) -> Shown {
        let rights = view.access.iter().map(|(target, access)| vec![target.to_string(), access.to_string()]);
        let rights =
            rights.chain(view.pillars.iter().map(|project| vec![format!("{project}/pillar"), String::from("read and push")]));
        let key = view.key.as_ref().map_or_else(String::new, |key| {
            let name = key.limits.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
            let limits = Some(described_key(key)).filter(|limits| !limits.is_empty());
            let certificate = key
                .certificate
                .as_ref()
                .map(|one| format!(", certificate {:?} serial {} of the authority {}", one.id, one.serial, one.authority));
            let limits = limits.map(|limits| format!(" ({limits})"));
            format!("key{name} {}{}{}\n", key.fingerprint, certificate.unwrap_or_default(), limits.unwrap_or_default())
        });
        Shown::Page(format!("{}\n{key}{}", view.name, text::table(&["PROJECT", "RIGHT"], rights.collect())))
    }
}
