//! Makes brackfs-json(5) from the schemas in `schemas/`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

const HEAD: &str = r#".\" Made from schemas/ by tests/manuals.
.TH BRACKFS\-JSON 5 2026-11-30 "brackfs" "File Formats Manual"
.SH NAME
brackfs\-json \- JSON output of brackfs
.SH DESCRIPTION
With
.BR \-\-json ,
a command prints one JSON object per line.
Most objects have a member
.BR message_type .
Results and progress are on standard output, problems, notes and errors on standard error.
.PP
Every command that does not end with code 0 writes an object
.B exit_error
as its last line on standard error, even if the command line is wrong.
Only
.BR brackfs\-status (1)
has exit codes that are results.
The only exception is a command that is killed.
.PP
With
.BR \-\-json ,
the output of hooks, and the standard error of the commands of sources, are objects
.B program_output
too, so that every line on standard error is JSON.
.PP
Times are in RFC 3339, in UTC.
Sizes are in bytes.
Text that is not UTF\-8 has replacement characters.
.PP
New members and new message types may be added in later versions, so programs should ignore those that they do not know.
Members are not removed, and their meaning does not change, within a version of the schemas.
.SH "OBJECTS OF ALL COMMANDS"
"#;

const FILES: &str = r#".SH FILES
.TP
.IR schemas/*.json ", " /usr/share/brackfs/schemas
A JSON Schema (2020\-12) for each command, with all of its objects.
"#;

const TAIL: &str = r#".SH "SEE ALSO"
.BR brackfs (1)
"#;

fn text(words: &str) -> String {
    words.replace('\\', "\\e").replace('-', "\\-")
}

/// A description, with each sentence on a line of its own.
fn sentences(words: &str) -> String {
    text(words).replace(". ", ".\n") + "\n"
}

fn members(schema: &Map<String, Value>) -> String {
    let mut page = String::new();
    let Some(Value::Object(members)) = schema.get("properties") else { return page };
    for (name, member) in members.iter().filter(|(name, _)| *name != "message_type") {
        page += &format!(".TP\n.B {}\n", text(name));
        page += &sentences(member["description"].as_str().unwrap_or_else(|| panic!("{name} has no description")));
    }
    page
}

/// An object or array: its type, its description and its members.
fn object(name: &str, schema: &Value) -> String {
    let schema = schema.as_object().expect("a definition");
    let about = schema.get("description").and_then(Value::as_str).expect("a description");
    let members = members(schema.get("items").and_then(Value::as_object).unwrap_or(schema));
    let kind = schema.get("properties").and_then(|members| members["message_type"]["const"].as_str());
    let shown = kind.unwrap_or(name);
    format!(".PP\n.B {}\n.RS\n{}{members}.RE\n", text(shown), sentences(about))
}

/// The page.
pub fn page(schemas: &Path) -> String {
    let mut commands = BTreeMap::new();
    for file in fs::read_dir(schemas).expect("schemas/") {
        let text = fs::read_to_string(file.expect("a schema").path()).expect("a schema");
        let schema: Value = serde_json::from_str(&text).expect("a schema in JSON");
        commands.insert(schema["title"].as_str().expect("a title").to_owned(), schema);
    }
    let shared = ["error", "note", "exit_error", "program_output"];
    let any = commands.values().next().expect("a schema");
    let mut page = HEAD.to_owned();
    page.extend(shared.iter().map(|name| object(name, &any["$defs"][name])));
    page += ".PP\nCommands that show progress have one more:\n";
    page += &object("status", &commands["brackfs backup --json"]["$defs"]["status"]);
    for (title, schema) in &commands {
        page += &format!(".SH \"{}\"\n", text(title));
        let objects = schema["$defs"].as_object().expect("definitions");
        let own = objects.iter().filter(|(name, _)| !shared.contains(&name.as_str()) && *name != "status");
        // A paragraph directly after a heading has no effect.
        page += own.map(|(name, schema)| object(name, schema)).collect::<String>().trim_start_matches(".PP\n");
    }
    page.replace(".SH \"OBJECTS OF ALL COMMANDS\"\n.PP\n", ".SH \"OBJECTS OF ALL COMMANDS\"\n") + FILES + TAIL
}
