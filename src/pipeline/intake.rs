//! What each ref of a push gets: a deployment, a place in the repository, or a refusal. Decided before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{BranchName, CommitId, Environment};

/// One ref that somebody wants to create, change or delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefUpdate {
    /// The full name.
    pub name: String,
    /// What it was; zero for a new ref.
    pub old: CommitId,
    /// What it shall be; zero to delete it.
    pub new: CommitId,
}

/// What a ref gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// A deployment decides.
    Deploy {
        /// Where.
        environment: Box<Environment>,
        /// The branch.
        branch: BranchName,
        /// The commit.
        commit: CommitId,
        /// What the pusher saw the branch at; zero for a branch that was not there.
        seen: CommitId,
    },
    /// Git stores it; the line tells the pusher that nothing is deployed.
    Store {
        /// What to tell, if anything.
        note: Option<String>,
    },
    /// It is refused.
    Refuse {
        /// The reason in git's line.
        reason: String,
        /// What to do instead.
        hint: Option<String>,
    },
}

/// Decides about every ref of a push to a project with `environments`. The answers are in the order of the updates.
pub fn fates(environments: &[Environment], updates: &[RefUpdate], atomic: bool) -> Vec<Fate> {
    let mut fates: Vec<_> = updates.iter().map(|update| fate(environments, update)).collect();
    let deployments = fates.iter().filter(|fate| matches!(fate, Fate::Deploy { .. })).count();
    if atomic && deployments > 1 {
        for fate in fates.iter_mut().filter(|fate| matches!(fate, Fate::Deploy { .. })) {
            *fate = Fate::Refuse {
                reason: String::from("an atomic push can deploy one branch only"),
                hint: Some(String::from("push the deploy branches one by one, or without --atomic")),
            };
        }
    }
    let refused = fates.iter().any(|fate| matches!(fate, Fate::Refuse { .. }));
    if atomic && refused {
        for fate in fates.iter_mut().filter(|fate| !matches!(fate, Fate::Refuse { .. })) {
            *fate = Fate::Refuse { reason: String::from("another ref of this atomic push was refused"), hint: None };
        }
    }
    fates
}

/// The first of `updates` that git would not store in a repository that has the refs `existing`, and why. An atomic push
/// asks this first: git stores its other refs only after the deployment, when that can no longer be taken back.
pub fn unstorable<'u>(updates: &'u [RefUpdate], existing: &BTreeMap<String, CommitId>) -> Option<(&'u RefUpdate, String)> {
    let made = updates.iter().filter(|update| !update.new.is_zero()).map(|update| update.name.as_str());
    let names: BTreeSet<&str> = existing.keys().map(String::as_str).chain(made).collect();
    updates.iter().find_map(|update| {
        let name = update.name.as_str();
        if existing.get(name).map_or(!update.old.is_zero(), |id| *id != update.old) {
            return Some((update, String::from("somebody else has moved it meanwhile; fetch first")));
        }
        if update.new.is_zero() {
            return None;
        }
        let above = name.match_indices('/').filter_map(|(at, _)| name.get(..at)).find(|above| names.contains(above));
        let inside = format!("{name}/");
        let below = || names.range(inside.as_str()..).next().copied().filter(|below| below.starts_with(&inside));
        let other = above.or_else(below)?;
        Some((update, format!("{other} exists, and a name cannot be a directory as well")))
    })
}

fn fate(environments: &[Environment], update: &RefUpdate) -> Fate {
    let deletes = update.new.is_zero();
    if let Some(branch) = update.name.strip_prefix("refs/heads/") {
        let Ok(branch) = branch.parse::<BranchName>() else {
            return Fate::Refuse {
                reason: String::from("this branch name is not allowed here"),
                hint: branch.parse::<BranchName>().err().map(|error| error.to_string()),
            };
        };
        return match environments.iter().find(|environment| environment.branch == branch) {
            Some(environment) if deletes => Fate::Refuse {
                reason: format!("{} deploys this branch", environment.title()),
                hint: Some(format!(
                    "deleting it would not stop the application; `larder project destroy {}` does",
                    environment.project
                )),
            },
            Some(environment) => Fate::Deploy {
                environment: Box::new(environment.clone()),
                branch,
                commit: update.new.clone(),
                seen: update.old.clone(),
            },
            None if deletes => Fate::Store { note: None },
            None => Fate::Store { note: Some(format!("{branch} is stored and not deployed; {}", deploying(environments))) },
        };
    }
    if update.name.starts_with("refs/tags/") {
        return Fate::Store { note: None };
    }
    Fate::Refuse {
        reason: String::from("only branches and tags can be pushed"),
        hint: Some(String::from("push to refs/heads/... or refs/tags/...")),
    }
}

