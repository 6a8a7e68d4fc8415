//! Parses the configuration files: the server file, and the `larder.yml`, `Procfile`, `.buildpacks` and `app.json` of a project. No other
//! module parses YAML.
//!
//! Parsers take the bytes of a file and do no input or output. Only [`ServerConfig::load`] reads a file from the disk. Every error is
//! displayed as one line: file, line, problem, expected value, hint. The module to read first is [`project`], which merges all files into
//! [`Settings`]. [`pillar`] reads the files of a project's pillar.

mod app_json;
mod backup;
mod build;
mod client;
mod database;
mod database_servers;
mod dotenv;
mod error;
mod explain;
mod forge;
mod health;
mod keep;
mod keys;
mod mail;
mod offsite;
pub mod pillar;
mod policy;
mod process;
mod procfile;
pub mod project;
mod quantity;
mod reader;
mod recipe;
mod secret_file;
mod sections;
mod server;
mod services;
mod settings;
mod space;
mod template;
mod upgrade;
mod value;
mod webhook;
pub mod yaml;

#[cfg(test)]
mod tests;

pub use crate::model::{StopSignal, Strategy};
pub use app_json::AppJson;
pub use backup::{BackupConfig, Schedule};
pub use build::{BuildSettings, RequiredVariable};
pub use client::{ClientEntry, ENVIRONMENTS_FILE};
pub use database::{DatabaseLocation, DatabaseSpec};
pub use database_servers::DatabaseServers;
pub use dotenv::{LocalVariables, parse as parse_dotenv, parse_local as parse_local_dotenv, render as render_dotenv};
pub use error::ConfigError;
pub use explain::{VariablePlace, place_in_server, places_in_project};
pub use forge::{ForgeConfig, ForgeKind};
pub use health::{Health, HealthCheck, Smoke};
pub use keep::BackupKeep;
pub use mail::{MailConfig, MailTransport, NotifySettings};
pub use offsite::{OffsiteAddress, OffsiteConfig};
pub use policy::{DriftPolicy, EditPolicy, PromoteCheck, PromotionPolicy, Retention};
pub use process::{ProcessSpec, ProcessTuning, Stop};
pub use procfile::Procfile;
pub use project::{ProjectConfig, ProjectFiles};
pub use quantity::{Age, ByteSize, StatusRange, TimeSpan};
pub use recipe::Recipe;
pub use secret_file::SecretFileSpec;
pub use sections::{BuildsConfig, HttpConfig, HttpScheme, KeepConfig, LogConfig, PushLimits, SshConfig, SshProfile};
pub use server::ServerConfig;
pub use settings::Settings;
pub use space::SpaceConfig;
pub use template::TemplateSpec;
pub use upgrade::{Safety, UpgradeSettings};
pub use value::{BuildpackRef, CommandLine, DataPath, Domain, HttpPath, RelativePath, VariableName};
pub use webhook::{AddressRange, WebhookFormat, WebhookPolicy, WebhookSecret, WebhookTarget, WebhookUrl};
