//! The only access decision.

use std::fmt;

use super::{
    error::{CommandError, Kind},
    registry::Registry,
};
use crate::model::{Access, ProjectName, UserName};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who may use the control socket on the server itself: root, or the account that larder runs as.
    Operator,
    /// Somebody whose SSH key was verified.
    User(UserName),
}

impl Caller {
    /// The name for records.
    pub fn name(&self) -> UserName {
        match self {
            Caller::User(name) => name.clone(),
            Caller::Operator => UserName::operator(),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

/// What `caller` may do with `project`, or, without one, with the server as a whole.
pub(super) fn access(registry: &Registry, caller: &Caller, project: Option<&ProjectName>) -> Access {
    let Caller::User(name) = caller else { return Access::Admin };
    let Some(user) = registry.user(name) else { return Access::None };
    if user.admin {
        return Access::Admin;
    }
    match project {
        Some(project) => user.access.get(project).copied().unwrap_or(Access::None),
        // Anybody known may ask the harmless questions; admin questions need more.
        None => Access::View,
    }
}

/// The same words for a project that does not exist and one that the caller may not see.
pub(super) fn refusal(caller: &Caller, project: Option<&ProjectName>, needed: Access, has: Access) -> CommandError {
    match project {
        Some(project) if has == Access::None => {
            CommandError::new(Kind::NotFound, format!("there is no project {project} that you may see"))
                .hint(format!("an administrator can run `larder user grant {caller} {project} push`"))
        }
        Some(project) => CommandError::new(
            Kind::Refused,
            format!("{caller} may not do this with {project}: it needs the right to {}", verb(needed)),
        )
        .hint(format!("an administrator can run `larder user grant {caller} {project} {}`", needed)),
        None => CommandError::new(Kind::Refused, format!("{caller} is not an administrator of this server")),
    }
}

fn verb(access: Access) -> &'static str {
    match access {
        Access::None | Access::View => "view it",
        Access::Push => "push to it",
        Access::Operate => "operate it",
        Access::Admin => "administer the server",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::User;

    fn registry() -> Registry {
        let user = |name: &str, admin, access: &[(&str, Access)]| User {
            name: name.parse().unwrap(),
            admin,
            keys: Vec::new(),
            access: access.iter().map(|(project, access)| (project.parse().unwrap(), *access)).collect(),
        };
        Registry { users: vec![user("ann", true, &[]), user("bob", false, &[("shop", Access::Push)])], ..Registry::default() }
    }

    #[test]
    fn rights_are_per_project_and_nobody_else_has_any() {
        let registry = registry();
        let shop = "shop".parse().unwrap();
        let blog = "blog".parse().unwrap();
        let of = |name: &str, project: Option<&ProjectName>| access(&registry, &Caller::User(name.parse().unwrap()), project);
        assert_eq!(of("ann", Some(&blog)), Access::Admin);
        assert_eq!(of("bob", Some(&shop)), Access::Push);
        assert_eq!(of("bob", Some(&blog)), Access::None);
        assert_eq!(of("eve", None), Access::None);
        assert_eq!(access(&registry, &Caller::Operator, None), Access::Admin);
    }

    #[test]
    fn a_hidden_project_reads_like_one_that_is_not_there() {
        let caller = Caller::User("bob".parse().unwrap());
        let error = refusal(&caller, Some(&"blog".parse().unwrap()), Access::View, Access::None);
        assert_eq!(error.kind, Kind::NotFound);
    }
}
