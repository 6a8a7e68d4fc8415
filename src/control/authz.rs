//! The access decision: the only code that determines the rights of a caller.

use std::fmt;

use super::{
    error::{CommandError, not_found, refused},
    registry::Registry,
};
use crate::model::{Access, ProjectName, UserName};

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A process that may use the control socket: root, or the account that larder runs as.
    Operator,
    /// A user whose SSH key was verified.
    User(UserName),
}

impl Caller {
    /// Returns the caller's name for records and logs.
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

/// Returns the right of `caller` on `project` or, without a project, on the server as a whole.
pub(super) fn access(registry: &Registry, caller: &Caller, project: Option<&ProjectName>) -> Access {
    let Caller::User(name) = caller else { return Access::Admin };
    let Some(user) = registry.user(name) else { return Access::None };
    if user.admin {
        return Access::Admin;
    }
    match project {
        Some(project) => user.access.get(project).copied().unwrap_or(Access::None),
        // Every known user may view the server's state. A change of the server needs the admin right.
        None => Access::View,
    }
}

/// Returns an error unless `caller` has the right `needed`.
pub(super) fn authorize(
    registry: &Registry,
    caller: &Caller,
    project: Option<&ProjectName>,
    needed: Access,
) -> Result<(), CommandError> {
    let has = access(registry, caller, project);
    if has >= needed { Ok(()) } else { Err(refusal(caller, project, needed, has)) }
}

/// Returns the error of a refused request. A project that does not exist and a project that the caller may not see give the same
/// text.
fn refusal(caller: &Caller, project: Option<&ProjectName>, needed: Access, has: Access) -> CommandError {
    match project {
        Some(project) if has == Access::None => not_found(format!("there is no project {project} that you may see"))
            .hint(format!("ask an administrator to run `larder user grant {caller} {project} push`")),
        Some(project) => refused(format!("{caller} may not {} {project}", verb(needed)))
            .hint(format!("ask an administrator to run `larder user grant {caller} {project} {needed}`")),
        None => refused(format!("{caller} is not an administrator of this server")),
    }
}

fn verb(access: Access) -> &'static str {
    match access {
        Access::None | Access::View => "view",
        Access::Push => "push to",
        Access::Operate => "operate",
        Access::Admin => "administer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{ErrorKind, User};

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
    fn rights_apply_per_project_and_unknown_users_have_none() {
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
    fn hidden_project_reads_like_missing_project() {
        let caller = Caller::User("bob".parse().unwrap());
        let error = authorize(&registry(), &caller, Some(&"blog".parse().unwrap()), Access::View).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    }
}
