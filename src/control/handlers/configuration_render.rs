//! The request that shows the rendered templates of the live release.

use futures_util::future::BoxFuture;

use super::configuration::of_snapshots;
use crate::{
    control::{
        authz::Needs,
        error::{CommandError, not_found, similar},
        request::{Context, Reply, Request, Stream},
    },
    host::launch::Stdio,
    model::{Access, Target, sanitise_reason},
    runtime::{Boot, RunJob, TemplateJob},
};

/// The request to render the templates of the live release, with the configuration that the next deployment uses, and to print the files.
#[derive(Debug)]
pub struct ConfigRender {
    /// The environment.
    pub target: Target,
    /// The template, or the rendered file; all templates if absent.
    pub file: Option<String>,
}

impl Request for ConfigRender {
    type View = ();
    const NAME: &'static str = "config render";

    fn needs(&self) -> Needs {
        Needs::environment(&self.target, Access::Operate)
    }

    fn detail(&self) -> Option<String> {
        self.file.clone()
    }

    async fn handle(self, Context { control, .. }: &Context<'_>) -> Result<Reply<()>, CommandError> {
        let environment = control.environment(&self.target)?;
        let title = environment.title();
        let found = control.pipeline().templates(&environment).map_err(|error| of_snapshots(&error))?;
        let (live, mut templates) = found.ok_or_else(|| {
            not_found(format!("the live release of {title} has no templates"))
                .hint("name templates under `templates:` in larder.yml, and push")
        })?;
        if let Some(file) = &self.file {
            templates.files = selected(&templates, file)?;
        }
        templates.preview = true;
        let job = RunJob { templates: Some(templates), ..RunJob::default() };
        let logs = control.root().environment(&environment.project, &environment.name).log();
        let boot = Boot::for_tasks(environment, live.slot, live.release, logs);
        let runtime = control.pipeline().services().runtime.clone();
        let start = move |stdio: Stdio| -> BoxFuture<'static, _> {
            Box::pin(async move {
                let child = runtime.task(&boot, &job, stdio).await;
                Ok(child.map_err(|error| CommandError::internal(&error))?.into())
            })
        };
        Ok(Reply::Stream(Stream::Run(Box::new(start))))
    }
}

/// Returns the template with a name.
fn selected(templates: &TemplateJob, name: &str) -> Result<Vec<crate::runtime::TemplateFile>, CommandError> {
    let wanted = name.strip_prefix("/app/").unwrap_or(name);
    let found: Vec<_> = templates.files.iter().filter(|file| file.to == wanted || file.from == wanted).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let error = not_found(format!("no template writes the file {}", sanitise_reason(name)));
    Err(match similar(wanted, templates.files.iter().map(|file| file.to.as_str())) {
        Some(other) => error.hint(format!("did you mean {other}?")),
        None => error.hint("leave the name out to show all files"),
    })
}
