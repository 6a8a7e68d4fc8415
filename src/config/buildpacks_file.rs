//! `.buildpacks`: one buildpack per line.

use super::{
    error::ConfigError,
    value::BuildpackRef,
    yaml::{self, Limits},
};

const FILE: &str = ".buildpacks";

/// Reads the file; all its problems are reported together.
pub fn parse(bytes: &[u8]) -> Result<Vec<BuildpackRef>, Vec<ConfigError>> {
    let text = yaml::utf8(FILE, bytes, Limits::RECIPE).map_err(|error| vec![error])?;
    let mut buildpacks = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.parse::<BuildpackRef>() {
            Ok(buildpack) => buildpacks.push(buildpack),
            Err(why) => problems.push(ConfigError::new(FILE, why).at_line(number).expected(BuildpackRef::EXPECTED)),
        }
        if buildpacks.len() > 32 || problems.len() >= 20 {
            problems.push(ConfigError::new(FILE, "there are too many lines").at_line(number).expected("at most 32 buildpacks"));
            break;
        }
    }
    if problems.is_empty() { Ok(buildpacks) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_buildpack() {
        assert_eq!(parse(b"# first\r\nnode\r\n\r\nheroku/python").unwrap().len(), 2);
        assert_eq!(parse(b"node\ngit@host:x\n").unwrap_err()[0].line, Some(2));
    }
}
