//! The requests that the server carries out. Each request has fields, a needed right, a handler and a view.

mod audit;
mod authorities;
mod backup;
mod backup_list;
mod backup_offsite;
mod backup_summary;
mod configuration;
mod configuration_explain;
mod configuration_list;
mod configuration_render;
mod databases;
mod deliverables;
mod deploy_key;
mod deployments;
mod disk;
mod doctor;
mod drift;
mod edits;
mod exports;
mod groups;
mod keys;
mod limits;
mod logs;
mod notifications;
mod processes;
mod projects;
mod promotion;
mod protect;
mod releases;
mod remotes;
mod rollback;
mod secrets;
mod secrets_edit;
mod secrets_list;
mod status;
mod users;

pub use self::{
    audit::*, authorities::*, backup::*, backup_list::*, backup_offsite::*, backup_summary::*, configuration::*,
    configuration_explain::*, configuration_list::*, configuration_render::*, databases::*, deliverables::*, deploy_key::*,
    deployments::*, disk::*, doctor::*, drift::*, edits::*, exports::*, groups::*, keys::*, limits::*, logs::*, notifications::*,
    processes::*, projects::*, promotion::*, protect::*, releases::*, remotes::*, rollback::*, secrets::*, secrets_edit::*,
    secrets_list::*, status::*, users::*,
};
