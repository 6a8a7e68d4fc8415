//! The access decision: the only code that determines the rights of a caller.
//!
//! A request states its [`Needs`]: a [`Scope`], and the right that the caller needs on it. [`authorize`] answers the question whether the
//! caller has this right.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;

use super::{
    authorities::holder,
    error::{CommandError, no_destination, no_environment, not_found, refused, several_environments},
    login::{KeyScope, Login},
    registry::{Registry, User},
};
use crate::model::{Access, Environment, EnvironmentName, Mode, Project, ProjectName, Target, UserName};

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A process that may use the control socket: root, or the account that larder runs as.
    Operator,
    /// A user who has logged in.
    User(Login),
}

impl Caller {
    /// Returns the caller's name for records and logs.
    pub fn name(&self) -> UserName {
        match self {
            Caller::User(login) => login.user.clone(),
            Caller::Operator => UserName::operator(),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

/// The object on which a request needs a right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The server as a whole.
    Server,
    /// A project. The right to view one environment includes the right to view the project; a greater right must be on the project itself.
    Project(ProjectName),
    /// The repository of a project. The right on one environment suffices, because each pushed ref is checked again.
    Repository(ProjectName),
    /// The pillar of a project. The right on the pillar is needed on the project and on each of its environments, because the pillar has the
    /// values of all environments.
    Pillar(ProjectName),
    /// An environment; the project's default environment if the target names none.
    Environment(Target),
    /// An environment; if the target names none, the project's environment of this mode, or else its default environment.
    OfMode(Target, Mode),
    /// The source and the destination of a promotion. The source needs the right to view, and the destination needs the stated right. A
    /// destination on another server counts as part of the source.
    Promotion {
        /// The environment that cooked the release.
        from: Target,
        /// A remote of this environment, or another environment of the project.
        to: String,
    },
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Server => f.write_str("server"),
            Scope::Project(project) | Scope::Repository(project) => project.fmt(f),
            Scope::Pillar(project) => write!(f, "{project}/pillar"),
            Scope::Environment(target) | Scope::OfMode(target, _) => target.fmt(f),
            Scope::Promotion { from, to } => write!(f, "{from} to {to}"),
        }
    }
}

/// The right that a request needs, and the object of this right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The object.
    pub scope: Scope,
    /// The right.
    pub right: Access,
}

impl Needs {
    /// Creates the need of a right on the server as a whole.
    pub fn server(right: Access) -> Needs {
        Needs { scope: Scope::Server, right }
    }

    /// Creates the need of a right on a project.
    pub fn project(project: &ProjectName, right: Access) -> Needs {
        Needs { scope: Scope::Project(project.clone()), right }
    }

    /// Creates the need of a right on the repository of a project.
    pub fn repository(project: &ProjectName, right: Access) -> Needs {
        Needs { scope: Scope::Repository(project.clone()), right }
    }

    /// Creates the need of the right on the pillar of a project.
    pub fn pillar(project: &ProjectName) -> Needs {
        Needs { scope: Scope::Pillar(project.clone()), right: Access::View }
    }

    /// Creates the need of a right on an environment.
    pub fn environment(target: &Target, right: Access) -> Needs {
        Needs { scope: Scope::Environment(target.clone()), right }
    }

    /// Creates the need of a right on the environment that a target and a mode name.
    pub fn of_mode(target: &Target, mode: Mode, right: Access) -> Needs {
        Needs { scope: Scope::OfMode(target.clone(), mode), right }
    }

    /// Creates the need of a right on the objects that `target` names: its environment, or else all environments of the project that the
    /// caller may see.
    pub fn parts(target: &Target, right: Access) -> Needs {
        match target.environment {
            Some(_) => Needs::environment(target, right),
            None => Needs::project(&target.project, right),
        }
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right = self.right;
        match &self.scope {
            Scope::Server => write!(f, "{right} on the server"),
            Scope::Project(_) => write!(f, "{right} on the project"),
            Scope::Pillar(_) => f.write_str("pillar on the project and on all its environments"),
            Scope::Repository(_) => write!(f, "{right} on an environment of the project"),
            Scope::Environment(_) | Scope::OfMode(..) => write!(f, "{right} on the environment"),
            Scope::Promotion { .. } => write!(f, "view on the source, {right} on the destination"),
        }
    }
}

