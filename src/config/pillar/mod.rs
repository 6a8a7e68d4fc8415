//! The pillar of a project: its configuration in files of YAML, which are in a repository of their own.
//!
//! The values of an environment come from three levels: the project's sample file, `init.yml`, and the file of the environment. A level is
//! parsed into a [`PillarLevel`], in which every value has its line. [`evaluate()`] merges the levels and resolves the references between
//! values. No error contains a value, because values may be secrets.

mod evaluate;
mod level;

pub use self::{
    evaluate::{PillarValues, evaluate},
    level::{PillarLevel, PillarNode, PillarText, PillarValue},
};

/// The file with the values of all environments.
pub const INIT_FILE: &str = "init.yml";
/// The file in the project's own repository that has default values, and keys without a value, which are required.
pub const SAMPLE_FILE: &str = ".larder/pillar.sample.yml";
/// The maximum size of a value, in bytes.
pub const MAX_PILLAR_VALUE: usize = 64 * 1024;
/// The maximum size of all files of a pillar, and of all values of an environment after the references are resolved, in bytes.
pub const MAX_PILLAR: usize = 1024 * 1024;
