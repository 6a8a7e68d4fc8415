//! The connection to a MySQL or MariaDB server through the server's own client programs.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    ops::Range,
    path::PathBuf,
    process::Stdio,
};

use super::{
    super::{
        DatabaseAddress, DatabaseJob, EngineVersions,
        tool::{self, Tool, ToolError},
    },
    version::{Family, Version},
};
use crate::{
    backup::{BackupFailure, FailureKind},
    model::sanitise_line,
};

/// The TCP port of a URL without a port.
const PORT: u16 = 3306;

/// The time limit of a connection attempt, in seconds.
const CONNECT: &str = "--connect-timeout=10";

/// The client of one database. User and password are in an option file that only the worker's user can read.
pub(super) struct Client {
    database: String,
    /// The description of the database and its server, for messages.
    title: String,
    password: String,
    options: PathBuf,
    /// The directory of the option file, which is deleted with this value.
    _directory: tempfile::TempDir,
}

/// The objects of a database, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Objects {
    /// Tables and sequences.
    pub tables: Vec<String>,
    pub views: Vec<String>,
    pub triggers: Vec<String>,
    /// Procedures and functions, with the word of their kind in SQL.
    pub routines: Vec<(String, String)>,
    pub events: Vec<String>,
}

impl Client {
    /// Prepares the client of a database. Does not connect.
    pub fn new(job: &DatabaseJob) -> Result<Client, BackupFailure> {
        let client = Client::of_server(job)?;
        if client.database.is_empty() { Err(job.refused("its URL names no database")) } else { Ok(client) }
    }

    /// Prepares the client of a URL that may name no database.
    pub fn of_server(job: &DatabaseJob) -> Result<Client, BackupFailure> {
        let address = job.address()?;
        let database = address.database.clone().unwrap_or_default();
        let directory = tempfile::Builder::new().prefix("larder-").tempdir();
        let directory = directory.map_err(|e| BackupFailure::io("create a private directory", &e))?;
        let options = tool::private_file(directory.path(), "client.cnf", &option_file(&address))?;
        let title = format!("the MySQL database {} at {}", job.name, address.server(PORT));
        Ok(Client { database, title, password: address.password.unwrap_or_default(), options, _directory: directory })
    }

    /// Returns the name of the database on the server.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Connects, and compares the versions of server and dump program. Returns both versions as text, and the server's version in parts.
    pub fn check(&self) -> Result<(EngineVersions, Version), BackupFailure> {
        // The statement fails if the database does not exist.
        let text = self.rows(&format!("USE {};\nSELECT VERSION();\n", identifier(&self.database)))?;
        let text = text.into_iter().flatten().next().unwrap_or_default();
        let unknown = |what: &str, text: &str| {
            let text: String = sanitise_line(text).chars().take(100).collect();
            self.refused(format!("the version of the {what} is unknown: {text:?}"))
        };
        let server = Version::of_server(&text).ok_or_else(|| unknown("server", &text))?;
        let program = self.program(server.family.dump_programs())?;
        let output = Tool::new(&program).args(["--version"]).output(&[])?.map_err(|error| self.failed(&error))?;
        let output = String::from_utf8_lossy(&output);
        let tool = Version::of_tool(&output).ok_or_else(|| unknown("dump program", &output))?;
        if let Some(why) = tool.unfit_for(&server) {
            let name = server.family.title();
            let hint = format!(
                "install the client programs of {name} {}.{} or newer on the server of larder",
                server.major, server.minor
            );
            return Err(BackupFailure { hint: Some(hint), ..self.refused(why) });
        }
        Ok((EngineVersions { tool: tool.text, server: server.text.clone() }, server))
    }

    /// Returns a refusal about this database.
    pub fn refused(&self, why: impl std::fmt::Display) -> BackupFailure {
        BackupFailure::new(FailureKind::Refused, format!("cannot use {}: {why}", self.title))
    }

    /// Runs statements, and returns the rows of their answers.
    pub fn rows(&self, statements: &str) -> Result<Vec<Vec<String>>, BackupFailure> {
        let output = self.client()?.args(["--skip-column-names"]).output(statements.as_bytes())?;
        let output = output.map_err(|error| self.failed(&error))?;
        let text = String::from_utf8_lossy(&output);
        Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
    }