/// The rights of a caller.
struct Rights<'a> {
    holder: Holder<'a>,
    registry: &'a Registry,
    /// The object to which the key of the login is restricted.
    only: Option<&'a KeyScope>,
}

/// The holder of rights.
enum Holder<'a> {
    /// The operator, or an administrator of the server, who has every right.
    All,
    /// A user.
    User(&'a User),
    /// A login that is not valid, for example because its user or key was removed or has expired.
    Nobody,
}

impl<'a> Rights<'a> {
    fn of(registry: &'a Registry, caller: &Caller) -> Rights<'a> {
        let nothing = Rights { holder: Holder::Nobody, registry, only: None };
        let Caller::User(Login { user, key, source, certificate }) = caller else {
            return Rights { holder: Holder::All, ..nothing };
        };
        let now = Timestamp::now();
        if let Some(certificate) = certificate {
            return match holder(registry, certificate, now, *source) {
                Ok((known, authority)) if known.name == *user => {
                    Rights { only: authority.limits.only.as_ref(), ..Rights::of_user(registry, known) }
                }
                _ => nothing,
            };
        }
        let Some(user) = registry.user(user) else { return nothing };
        match user.keys.iter().find(|known| known.fingerprint == *key) {
            Some(key) if key.limits.refusal(now, *source).is_none() => {
                Rights { only: key.limits.only.as_ref(), ..Rights::of_user(registry, user) }
            }
            _ => nothing,
        }
    }

    /// Returns the rights of a user with an unrestricted key.
    fn of_user(registry: &'a Registry, user: &'a User) -> Rights<'a> {
        Rights { holder: if user.admin { Holder::All } else { Holder::User(user) }, registry, only: None }
    }

    /// Returns the right on the server as a whole. Every known user may view the server's state.
    fn on_server(&self) -> Access {
        match (&self.holder, self.only) {
            (Holder::Nobody, _) => Access::None,
            (Holder::All, None) => Access::Admin,
            (Holder::All | Holder::User(_), _) => Access::View,
        }
    }

    /// Returns the right on a project itself, which counts for each environment without a right of its own.
    fn on_project(&self, project: &ProjectName) -> Access {
        let target = Target { project: project.clone(), environment: None };
        self.restricted(&target, self.unrestricted(&target))
    }

    /// Returns the right on an environment, which may not exist.
    fn on_environment(&self, project: &ProjectName, environment: &EnvironmentName) -> Access {
        let target = Target { project: project.clone(), environment: Some(environment.clone()) };
        self.restricted(&target, self.unrestricted(&target))
    }

    /// Returns the greatest right on a project or one of its environments.
    fn on_any_part(&self, project: &ProjectName) -> Access {
        let known = self.registry.project(project).into_iter().flat_map(|project| &project.environments);
        let parts = known.map(|one| self.on_environment(project, &one.name));
        parts.chain([self.on_project(project)]).max().unwrap_or(Access::None)
    }

    /// Returns the right that the holder has on an object: a right of its own, or else the greatest right of its groups.
    fn unrestricted(&self, target: &Target) -> Access {
        let user = match self.holder {
            Holder::All => return Access::Admin,
            Holder::Nobody => return Access::None,
            Holder::User(user) => user,
        };
        let whole = Target { project: target.project.clone(), environment: None };
        let of = |rights: &BTreeMap<Target, Access>| rights.get(target).or_else(|| rights.get(&whole)).copied();
        let groups = self.registry.groups.iter().filter(|group| group.members.contains(&user.name));
        let of_groups = || groups.filter_map(|group| of(&group.access)).max();
        of(&user.access).or_else(of_groups).unwrap_or(Access::None)
    }

    /// Returns true if the caller has the right on the pillar for a project itself or for an environment. The right is independent of the
    /// rights on the code; only administrators of the object have it without a grant.
    fn on_pillar(&self, target: &Target) -> bool {
        let user = match self.holder {
            Holder::All => None,
            Holder::Nobody => return false,
            Holder::User(user) => Some(user),
        };
        let whole = Target { project: target.project.clone(), environment: None };
        let of = |rights: &BTreeMap<Target, bool>| rights.get(target).or_else(|| rights.get(&whole)).copied();
        let has = user.is_none_or(|user| {
            let groups = self.registry.groups.iter().filter(|group| group.members.contains(&user.name));
            let of_groups = || groups.filter_map(|group| of(&group.pillar)).any(|has| has);
            self.unrestricted(target) == Access::Admin || of(&user.pillar).unwrap_or_else(of_groups)
        });
        // A restricted key, such as the key of a CI system, has the right only if the key may also run commands, which can print values.
        has && self.restricted(target, Access::Admin) >= if self.only.is_some() { Access::Operate } else { Access::View }
    }

