//! The groups of commands in the help: what people do with larder. Help, docs/cli.md, completions and the manual page follow this order.

use std::fmt::Write as _;

use clap::builder::StyledStr;

use super::commands::GROUPS;

/// The title of commands that are in no group.
const OTHERS: &str = "Other commands";

/// Returns the visible commands of each group, in the order of the help.
fn grouped(cli: &clap::Command) -> Vec<(&'static str, Vec<&clap::Command>)> {
    let visible = || cli.get_subcommands().filter(|command| !command.is_hide_set());
    let is_other = |command: &&clap::Command| !GROUPS.iter().any(|(_, names)| names.contains(&command.get_name()));
    let named = |name: &&str| visible().find(|command| command.get_name() == *name);
    let groups = GROUPS.iter().map(|(title, names)| (*title, names.iter().filter_map(named).collect::<Vec<_>>()));
    let groups = groups.chain([(OTHERS, visible().filter(is_other).collect())]);
    groups.filter(|(_, commands)| !commands.is_empty()).collect()
}

/// Returns the grammar with the commands in groups in its help. The other parts of the grammar are unchanged.
pub(super) fn with_groups(mut cli: clap::Command) -> clap::Command {
    cli.build();
    let header = *cli.get_styles().get_header();
    let groups = grouped(&cli);
    let width =
        groups.iter().flat_map(|(_, commands)| commands).map(|command| command.get_name().len()).max().unwrap_or_default();
    let mut template = StyledStr::from("{about-with-newline}\n{usage-heading} {usage}\n\n");
    for (title, commands) in &groups {
        // The names have the same width in all groups, so that the descriptions are in one column.
        let row = |command: &&clap::Command| {
            let about = command.get_about().cloned().unwrap_or_default();
            clap::Command::new(format!("{:<width$}", command.get_name())).about(about)
        };
        let mut list = clap::Command::new("larder").disable_help_subcommand(true).help_template("{subcommands}");
        for (order, command) in commands.iter().enumerate() {
            list = list.subcommand(row(command).display_order(order));
        }
        let list = list.render_help().ansi().to_string();
        let _ = write!(template, "{header}{title}:{header:#}\n{}\n\n", list.trim_end());
    }
    let _ = write!(template, "{header}Everywhere:{header:#}\n{{options}}{{after-help}}");
    cli.help_template(template)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::surface::cli::Cli;

    #[test]
    fn each_command_is_in_exactly_one_group() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = command.get_name();
            let groups: Vec<_> = GROUPS.iter().filter(|(_, names)| names.contains(&name)).map(|(title, _)| title).collect();
            assert_eq!(groups.len(), 1, "add {name} to one group in src/surface/cli/commands/mod.rs: {groups:?}");
        }
        let known = |name: &&str| cli.find_subcommand(name).is_some_and(|command| !command.is_hide_set());
        let names = || GROUPS.iter().flat_map(|(_, names)| names.iter());
        assert_eq!(
            names().filter(|name| !known(name)).collect::<Vec<_>>(),
            Vec::<&&str>::new(),
            "a group has a command that does not exist"
        );
        let mut once: Vec<_> = names().collect();
        once.sort();
        assert!(once.windows(2).all(|pair| pair[0] != pair[1]), "{once:?}");
    }

    #[test]
    fn help_lists_each_command_once_below_the_title_of_its_group() {
        let mut cli = with_groups(Cli::command());
        for help in [cli.render_help().to_string(), cli.render_long_help().to_string()] {
            let mut found: Vec<(&str, &str)> = Vec::new();
            let mut title = "";
            for line in help.lines() {
                match line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
                    Some(heading) => title = heading,
                    None if title.is_empty() || title == "Everywhere" => {}
                    None => {
                        let name = line
                            .strip_prefix("  ")
                            .and_then(|line| line.split_whitespace().next().filter(|_| !line.starts_with(' ')));
                        found.extend(name.map(|name| (title, name)));
                    }
                }
            }
            let expected: Vec<_> = GROUPS.iter().flat_map(|(title, names)| names.iter().map(|name| (*title, *name))).collect();
            assert_eq!(found, expected, "{help}");
            assert!(help.contains("Usage: larder [OPTIONS] <COMMAND>") && help.contains("--remote <NAME>"), "{help}");
            assert!(help.contains("-V, --version") && !help.contains("\n\n\n") && !help.contains('{'), "{help}");
        }
    }
}
