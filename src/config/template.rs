//! Templates of the recipe: files of the repository that are rendered with the values of the configuration before the processes start.

use serde::{Deserialize, Serialize};

use super::{
    error::shown,
    keys::{self, Fallback, KeyRow},
    reader::ConfigReader,
    value::RelativePath,
    yaml::Node,
};

/// The maximum number of templates of a project.
const MAX_TEMPLATES: usize = 64;
/// The suffix of a template whose target is not named.
const SUFFIX: &str = ".j2";
/// The mode of a rendered file.
const DEFAULT_MODE: u32 = 0o600;

/// A file that is rendered before the processes start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateSpec {
    /// The template, relative to the application's directory.
    pub from: RelativePath,
    /// The rendered file, relative to the application's directory.
    pub to: RelativePath,
    /// The mode of the rendered file.
    pub mode: u32,
}

/// The keys of one template in a recipe.
#[derive(Default)]
pub(super) struct TemplateDraft {
    from: Option<RelativePath>,
    to: Option<RelativePath>,
    mode: Option<u32>,
}

const PATH: &str = "a path inside the application, such as config/database.yml, of letters, digits and ._@+-/";

pub(super) const TEMPLATE_KEYS: &[KeyRow<TemplateDraft>] = &[
    KeyRow::value("from", "", Fallback::Unstated, "config/app.conf.j2", |reader, node, key, draft| {
        draft.from = reader.value(node, key, PATH, path);
    }),
    KeyRow::value("to", "", Fallback::Says("the path `from` without .j2"), "config/app.conf", |reader, node, key, draft| {
        draft.to = reader.value(node, key, PATH, path);
    }),
    KeyRow::value("owner", "", Fallback::Is("app"), "app", |reader, node, key, _| {
        if node.text() != Some("app") {
            reader.mismatch(node, key, "app, the user of the processes; a rendered file has no other owner");
        }
    }),
    KeyRow::value("mode", "", Fallback::Is("\"0600\""), "\"0600\"", |reader, node, key, draft| {
        draft.mode =
            reader.value(node, key, "an octal mode such as \"0600\" or \"0644\", readable by the owner, at most \"0755\"", mode);
    }),
];

/// Renders the example of `templates:` in the reference.
pub(super) fn templates_example() -> String {
    let second = keys::render(TEMPLATE_KEYS);
    let lines = second.lines().enumerate().map(|(at, line)| format!("{} {line}\n", if at == 0 { "-" } else { " " }));
    format!("- config/database.yml.j2\n{}", lines.collect::<String>())
}

/// Reads the list of templates.
pub(super) fn read_templates(reader: &mut ConfigReader, node: &Node, key: &str) -> Vec<TemplateSpec> {
    let mut all: Vec<TemplateSpec> = Vec::new();
    for item in reader.list_up_to(node, key, "[config/database.yml.j2]", MAX_TEMPLATES) {
        let mut draft = TemplateDraft::default();
        match item.text() {
            Some(_) => draft.from = reader.value(item, key, PATH, path),
            None => keys::read_section(
                reader,
                item,
                key,
                "{from: config/app.conf.j2, to: config/app.conf}",
                TEMPLATE_KEYS,
                &mut draft,
            ),
        }
        let Some(from) = draft.from else {
            if item.text().is_none() {
                reader.problem(item, format!("{key}: a template has no `from`")).hint =
                    Some("name the file of the template".to_owned());
            }
            continue;
        };
        let short = || from.as_str().strip_suffix(SUFFIX).and_then(|to| to.parse().ok());
        let Some(to) = draft.to.or_else(short) else {
            let problem = format!("{key}: {} has no `to`", shown(from.as_str()));
            reader.problem(item, problem).hint = Some(format!("add `to`, or let the name of the template end with {SUFFIX}"));
            continue;
        };
        if to == from || all.iter().any(|other| other.to == to) {
            reader.problem(item, format!("{key}: {} is written twice", shown(to.as_str()))).hint =
                Some("choose another `to`".to_owned());
            continue;
        }
        all.push(TemplateSpec { from, to, mode: draft.mode.unwrap_or(DEFAULT_MODE) });
    }
    all
}

/// Parses a path, which may begin with `/app/`. The characters have no meaning in patterns.
fn path(text: &str) -> Result<RelativePath, String> {
    let inside = text.strip_prefix("/app/").unwrap_or(text);
    if inside.starts_with('/') {
        return Err(format!("{} is outside of /app", shown(text)));
    }
    if !inside.bytes().all(|c| c.is_ascii_alphanumeric() || b"._@+-/".contains(&c)) {
        return Err(format!("{} has other characters", shown(text)));
    }
    inside.parse()
}

pub(super) fn mode(text: &str) -> Result<u32, String> {
    let wrong = || format!("{} is not allowed", shown(text));
    let digits = text.bytes().all(|c| (b'0'..=b'7').contains(&c)) && (3..=4).contains(&text.len());
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits).ok_or_else(wrong)?;
    if mode & !0o755 == 0 && mode & 0o400 != 0 { Ok(mode) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use crate::config::Recipe;

    fn templates(text: &str) -> Result<Vec<(String, String, u32)>, String> {
        let recipe = Recipe::parse(text.as_bytes());
        let recipe = recipe.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        let settings = recipe.for_environment(&"production".parse().unwrap());
        Ok(settings.templates.into_iter().map(|one| (one.from.to_string(), one.to.to_string(), one.mode)).collect())
    }

    #[test]
    fn short_and_long_forms_are_read() {
        let text = "templates:\n- config/a.yml.j2\n- {from: t/b, to: /app/b.conf, mode: \"0644\", owner: app}\n";
        let expected = [("config/a.yml.j2", "config/a.yml", 0o600), ("t/b", "b.conf", 0o644)];
        assert_eq!(templates(text).unwrap(), expected.map(|(from, to, mode)| (from.to_owned(), to.to_owned(), mode)));
    }

    #[test]
    fn template_that_writes_outside_or_with_a_dangerous_mode_is_refused() {
        for (item, why) in [
            ("{from: a.j2, to: ../x}", "\"..\" part"),
            ("{from: a.j2, to: /etc/passwd}", "outside of /app"),
            ("{from: a.j2, to: /app/../x}", "\"..\" part"),
            ("{from: a.j2, to: .git/config}", "reserved"),
            ("{from: a.j2, to: .larder/deploy}", "reserved"),
            ("{from: /etc/passwd, to: x}", "outside of /app"),
            ("{from: a.j2, to: \"x*\"}", "other characters"),
            ("{from: a.j2, mode: \"4755\"}", "\"4755\" is not allowed"),
            ("{from: a.j2, mode: \"0777\"}", "is not allowed"),
            ("{from: a.j2, mode: \"0044\"}", "is not allowed"),
            ("{from: a.j2, mode: rw}", "is not allowed"),
            ("{from: a.j2, owner: root}", "the user of the processes"),
            ("{to: a}", "has no `from`"),
            ("a.conf", "has no `to`"),
            ("{from: a, to: a}", "written twice"),
        ] {
            let error = templates(&format!("env: {{A: 1}}\ntemplates:\n- {item}\n")).unwrap_err();
            assert!(error.contains(why) && error.starts_with("larder.yml:3:"), "{item}: {error}");
        }
        assert!(templates("templates: [a.j2, {from: b, to: a}]\n").unwrap_err().contains("written twice"));
    }
}
