//! The steps of each phase. A step calls one or two subsystems and passes their results to the next step. The subsystems do not
//! depend on each other.

pub mod build;
pub mod bundle;
pub mod checkout;
pub mod checks;
pub mod deliver;
pub mod deploy;
pub mod gather;
pub mod post_deploy;
pub mod post_install;
pub mod script;