    /// Returns true if the caller may read and push the pillar of a project.
    fn on_whole_pillar(&self, project: &ProjectName) -> bool {
        let environments = self.registry.project(project).into_iter().flat_map(|project| &project.environments);
        let whole = Target { project: project.clone(), environment: None };
        self.on_pillar(&whole) && environments.into_iter().all(|one| self.on_pillar(&Target::from(one)))
    }

    /// Returns the part of a right on an object that the key of the login permits.
    fn restricted(&self, target: &Target, right: Access) -> Access {
        match self.only {
            None => right,
            Some(KeyScope { on, right: greatest }) => {
                let covers = on.project == target.project && (on.environment.is_none() || on.environment == target.environment);
                if covers { right.min(*greatest) } else { Access::None }
            }
        }
    }
}

/// Returns the right of `caller` on a project itself.
pub(super) fn on_project(registry: &Registry, caller: &Caller, project: &ProjectName) -> Access {
    Rights::of(registry, caller).on_project(project)
}

/// Returns the right of a user on an object, without the limits of a key.
pub(super) fn of_user(registry: &Registry, name: &UserName, target: &Target) -> Access {
    registry.user(name).map_or(Access::None, |user| Rights::of_user(registry, user).unrestricted(target))
}

/// Returns true if a user has the right on the pillar for an environment, without the limits of a key.
pub(super) fn pillar_of_user(registry: &Registry, name: &UserName, target: &Target) -> bool {
    registry.user(name).is_some_and(|user| Rights::of_user(registry, user).on_pillar(target))
}

/// Returns true if `caller` has the right on the pillar for an environment.
pub(super) fn on_pillar(registry: &Registry, caller: &Caller, environment: &Environment) -> bool {
    Rights::of(registry, caller).on_pillar(&Target::from(environment))
}

/// Returns the right of `caller` on an environment.
pub(super) fn on_environment(registry: &Registry, caller: &Caller, environment: &Environment) -> Access {
    Rights::of(registry, caller).on_environment(&environment.project, &environment.name)
}

/// Returns the project with the environments that `caller` may view, or `None` if the caller may not view the project.
pub(super) fn visible(registry: &Registry, caller: &Caller, project: &Project) -> Option<Project> {
    let rights = Rights::of(registry, caller);
    if rights.on_any_part(&project.name) < Access::View {
        return None;
    }
    let mut visible = project.clone();
    visible.environments.retain(|one| rights.on_environment(&one.project, &one.name) >= Access::View);
    Some(visible)
}

/// Returns true if `caller` may view every environment of the project, and therefore figures that concern all of them together.
pub(super) fn sees_all(registry: &Registry, caller: &Caller, project: &ProjectName) -> bool {
    let rights = Rights::of(registry, caller);
    let mut environments = registry.project(project).into_iter().flat_map(|project| &project.environments);
    environments.all(|one| rights.on_environment(project, &one.name) >= Access::View)
}

/// Returns an error unless `caller` has the rights that `needs` states. An object that the caller may not view and an object that does
/// not exist give the same error, and neither the words nor the work of the check tell the two apart.
pub(super) fn authorize(registry: &Registry, caller: &Caller, needs: &Needs) -> Result<(), CommandError> {
    let check = Check { registry, caller, rights: Rights::of(registry, caller), needed: needs.right };
    match &needs.scope {
        Scope::Server if check.rights.on_server() >= needs.right => Ok(()),
        Scope::Server => Err(refused(format!("{caller} is not an administrator of this server"))),
        Scope::Project(project) => {
            check.sees(project)?;
            match needs.right {
                Access::None | Access::View => Ok(()),
                _ => check.has(check.rights.on_project(project), &Target { project: project.clone(), environment: None }),
            }
        }
        Scope::Repository(project) => {
            check.sees(project)?;
            check.has(check.rights.on_any_part(project), &Target { project: project.clone(), environment: None })
        }
        Scope::Pillar(project) => {
            check.sees(project)?;
            match check.rights.on_whole_pillar(project) {
                true => Ok(()),
                false => Err(refused(format!("{caller} may neither read nor push the pillar of {project}"))
                    .hint(format!("ask an administrator to run `larder user grant {caller} {project} pillar`"))),
            }
        }
        Scope::Environment(target) => check.environment(target, None).map(drop),
        Scope::OfMode(target, mode) => check.environment(target, Some(*mode)).map(drop),
        Scope::Promotion { from, to } => check.promotion(from, to),
    }
}