/// Which branches deploy where, for people.
pub fn deploying(environments: &[Environment]) -> String {
    let pairs: Vec<_> =
        environments.iter().map(|environment| format!("{} deploys to {}", environment.branch, environment.name)).collect();
    if pairs.is_empty() { String::from("no branch deploys here") } else { pairs.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(name: &str, delete: bool) -> RefUpdate {
        let id = |digit: &str| digit.repeat(40).parse().unwrap();
        RefUpdate { name: name.to_owned(), old: id("0"), new: if delete { id("0") } else { id("a") } }
    }

    #[test]
    fn every_kind_of_ref_has_its_fate() {
        let environments = [Environment::of_shop("production", "main"), Environment::of_shop("staging", "next")];
        let one = |name: &str, delete| fates(&environments, &[update(name, delete)], false).remove(0);
        assert!(
            matches!(one("refs/heads/main", false), Fate::Deploy { environment, .. } if environment.name.as_str() == "production")
        );
        assert!(
            matches!(one("refs/heads/next", false), Fate::Deploy { environment, .. } if environment.name.as_str() == "staging")
        );
        assert!(matches!(one("refs/heads/main", true), Fate::Refuse { .. }));
        assert!(
            matches!(one("refs/heads/topic", false), Fate::Store { note: Some(note) } if note.contains("main deploys to production"))
        );
        assert_eq!(one("refs/heads/topic", true), Fate::Store { note: None });
        assert_eq!(one("refs/tags/v1", false), Fate::Store { note: None });
        for odd in ["refs/heads/-x", "refs/larder/keep/x", "refs/notes/commits", "refs/for/main", "HEAD"] {
            assert!(matches!(one(odd, false), Fate::Refuse { .. }), "{odd}");
        }
    }

    #[test]
    fn an_atomic_push_is_all_or_nothing() {
        let environments = [Environment::of_shop("production", "main"), Environment::of_shop("staging", "next")];
        let both = [update("refs/heads/main", false), update("refs/heads/next", false), update("refs/tags/v1", false)];
        assert!(fates(&environments, &both, true).iter().all(|fate| matches!(fate, Fate::Refuse { .. })));
        assert!(!fates(&environments, &both, false).iter().any(|fate| matches!(fate, Fate::Refuse { .. })));
    }

    #[test]
    fn what_git_would_not_store_is_known_before() {
        let id = |digit: &str| digit.repeat(40).parse::<CommitId>().unwrap();
        let existing: BTreeMap<_, _> =
            ["refs/heads/main", "refs/heads/topic", "refs/tags/v1/a"].map(|name| (name.to_owned(), id("0"))).into();
        let check = |names: &[&str]| {
            let updates: Vec<_> = names.iter().map(|name| update(name, false)).collect();
            unstorable(&updates, &existing).map(|(update, _)| update.name.clone())
        };
        assert_eq!(check(&["refs/heads/main", "refs/heads/topics", "refs/tags/v1/b"]), None);
        assert_eq!(check(&["refs/heads/main", "refs/heads/topic/sub"]).as_deref(), Some("refs/heads/topic/sub"));
        assert_eq!(check(&["refs/heads/main", "refs/tags/v1"]).as_deref(), Some("refs/tags/v1"));
        assert_eq!(check(&["refs/heads/x/y", "refs/heads/x"]).as_deref(), Some("refs/heads/x/y"));
        let moved = [RefUpdate { old: id("b"), ..update("refs/heads/topic", false) }];
        assert!(unstorable(&moved, &existing).is_some());
        let gone = [RefUpdate { old: id("b"), ..update("refs/heads/gone", true) }];
        assert!(unstorable(&gone, &existing).is_some());
    }
}