    /// Runs statements whose answer is not needed. `database` is the current database of the statements.
    pub fn run(&self, database: Option<&str>, statements: &[u8]) -> Result<(), BackupFailure> {
        let tool = self.client()?.args(database);
        tool.output(statements)?.map(drop).map_err(|error| self.failed(&error))
    }

    /// Runs the statements in the byte range `range` of `file`, with `database` as the current database.
    pub fn run_part(&self, database: &str, file: &File, range: &Range<u64>) -> Result<(), BackupFailure> {
        let mut running = self.client()?.args([database]).spawn(Stdio::piped(), Stdio::null())?;
        let mut file = file;
        let fed = file.seek(SeekFrom::Start(range.start)).and_then(|_| match running.child.stdin.take() {
            Some(mut stdin) => std::io::copy(&mut file.take(range.end.saturating_sub(range.start)), &mut stdin).map(drop),
            None => Ok(()),
        });
        // A client that fails closes its input, so the write fails, too. The client's failure is returned first, because it has the cause.
        running.wait()?.map_err(|error| self.failed(&error))?;
        fed.map_err(|e| BackupFailure::io("read the dump", &e))
    }

    /// Appends the output of the dump program to `file`.
    pub fn dump(&self, family: Family, arguments: &[String], file: &File) -> Result<(), BackupFailure> {
        let output = file.try_clone().map_err(|e| BackupFailure::io("write the dump", &e))?;
        let tool = self.tool(family.dump_programs())?.args(family.dump_arguments()).args(arguments);
        tool.spawn(Stdio::null(), Stdio::from(output))?.wait()?.map_err(|error| self.failed(&error))
    }

    /// Returns the objects of a database.
    pub fn objects(&self, database: &str) -> Result<Objects, BackupFailure> {
        let schema = literal(database);
        let rows = self.rows(&format!(
            "SELECT IF(table_type = 'VIEW', 'view', 'table'), HEX(table_name) FROM information_schema.tables WHERE table_schema = {schema};\n\
             SELECT 'trigger', HEX(trigger_name) FROM information_schema.triggers WHERE trigger_schema = {schema};\n\
             SELECT routine_type, HEX(routine_name) FROM information_schema.routines WHERE routine_schema = {schema};\n\
             SELECT 'event', HEX(event_name) FROM information_schema.events WHERE event_schema = {schema};\n"
        ))?;
        let mut objects = Objects::default();
        for row in rows {
            let [kind, name] = row.as_slice() else { return Err(self.refused("the server listed an object without a name")) };
            let name = data_encoding::HEXUPPER.decode(name.as_bytes()).ok().and_then(|name| String::from_utf8(name).ok());
            let name = name.ok_or_else(|| self.refused("the server listed an object with an invalid name"))?;
            match kind.as_str() {
                "table" => objects.tables.push(name),
                "view" => objects.views.push(name),
                "trigger" => objects.triggers.push(name),
                "event" => objects.events.push(name),
                "PROCEDURE" | "FUNCTION" | "PACKAGE" | "PACKAGE BODY" => objects.routines.push((kind.clone(), name)),
                other => {
                    return Err(self.refused(format!("the server listed an object of unknown kind {}", sanitise_line(other))));
                }
            }
        }
        Ok(objects)
    }

    fn program(&self, names: &[&str]) -> Result<PathBuf, BackupFailure> {
        tool::find(names, &[]).ok_or_else(|| BackupFailure {
            hint: Some(String::from(
                "install the client programs of MariaDB or MySQL, such as the Debian package mariadb-client",
            )),
            ..self.refused(format!("{} is not installed", names.join(" or ")))
        })
    }

    fn tool(&self, names: &[&str]) -> Result<Tool, BackupFailure> {
        // Programs accept `--defaults-file` only as their first argument. With this option, they read no other option file.
        let options = format!("--defaults-file={}", self.options.display());
        Ok(Tool::new(&self.program(names)?).args([options.as_str(), "--default-character-set=utf8mb4"]).hides(&self.password))
    }

    /// Returns the interactive client as a program that reads statements. In binary mode, the client executes no commands of its own
    /// (`\!`, `source`) that a hostile dump may contain.
    fn client(&self) -> Result<Tool, BackupFailure> {
        Ok(self.tool(&["mariadb", "mysql"])?.args(["--batch", "--binary-mode", "--local-infile=0", CONNECT]))
    }

