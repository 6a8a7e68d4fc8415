//! The server file, the recipe, the Procfile and app.json. The only room that parses YAML.
//!
//! Everything here is a pure function of bytes. Every error is one line: file, line, what is wrong, what was expected, what to do.

mod age;
mod app_json;
mod buildpacks_file;
mod error;
mod http;
mod procfile;
pub mod project;
mod promote;
mod reader;
mod recipe;
mod recipe_read;
mod server;
mod settings;
mod value;
pub mod yaml;

#[cfg(test)]
mod tests;

pub use crate::model::{StopSignal, Strategy};
pub use age::Age;
pub use app_json::AppJson;
pub use error::ConfigError;
pub use http::{HttpConfig, HttpScheme};
pub use procfile::Procfile;
pub use project::{ProjectConfig, ProjectFiles};
pub use promote::{Promote, PromoteCheck};
pub use recipe::Recipe;
pub use server::{BuildsConfig, KeepConfig, LogConfig, PushLimits, ServerConfig, SshConfig, SshProfile};
pub use settings::{
    BuildSettings, DriftPolicy, Health, HealthCheck, ProcessSpec, ProcessTuning, RequiredVariable, Settings, Smoke, Stop,
};
pub use value::{BuildpackRef, ByteSize, CommandLine, Domain, HttpPath, RelativePath, StatusRange, TimeSpan, VariableName};
