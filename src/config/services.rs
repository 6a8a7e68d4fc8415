//! The section `services:` of the server file: the units of systemd that deployments in place may stop and start.

use std::path::{Path, PathBuf};

use super::{
    keys::{
        Fallback::{Is, Says},
        KeyRow,
    },
    reader::ConfigReader,
    yaml::Node,
};
use crate::model::{ProjectName, UnitName};

/// The program if the server file names no other program.
const SYSTEMCTL: &str = "/usr/bin/systemctl";

/// The directory that exists while systemd manages the machine (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// The units that the operator allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicesConfig {
    /// The program that stops and starts units; `None` for `/usr/bin/systemctl`.
    pub systemctl: Option<PathBuf>,
    /// The units of each project.
    pub units: Vec<(ProjectName, UnitName)>,
}

impl ServicesConfig {
    /// Returns the path of the program.
    pub fn program(&self) -> PathBuf {
        self.systemctl.clone().unwrap_or_else(|| PathBuf::from(SYSTEMCTL))
    }

    /// Returns the reason why a project cannot use a unit, or `None`.
    pub fn obstacle(&self, project: &ProjectName, unit: &UnitName) -> Option<String> {
        if !self.units.iter().any(|(of, allowed)| of == project && allowed == unit) {
            return Some(format!("the server file does not allow {unit} for {project}"));
        }
        if self.systemctl.is_none() && !Path::new(BOOTED).is_dir() {
            return Some(format!("systemd does not run on this machine ({BOOTED} does not exist)"));
        }
        let program = self.program();
        (!program.is_file()).then(|| format!("{} does not exist", program.display()))
    }
}

/// The keys of the section.
pub(super) const SERVICES_KEYS: &[KeyRow<ServicesConfig>] = &[
    KeyRow::value(
        "systemctl",
        "The absolute path of the program that stops and starts units. larder runs it as root, as `PROGRAM stop -- UNIT` and `PROGRAM start -- UNIT`.",
        Is("/usr/bin/systemctl"),
        "/usr/bin/systemctl",
        |reader, node, key, services| {
            services.systemctl = reader.value(node, key, "an absolute path", |text| match PathBuf::from(text) {
                path if path.is_absolute() => Ok(path),
                _ => Err(format!("{text:?} is not an absolute path")),
            });
        },
    ),
    KeyRow::value(
        "units",
        "The units that `services:` in the recipe of a project may list. Restart larder after a change.",
        Says("none"),
        "\nshop: [shop-index.service]",
        |reader, node, key, services| services.units = read_units(reader, node, key),
    ),
];

/// Reads the units of a recipe.
pub(super) fn read_services(reader: &mut ConfigReader<'_>, node: &Node, key: &str) -> Vec<UnitName> {
    reader.items(node, key, "[shop-index.service]", |reader, node| {
        let parse = |text: &str| text.parse::<UnitName>().map_err(|error| error.to_string());
        reader.value(node, key, "a unit such as shop-index.service", parse)
    })
}

fn read_units(reader: &mut ConfigReader<'_>, node: &Node, key: &str) -> Vec<(ProjectName, UnitName)> {
    let mut units = Vec::new();
    for (name, at, list) in reader.pairs(node, key, "a mapping such as {shop: [shop-index.service]}") {
        let project =
            reader.value(at, key, "the name of a project", |_| name.parse::<ProjectName>().map_err(|error| error.to_string()));
        let listed = read_services(reader, list, &format!("{key}.{name}"));
        if let Some(project) = project {
            units.extend(listed.into_iter().map(|unit| (project.clone(), unit)));
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_is_allowed_only_for_its_project_and_with_a_program() {
        let project = |name: &str| name.parse::<ProjectName>().unwrap();
        let unit = |name: &str| name.parse::<UnitName>().unwrap();
        let mut services =
            ServicesConfig { systemctl: Some("/bin/sh".into()), units: vec![(project("shop"), unit("index.service"))] };
        assert_eq!(services.obstacle(&project("shop"), &unit("index.service")), None);
        let other = services.obstacle(&project("blog"), &unit("index.service")).unwrap();
        assert_eq!(other, "the server file does not allow index.service for blog");
        services.systemctl = Some("/missing/systemctl".into());
        assert_eq!(services.obstacle(&project("shop"), &unit("index.service")).unwrap(), "/missing/systemctl does not exist");
        for name in ["-x.service", "a/b.service", "shop", ".service", "a b.service", "*.service"] {
            assert!(name.parse::<UnitName>().is_err(), "{name}");
        }
    }
}