    /// Returns the failure of a program.
    fn failed(&self, error: &ToolError) -> BackupFailure {
        // The client also prints the failed statement, which contains data.
        let line = error.text.lines().find(|line| line.starts_with("ERROR ")).map_or_else(|| error.line(), sanitise_line);
        let line: String = line.chars().take(600).collect();
        let number = line.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 4);
        let is_foreign = line.contains("insufficient privileges");
        let hint = match number {
            _ if is_foreign => Some("create views, triggers, routines and events as the user of the database's URL"),
            Some("1044" | "1142" | "1370") => Some("give the user of the URL all privileges on the database"),
            Some("1045" | "1698") => Some("check the user and the password in the URL of the database"),
            Some("1049") => Some("check the name of the database in the URL"),
            Some("1227" | "1449") => Some("create views, triggers, routines and events as the user of the database's URL"),
            Some("2002" | "2003" | "2005" | "2006" | "2013") => {
                Some("check that the server runs, and that it accepts TCP connections at this address")
            }
            _ => None,
        };
        BackupFailure { hint: hint.map(str::to_owned), ..self.refused(line) }
    }
}

/// Returns the content of an option file with host, user and password.
fn option_file(address: &DatabaseAddress) -> String {
    let mut text = String::from("[client]\n");
    let mut set = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            text.push_str(&format!("{name}={}\n", quoted_option(value)));
        }
    };
    let parameter = |names: &[&str]| names.iter().find_map(|name| address.parameters.get(*name)).map(String::as_str);
    match parameter(&["unix_socket", "socket"]) {
        Some(socket) => {
            set("protocol", Some("SOCKET"));
            set("socket", Some(socket));
        }
        None => {
            // Without a protocol, the programs would connect to `localhost` over a socket that the sandbox does not contain.
            set("protocol", Some("TCP"));
            set("host", Some(address.host.as_deref().unwrap_or("127.0.0.1")));
            set("port", Some(&address.port.unwrap_or(PORT).to_string()));
        }
    }
    set("user", address.user.as_deref());
    set("password", Some(address.password.as_deref().unwrap_or_default()));
    let mode = parameter(&["ssl-mode", "ssl_mode", "sslmode", "ssl", "tls"]).map(str::to_ascii_lowercase);
    // Programs skip an option with the prefix `loose-` that they do not know.
    text.push_str(match mode.as_deref() {
        None => "",
        Some("disabled" | "disable" | "false" | "0") => "loose-skip-ssl\nloose-ssl-mode=DISABLED\n",
        Some("verify_identity" | "verify-full" | "verify_full") => {
            "loose-ssl\nloose-ssl-verify-server-cert\nloose-ssl-mode=VERIFY_IDENTITY\n"
        }
        Some(_) => "loose-ssl\nloose-ssl-mode=REQUIRED\n",
    });
    text
}

/// Quotes a value of an option file.
fn quoted_option(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// Returns an SQL expression for a string. No setting of the server changes the value of the expression.
pub(super) fn literal(text: &str) -> String {
    format!("CONVERT(X'{}' USING utf8mb4)", data_encoding::HEXUPPER.encode(text.as_bytes()))
}

/// Returns a quoted SQL identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::{super::super::DatabaseUrl, *};

    #[test]
    fn option_file_quotes_the_password_and_avoids_the_socket() {
        let url = DatabaseUrl::new("mysql://ann:a%20%22b%5Cc%23%0A@localhost/shop?ssl-mode=REQUIRED");
        let text = option_file(&url.address().unwrap());
        assert!(text.contains("protocol=\"TCP\"\nhost=\"localhost\"\nport=\"3306\"\nuser=\"ann\"\n"), "{text}");
        assert!(text.contains("password=\"a \\\"b\\\\c#\\n\"\n") && text.contains("loose-ssl-mode=REQUIRED"), "{text}");
        let socket = option_file(&DatabaseUrl::new("mysql://ann@localhost/shop?unix_socket=/run/x").address().unwrap());
        assert!(socket.contains("socket=\"/run/x\"") && !socket.contains("host="), "{socket}");
    }

    #[test]
    fn names_and_strings_of_sql_are_quoted() {
        assert_eq!(identifier("a`b"), "`a``b`");
        assert_eq!(literal("a'b"), "CONVERT(X'612762' USING utf8mb4)");
    }
}