/// The check of one request.
struct Check<'a> {
    registry: &'a Registry,
    caller: &'a Caller,
    rights: Rights<'a>,
    needed: Access,
}

impl<'a> Check<'a> {
    /// Returns an error if the caller may view no part of the project.
    fn sees(&self, project: &ProjectName) -> Result<(), CommandError> {
        if self.rights.on_any_part(project) >= Access::View {
            return Ok(());
        }
        Err(not_found(format!("there is no project {project} that you may see"))
            .hint(format!("ask an administrator to run `larder user grant {} {project} view`", self.caller)))
    }

    fn has(&self, has: Access, target: &Target) -> Result<(), CommandError> {
        let (caller, needed) = (self.caller, self.needed);
        if has >= needed {
            return Ok(());
        }
        Err(refused(format!("{caller} may not {} {target}", verb(needed)))
            .hint(format!("ask an administrator to run `larder user grant {caller} {target} {needed}`")))
    }

    /// Returns the environment that a target and a mode name, if the caller has the needed right on the environment. Returns `None` if the
    /// project does not exist; the request itself then reports the missing project, because only an administrator gets here.
    fn environment(&self, target: &Target, mode: Option<Mode>) -> Result<Option<&'a Environment>, CommandError> {
        self.sees(&target.project)?;
        let Some(project) = self.registry.project(&target.project) else { return Ok(None) };
        let mut candidates = match mode {
            Some(mode) => self.registry.environments_of_mode(target, mode),
            None => self.registry.environment(target).into_iter().collect(),
        };
        candidates.retain(|one| self.on(one) >= Access::View);
        match candidates.as_slice() {
            [] => Err(no_environment(&self.visible(project), target)),
            [one] => {
                self.has(self.on(one), &Target::from(*one))?;
                Ok(Some(one))
            }
            several => Err(several_environments(target, mode, several)),
        }
    }

    fn promotion(&self, from: &Target, to: &str) -> Result<(), CommandError> {
        let source = Check {
            registry: self.registry,
            caller: self.caller,
            rights: Rights::of(self.registry, self.caller),
            needed: Access::View,
        };
        let Some(source) = source.environment(from, Some(Mode::Cooking))? else { return Ok(()) };
        if source.remotes.iter().any(|remote| remote.name.as_str() == to) {
            return self.has(self.on(source), &Target::from(source));
        }
        let siblings = self.registry.project(&source.project).into_iter().flat_map(|project| &project.environments);
        let sibling = siblings.into_iter().find(|one| one.name.as_str() == to && self.on(one) >= Access::View);
        let sibling = sibling.ok_or_else(|| no_destination(source, to))?;
        self.has(self.on(sibling), &Target::from(sibling))
    }

    fn on(&self, environment: &Environment) -> Access {
        self.rights.on_environment(&environment.project, &environment.name)
    }

    fn visible(&self, project: &Project) -> Project {
        let mut visible = project.clone();
        visible.environments.retain(|one| self.on(one) >= Access::View);
        visible
    }
}

fn verb(access: Access) -> &'static str {
    match access {
        Access::None | Access::View => "view",
        Access::Push => "push to",
        Access::Deploy => "deploy to",
        Access::Operate => "operate",
        Access::Admin => "administer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        ErrorKind,
        login::{Key, KeyLimits},
        registry::Group,
    };

    const RIGHTS: [Access; 6] = [Access::None, Access::View, Access::Push, Access::Deploy, Access::Operate, Access::Admin];

    fn environment(project: &str, name: &str, mode: Mode, default: bool) -> Environment {
        let (project, name) = (project.parse().unwrap(), name.parse().unwrap());
        Environment { project, name, mode, default, ..Environment::of_shop("x", "main") }
    }

    /// Creates a registry with the projects `shop` (production, staging) and `blog`, and with the user `bob`.
    fn registry(access: &[(&str, Access)]) -> Registry {
        let user = |name: &str, admin, access: &[(&str, Access)]| User {
            name: name.parse().unwrap(),
            admin,
            keys: vec![key(name, KeyLimits::default())],
            access: access.iter().map(|(target, access)| (target.parse().unwrap(), *access)).collect(),
            pillar: BTreeMap::new(),
        };
        let project = |name: &str, environments: Vec<Environment>| Project {
            id: crate::model::ProjectId(1),
            name: name.parse().unwrap(),
            environments,
            space_limit: None,
            storage: None,
        };
        let shop =
            vec![environment("shop", "production", Mode::Final, true), environment("shop", "staging", Mode::Cooking, false)];
        let blog = vec![environment("blog", "production", Mode::Cooking, true)];
        Registry {
            users: vec![user("ann", true, &[]), user("bob", false, access)],
            projects: vec![project("shop", shop), project("blog", blog)],
            ..Registry::default()
        }
    }

    fn key(name: &str, limits: KeyLimits) -> Key {
        Key { fingerprint: format!("SHA256:{name}"), line: String::new(), limits }
    }

    fn login(name: &str) -> Caller {
        let (key, source) = (format!("SHA256:{name}"), "192.0.2.1".parse().unwrap());
        Caller::User(Login { user: name.parse().unwrap(), key, source, certificate: None })
    }

    fn bob() -> Caller {
        login("bob")
    }

    fn may(registry: &Registry, needs: &Needs) -> Result<(), CommandError> {
        authorize(registry, &bob(), needs)
    }

    #[test]
    fn right_on_the_project_counts_for_environments_without_a_right_of_their_own() {
        for on_project in RIGHTS {
            for on_staging in RIGHTS.map(Some).into_iter().chain([None]) {
                let mut access = vec![("shop", on_project)];
                access.extend(on_staging.map(|right| ("shop/staging", right)));
                let registry = registry(&access);
                for needed in [Access::View, Access::Push, Access::Deploy, Access::Operate, Access::Admin] {
                    let on = |target: &str| may(&registry, &Needs::environment(&target.parse().unwrap(), needed)).is_ok();
                    assert_eq!(on("shop/staging"), on_staging.unwrap_or(on_project) >= needed, "{access:?} {needed}");
                    assert_eq!(on("shop/production"), on_project >= needed, "{access:?} {needed}");
                    // A target without an environment means the default environment.
                    assert_eq!(on("shop"), on_project >= needed, "{access:?} {needed}");
                    assert!(!on("blog") && !on("blog/production"), "{access:?} {needed}");
                }
            }
        }
    }

    #[test]
    fn hidden_object_reads_like_missing_object() {
        let registry = registry(&[("shop/staging", Access::Admin)]);
        for needed in [Access::View, Access::Push, Access::Deploy, Access::Operate, Access::Admin] {
            let words = |needs: &Needs, name: &str| {
                let error = may(&registry, needs).unwrap_err();
                assert_eq!(error.kind, ErrorKind::NotFound, "{error:?}");
                format!("{error:?}").replace(name, "X")
            };
            let environment = |target: &str| Needs::environment(&target.parse().unwrap(), needed);
            let project = |name: &str| Needs::project(&name.parse().unwrap(), needed);
            assert_eq!(words(&project("blog"), "blog"), words(&project("nowhere"), "nowhere"));
            assert_eq!(words(&environment("blog"), "blog"), words(&environment("nowhere"), "nowhere"));
            assert_eq!(words(&environment("blog/production"), "blog"), words(&environment("nowhere/production"), "nowhere"));
            // The other environment of a visible project is hidden, too.
            assert_eq!(words(&environment("shop/production"), "production"), words(&environment("shop/nothing"), "nothing"));
            let promote = |to: &str| Needs {
                scope: Scope::Promotion { from: "shop/staging".parse().unwrap(), to: to.to_owned() },
                right: needed,
            };
            assert_eq!(words(&promote("production"), "production"), words(&promote("nothing"), "nothing"));
        }
    }

    #[test]
    fn right_on_one_environment_includes_no_more_than_the_view_of_the_project() {
        let registry = registry(&[("shop/staging", Access::Admin)]);
        let shop = "shop".parse().unwrap();
        assert!(may(&registry, &Needs::project(&shop, Access::View)).is_ok());
        assert!(may(&registry, &Needs::repository(&shop, Access::Push)).is_ok());
        assert_eq!(may(&registry, &Needs::project(&shop, Access::Push)).unwrap_err().kind, ErrorKind::Refused);
        let seen = visible(&registry, &bob(), registry.project(&shop).unwrap()).unwrap();
        assert_eq!(seen.environments.len(), 1);
        assert!(visible(&registry, &bob(), registry.project(&"blog".parse().unwrap()).unwrap()).is_none());
    }

    #[test]
    fn promotion_needs_the_right_on_its_destination() {
        let needs = Needs {
            scope: Scope::Promotion { from: "shop".parse().unwrap(), to: String::from("production") },
            right: Access::Deploy,
        };
        let with = |access: &[(&str, Access)]| may(&registry(access), &needs).map_err(|error| error.kind);
        assert_eq!(with(&[("shop", Access::Deploy)]), Ok(()));
        assert_eq!(with(&[("shop/staging", Access::View), ("shop/production", Access::Deploy)]), Ok(()));
        assert_eq!(with(&[("shop", Access::Deploy), ("shop/production", Access::View)]), Err(ErrorKind::Refused));
        assert_eq!(with(&[("shop/production", Access::Deploy)]), Err(ErrorKind::NotFound));
    }

    #[test]
    fn administrators_have_every_right_and_unknown_users_have_none() {
        let registry = registry(&[]);
        let by = |caller: &Caller, needs: &Needs| authorize(&registry, caller, needs).is_ok();
        let (ann, eve) = (login("ann"), login("eve"));
        for needs in [Needs::server(Access::Admin), Needs::environment(&"blog".parse().unwrap(), Access::Admin)] {
            assert!(by(&ann, &needs) && by(&Caller::Operator, &needs));
            assert!(!by(&eve, &needs) && !by(&bob(), &needs));
        }
        assert!(by(&bob(), &Needs::server(Access::View)));
        assert!(!by(&eve, &Needs::server(Access::View)));
    }

    #[test]
    fn key_has_at_most_the_rights_of_its_user_and_of_its_limits() {
        let on = |text: &str| text.parse::<Target>().unwrap();
        for (user, admin) in [(Access::Push, false), (Access::Operate, false), (Access::None, true)] {
            for greatest in [Access::View, Access::Push, Access::Deploy] {
                for only in ["shop", "shop/staging", "shop/production", "blog"] {
                    let mut registry = registry(&[("shop", user)]);
                    registry.users[1].admin = admin;
                    let right = |registry: &Registry, name: &str| {
                        RIGHTS.into_iter().filter(|right| may(registry, &Needs::environment(&on(name), *right)).is_ok()).max()
                    };
                    let names = ["shop/staging", "shop/production", "blog/production"];
                    let unrestricted = names.map(|name| right(&registry, name).unwrap_or(Access::None));
                    registry.users[1].keys = vec![key(
                        "bob",
                        KeyLimits { only: Some(KeyScope { on: on(only), right: greatest }), ..KeyLimits::default() },
                    )];
                    for (name, without) in names.into_iter().zip(unrestricted) {
                        let covered = name == only || name.split('/').next() == Some(only);
                        let expected = if covered { without.min(greatest) } else { Access::None };
                        assert_eq!(
                            right(&registry, name).unwrap_or(Access::None),
                            expected,
                            "{user} {admin} {greatest} {only} {name}"
                        );
                    }
                    // A restricted key manages no users, even if its user is an administrator.
                    assert!(may(&registry, &Needs::server(Access::Admin)).is_err());
                    let whole = may(&registry, &Needs::project(&"shop".parse().unwrap(), Access::Push)).is_ok();
                    assert_eq!(whole, only == "shop" && greatest >= Access::Push && (admin || user >= Access::Push));
                }
            }
        }
    }

    #[test]
    fn own_right_counts_before_the_rights_of_groups() {
        let group = |name: &str, members: &[&str], access: &[(&str, Access)]| Group {
            name: name.parse().unwrap(),
            members: members.iter().map(|member| member.parse().unwrap()).collect(),
            access: access.iter().map(|(target, access)| (target.parse().unwrap(), *access)).collect(),
            pillar: BTreeMap::new(),
        };
        let right = |access: &[(&str, Access)], groups: Vec<Group>, on: &str| {
            let registry = Registry { groups, ..registry(access) };
            RIGHTS.into_iter().filter(|right| may(&registry, &Needs::environment(&on.parse().unwrap(), *right)).is_ok()).max()
        };
        let groups = || {
            vec![
                group("developers", &["ann", "bob"], &[("shop", Access::Push), ("shop/production", Access::View)]),
                group("operators", &["bob"], &[("shop", Access::Operate), ("shop/production", Access::None)]),
                group("others", &["eve"], &[("blog", Access::Operate), ("shop", Access::Admin)]),
            ]
        };
        // Without a right of its own, a user has the greatest right of its groups.
        assert_eq!(right(&[], groups(), "shop/staging"), Some(Access::Operate));
        assert_eq!(right(&[], groups(), "shop/production"), Some(Access::View));
        assert_eq!(right(&[], groups(), "blog"), None);
        // A right of its own counts instead, also if it is the smaller one.
        assert_eq!(right(&[("shop", Access::View)], groups(), "shop/staging"), Some(Access::View));
        assert_eq!(right(&[("shop/staging", Access::None)], groups(), "shop/staging"), None);
        assert_eq!(right(&[("shop/staging", Access::None)], groups(), "shop/production"), Some(Access::View));
    }

    #[test]
    fn right_on_the_pillar_is_independent_and_covers_all_environments() {
        let check = |access: &[(&str, Access)], pillar: &[(&str, bool)], only: Option<(&str, Access)>| {
            let mut registry = registry(access);
            registry.users[1].pillar = pillar.iter().map(|(target, has)| (target.parse().unwrap(), *has)).collect();
            let only = only.map(|(on, right)| KeyScope { on: on.parse().unwrap(), right });
            registry.users[1].keys = vec![key("bob", KeyLimits { only, ..KeyLimits::default() })];
            may(&registry, &Needs::pillar(&"shop".parse().unwrap())).map_err(|error| error.kind)
        };
        for right in [Access::View, Access::Push, Access::Deploy, Access::Operate] {
            assert_eq!(check(&[("shop", right)], &[], None), Err(ErrorKind::Refused), "{right}");
            assert_eq!(check(&[("shop", right)], &[("shop", true)], None), Ok(()), "{right}");
            assert_eq!(check(&[("shop", right)], &[("blog", true)], None), Err(ErrorKind::Refused), "{right}");
            // The pillar has the values of all environments.
            assert_eq!(check(&[("shop", right)], &[("shop/staging", true)], None), Err(ErrorKind::Refused));
            let without_production = [("shop", true), ("shop/production", false)];
            assert_eq!(check(&[("shop", right)], &without_production, None), Err(ErrorKind::Refused));
            // A restricted key that may not run commands has no right on the pillar.
            let with = |only| check(&[("shop", right)], &[("shop", true)], Some(only));
            assert_eq!(with(("shop", Access::Push)), Err(ErrorKind::Refused));
            assert_eq!(with(("shop", Access::Operate)), Ok(()));
            assert_eq!(with(("shop/staging", Access::Operate)), Err(ErrorKind::Refused));
        }
        assert_eq!(check(&[("shop", Access::Admin)], &[], None), Ok(()));
        assert_eq!(check(&[], &[("shop", true)], None), Err(ErrorKind::NotFound), "the project is not even shown");
    }

    #[test]
    fn removed_expired_and_foreign_keys_have_no_right() {
        let limits = |limits: KeyLimits| {
            let mut registry = registry(&[("shop", Access::Operate)]);
            registry.users[1].keys = vec![key("bob", limits)];
            [Needs::server(Access::View), Needs::environment(&"shop".parse().unwrap(), Access::View)]
                .map(|needs| may(&registry, &needs).is_ok())
        };
        let expires = |text: &str| KeyLimits { expires: Some(text.parse().unwrap()), ..KeyLimits::default() };
        assert_eq!(limits(KeyLimits::default()), [true, true]);
        assert_eq!(limits(expires("2026-01-01T00:00:00Z")), [false, false]);
        assert_eq!(limits(expires("9999-01-01T00:00:00Z")), [true, true]);
        let from = |range: &str| KeyLimits { from: vec![range.parse().unwrap()], ..KeyLimits::default() };
        assert_eq!(limits(from("198.51.100.0/24")), [false, false]);
        assert_eq!(limits(from("192.0.2.0/24")), [true, true]);
        let mut registry = registry(&[("shop", Access::Operate)]);
        registry.users[1].keys.clear();
        assert!(may(&registry, &Needs::server(Access::View)).is_err());
    }
}
