//! Checks the structure of `src/`:
//!
//! - Modules use only the modules that the table in the header of `src/lib.rs` allows, also in tests and macros.
//! - A module in that table may use only modules above it.
//! - No glob imports of our own modules, except `use super::*` in tests.
//! - Binaries use only `brackfs::cli`.
//! - No `extern crate self`.
//! - No dependency cycle has more than [`LARGEST_CIRCLE`] files.
//! - Only the files in [`UNSAFE`] have `unsafe` code, as brackfs-security(7) states.
//!
//! The table is between two marker lines:
//!
//! ```text
//! //! <!-- layers -->
//! //! | module | may use |
//! //! | --- | --- |
//! //! | `format` | – |
//! //! | `repository` | `storage` `crypt` `format` |
//! //! <!-- /layers -->
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{ItemExternCrate, ItemMod, ItemUse, UseTree, Visibility};

/// Maximum number of files in a dependency cycle. `mod.rs` counts, tests do not.
const LARGEST_CIRCLE: usize = 3;

/// The files that allow `unsafe` code, which Cargo.toml denies elsewhere. `source` has it only in its tests.
const UNSAFE: [&str; 7] = [
    "src/source/directory.rs",
    "src/storage/ftp/tls.rs",
    "src/sys/allocator.rs",
    "src/sys/batch_read.rs",
    "src/sys/mod.rs",
    "src/sys/priority.rs",
    "src/sys/signals.rs",
];

/// The path of `extern crate self`. Paths through its name would not be followed, so it is never allowed.
const EXTERN_SELF: &str = "extern crate self";

// --- the table ---

struct Row {
    module: String,
    uses: Vec<String>,
    line: usize,
}

/// Reads the table of `src/lib.rs`, and reports rows that contradict each other.
fn table(source: &str, findings: &mut Vec<String>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let (mut inside, mut seen) = (false, false);
    for (line, text) in (1..).zip(source.lines()) {
        match text.strip_prefix("//!").map(str::trim) {
            Some("<!-- layers -->") => (inside, seen) = (true, true),
            Some("<!-- /layers -->") => inside = false,
            Some(text) if inside => {
                let cells: Vec<&str> = text.trim_matches('|').split('|').map(str::trim).collect();
                if cells[0] == "module" || cells[0].starts_with("---") {
                    continue;
                }
                let [module] = quoted(cells[0])[..] else {
                    findings.push(format!("src/lib.rs:{line}: a row of the table names no `module`"));
                    continue;
                };
                let uses = cells.get(1).map(|cell| quoted(cell)).unwrap_or_default();
                for used in uses.iter().filter(|used| !rows.iter().any(|row| row.module == **used)) {
                    findings.push(format!(
                        "src/lib.rs:{line}: `{module}` may use `{used}`, which is not above it in the table"
                    ));
                }
                if rows.iter().any(|row| row.module == module) {
                    findings.push(format!("src/lib.rs:{line}: the table names `{module}` twice"));
                    continue;
                }
                rows.push(Row { module: module.into(), uses: uses.into_iter().map(String::from).collect(), line });
            }
            _ => {}
        }
    }
    if !seen {
        findings.push("src/lib.rs:1: cannot find the table between `<!-- layers -->` and `<!-- /layers -->`".into());
    }
    rows
}

/// The words between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

// --- source files ---

/// A path in the source, in `use` or elsewhere.
struct Use {
    /// The module that contains it, from the crate root.
    module: Vec<String>,
    /// `*` is the last one of a glob import.
    segments: Vec<String>,
    is_import: bool,
    line: usize,
}

impl Use {
    fn is_in_tests(&self) -> bool {
        self.module.iter().any(|name| name == "tests")
    }

    fn is_glob(&self) -> bool {
        self.is_import && self.segments.last().is_some_and(|name| name == "*")
    }

    /// The path from the crate root; `None` if it leads to another crate or to a name that is not a module.
    fn target(&self, modules: &BTreeSet<Vec<String>>) -> Option<Vec<String>> {
        let mut target = self.module.clone();
        let mut rest = &self.segments[..];
        match rest.first()?.as_str() {
            "crate" => {
                target.clear();
                rest = &rest[1..];
            }
            "self" | "super" => {
                while let Some(name @ ("self" | "super")) = rest.first().map(String::as_str) {
                    if name == "super" {
                        target.pop();
                    }
                    rest = &rest[1..];
                }
            }
            name => {
                let child: Vec<String> = target.iter().cloned().chain([name.to_owned()]).collect();
                modules.get(&child)?;
            }
        }
        target.extend_from_slice(rest);
        Some(target)
    }
}

/// A file of the crate or of a binary.
struct SourceFile {
    path: String,
    /// Its module, from the crate root; empty for `src/lib.rs` and binaries.
    module: Vec<String>,
    uses: Vec<Use>,
    /// The modules that it declares, with their lines.
    modules: Vec<(Vec<String>, usize)>,
}

impl SourceFile {
    fn parse(path: &str, text: &str) -> SourceFile {
        let mut module: Vec<String> =
            path.trim_start_matches("src/").trim_end_matches(".rs").split('/').map(String::from).collect();
        module.pop_if(|name| name == "mod");
        if path == "src/lib.rs" || is_binary(path) {
            module.clear();
        }
        let mut visitor = Collector { module: module.clone(), uses: Vec::new(), modules: Vec::new() };
        visitor.visit_file(&syn::parse_file(text).unwrap_or_else(|e| panic!("cannot parse {path}: {e}")));
        SourceFile { path: path.into(), module, uses: visitor.uses, modules: visitor.modules }
    }
}

fn is_binary(path: &str) -> bool {
    path == "src/main.rs" || path.starts_with("src/bin/")
}

fn line(span: Span) -> usize {
    span.start().line
}

/// Collects the paths and modules of a file.
struct Collector {
    /// The module that is visited now.
    module: Vec<String>,
    uses: Vec<Use>,
    modules: Vec<(Vec<String>, usize)>,
}

impl Collector {
    fn add(&mut self, segments: Vec<String>, is_import: bool, line: usize) {
        self.uses.push(Use { module: self.module.clone(), segments, is_import, line });
    }

    fn import(&mut self, prefix: &[String], tree: &UseTree) {
        let with = |name: String| prefix.iter().cloned().chain([name]).collect::<Vec<_>>();
        match tree {
            UseTree::Path(path) => self.import(&with(path.ident.to_string()), &path.tree),
            UseTree::Name(name) => self.add(with(name.ident.to_string()), true, line(name.ident.span())),
            UseTree::Rename(name) => self.add(with(name.ident.to_string()), true, line(name.ident.span())),
            UseTree::Glob(glob) => self.add(with("*".into()), true, line(glob.star_token.span)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.import(prefix, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        self.modules.push((self.module.clone(), line(item.ident.span())));
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.import(&[], &item.tree);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast ItemExternCrate) {
        let name = item.ident.to_string();
        self.add(vec![if name == "self" { EXTERN_SELF.into() } else { name }], true, line(item.ident.span()));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.add(segments, false, line(path.segments[0].ident.span()));
        }
        visit::visit_path(self, path);
    }

    /// The path in `pub(in path)` always leads to a module around this one, and is not a use of it.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}

    /// Finds paths in the arguments of macros and attributes, which are not parsed.
    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        self.scan(tokens.clone());
    }
}

impl Collector {
    fn scan(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
        let mut at = 0;
        while at < tokens.len() {
            if let TokenTree::Ident(first) = &tokens[at] {
                let mut segments = vec![first.to_string()];
                while is_colon(at + 1) && is_colon(at + 2) {
                    match tokens.get(at + 3) {
                        Some(TokenTree::Ident(name)) => segments.push(name.to_string()),
                        // Braces after `crate::` or an asterisk: a name that no module has.
                        Some(TokenTree::Group(_)) if segments.len() == 1 => segments.push("{}".into()),
                        _ => break,
                    }
                    at += 3;
                }
                if segments.len() > 1 {
                    self.add(segments, false, line(first.span()));
                } else if first == "crate"
                    && matches!(tokens.get(at + 1), Some(TokenTree::Ident(name)) if name == "self")
                {
                    self.add(vec![EXTERN_SELF.into()], true, line(first.span()));
                }
            }
            if let Some(TokenTree::Group(group)) = tokens.get(at) {
                self.scan(group.stream());
            }
            at += 1;
        }
    }
}

/// The source files of a crate and the table of its modules.
struct Sources {
    files: Vec<SourceFile>,
    table: Vec<Row>,
    findings: Vec<String>,
}

impl Sources {
    fn parse(files: &[(String, String)]) -> Sources {
        let mut findings = Vec::new();
        let lib = files.iter().find(|(path, _)| path == "src/lib.rs").expect("src/lib.rs");
        let table = table(&lib.1, &mut findings);
        Sources { files: files.iter().map(|(path, text)| SourceFile::parse(path, text)).collect(), table, findings }
    }

    /// Every breach of a rule as `file:line: message`.
    fn findings(&self) -> Vec<String> {
        let mut findings = self.findings.clone();
        let modules = self.modules();
        for row in self.table.iter().filter(|row| !modules.contains(std::slice::from_ref(&row.module))) {
            findings.push(format!("src/lib.rs:{}: the table names `{}`, which is not a module", row.line, row.module));
        }
        for file in &self.files {
            let mut report = |line: usize, text: String| findings.push(format!("{}:{line}: {text}", file.path));
            if is_binary(&file.path) {
                for (module, line) in &file.modules {
                    report(*line, format!("a binary has no modules of its own: `mod {}`", module.join("::")));
                }
            } else if let Some(module) = file.module.first()
                && self.row(module).is_none()
            {
                report(1, format!("the table in src/lib.rs does not name the module `{module}`"));
                continue;
            }
            for of in &file.uses {
                if let Some(text) = self.breach(file, of, &modules) {
                    report(of.line, text);
                }
            }
        }
        findings
    }

    fn breach(&self, file: &SourceFile, of: &Use, modules: &BTreeSet<Vec<String>>) -> Option<String> {
        let path = of.segments.join("::");
        let first = of.segments.first()?;
        if is_binary(&file.path) && first == "brackfs" && of.segments.get(1).is_none_or(|name| name != "cli") {
            return Some(format!("a binary may use only `brackfs::cli`, not `{path}`"));
        }
        if first == EXTERN_SELF {
            return Some(format!("`{EXTERN_SELF}` gives the crate a second name; use `crate`"));
        }
        let target = of.target(modules)?;
        if of.is_glob() {
            let is_allowed = path == "super::*" && of.is_in_tests();
            return (!is_allowed).then(|| format!("glob import of our own modules: `{path}`"));
        }
        let module = file.module.first()?;
        match target.first() {
            Some(used) if used == module || self.row(module).is_some_and(|row| row.uses.contains(used)) => None,
            Some(used) if self.row(used).is_some() => Some(format!("`{module}` may not use `{used}`: `{path}`")),
            _ => Some(format!("`{path}` is not in a module of the table; use items from the module that defines them")),
        }
    }

    fn row(&self, module: &str) -> Option<&Row> {
        self.table.iter().find(|row| row.module == module)
    }

    /// The modules that are files or are declared in files of the crate.
    fn modules(&self) -> BTreeSet<Vec<String>> {
        let files = self.files.iter().filter(|file| !is_binary(&file.path));
        files
            .flat_map(|file| file.modules.iter().map(|(module, _)| module).chain([&file.module]))
            .filter(|module| !module.is_empty())
            .cloned()
            .collect()
    }

    /// Files of the crate that use each other, the largest circle first. Tests are left out.
    fn circles(&self) -> Vec<BTreeSet<&str>> {
        let modules = self.modules();
        let files = || self.files.iter().filter(|file| !file.module.is_empty());
        let file_of: BTreeMap<&[String], &str> = files().map(|file| (&file.module[..], &file.path[..])).collect();
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for file in files() {
            let targets = file.uses.iter().filter(|of| !of.is_in_tests()).filter_map(|of| of.target(&modules));
            let used = targets.filter_map(|target| {
                (1..=target.len()).rev().find_map(|length| file_of.get(&target[..length]).copied())
            });
            uses.insert(&file.path, used.filter(|used| *used != file.path).collect());
        }
        let reached: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|from| (*from, reached(from, &uses))).collect();
        let circle =
            |file: &str| reached[file].iter().filter(|other| reached[**other].contains(file)).copied().collect();
        let circles: BTreeSet<BTreeSet<&str>> = uses.keys().map(|file| circle(file)).collect();
        let mut circles: Vec<_> = circles.into_iter().filter(|circle| !circle.is_empty()).collect();
        circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
        circles
    }
}

/// The files that `from` uses, directly or through others; `from` itself only if it is in a circle.
fn reached<'a>(from: &str, uses: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left: Vec<&str> = uses[from].iter().copied().collect();
    while let Some(file) = left.pop() {
        if reached.insert(file) {
            left.extend(&uses[file]);
        }
    }
    reached
}

// --- this crate ---

/// The source files of this crate, as `src/…` and text.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("folder of sources") {
            let path = entry.expect("entry of src").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("path below the project").to_str().expect("UTF-8");
                files.push((name.to_owned(), fs::read_to_string(&path).expect("source file")));
            }
        }
    }
    files.sort();
    assert!(files.len() > 100, "only {} source files found", files.len());
    files
}

fn sources() -> Sources {
    Sources::parse(&files())
}

#[test]
fn only_a_few_files_have_unsafe_code() {
    let files = files();
    let allowing = files.iter().filter(|(_, text)| text.contains("unsafe_code")).map(|(path, _)| path.as_str());
    assert_eq!(Vec::from_iter(allowing), UNSAFE);
    let (code, _) = files
        .iter()
        .find(|(path, _)| path == UNSAFE[0])
        .map(|(_, text)| text)
        .expect("the file")
        .split_once("mod tests")
        .expect("tests");
    assert!(!code.contains("unsafe"));
}

#[test]
fn modules_use_only_the_modules_that_the_table_allows() {
    let findings = sources().findings();
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn only_a_few_files_use_each_other_in_a_circle() {
    let sources = sources();
    let mut too_large = Vec::new();
    for circle in sources.circles() {
        let shown = format!("{} files: {circle:?}", circle.len());
        println!("{shown}");
        if circle.len() > LARGEST_CIRCLE {
            too_large.push(shown);
        }
    }
    assert!(too_large.is_empty(), "files use each other in circles that are too large:\n{}", too_large.join("\n"));
}

// --- the check itself ---

const LIB: &str = "\
//! <!-- layers -->
//! | module | may use |
//! | --- | --- |
//! | `low` | – |
//! | `side` | – |
//! | `high` | `low` |
//! | `cli` | `high` |
//! <!-- /layers -->
pub mod cli;
pub mod high;
pub mod low;
pub mod side;
";

/// A small crate with the table of [`LIB`], where these files replace or extend empty ones.
fn crate_with(files: &[(&str, &str)]) -> Sources {
    let names = ["src/cli.rs", "src/high/mod.rs", "src/high/part.rs", "src/low.rs", "src/main.rs", "src/side.rs"];
    let mut all: BTreeMap<String, String> = names.map(|name| (name.into(), String::new())).into();
    all.insert("src/lib.rs".into(), LIB.into());
    all.extend(files.iter().map(|(path, text)| (path.to_string(), text.to_string())));
    Sources::parse(&Vec::from_iter(all))
}

#[track_caller]
fn assert_finds(path: &str, text: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|finding| format!("{path}:{finding}")).collect();
    assert_eq!(crate_with(&[(path, text)]).findings(), expected, "{text}");
}

#[test]
fn paths_that_the_table_allows_pass() {
    for text in [
        "use crate::low::Thing;",
        "use crate::high::part::Thing;",
        "use super::Thing;",
        "use self::inner::Thing; mod inner {}",
        "use {std::fs, crate::low::{self, Thing as Other}};",
        "use side::Thing;",
        "pub(crate) fn f() -> impl Fn() + use<> { || crate::low::f::<super::Thing>() }",
        "pub(in crate::high) struct Thing;",
        "pub(super) struct Thing;",
        "mod tests { use super::*; }",
        "mod tests { mod inner { use super::*; } }",
        "// use crate::side;\n/* crate::side::f() */ /// crate::side\nfn f() {}",
        r##"const A: [&str; 3] = ["crate::side::f()", r#""crate::side"#, "\"crate::side::"];"##,
        "const QUOTE: char = '\"'; fn f<'a>(x: &'a str) {} // crate::side",
        "macro_rules! m { () => { $crate::low::f() } }",
        "use Kind::*;",
    ] {
        assert_finds("src/high/part.rs", text, &[]);
    }
    assert_finds("src/main.rs", "fn main() { brackfs::cli::main() }", &[]);
    assert_finds("src/main.rs", "use brackfs::cli::{self, main as run};", &[]);
}

#[test]
fn paths_that_the_table_does_not_allow_are_found() {
    for (line, text, path) in [
        (1, "use crate::side::Thing;", "crate::side::Thing"),
        (2, "use std::fs;\nuse crate::{low, side};", "crate::side"),
        (3, "use crate::{\n    low::Thing,\n    side::{self},\n};", "crate::side::self"),
        (1, "pub use super::super::side::Thing;", "super::super::side::Thing"),
        (1, "fn f() { crate::side::f() }", "crate::side::f"),
        (1, "fn f(x: Vec<crate::side::Thing>) {}", "crate::side::Thing"),
        (1, "impl crate::side::Trait for u8 {}", "crate::side::Trait"),
        (1, "fn f() { <u8 as crate::side::Trait>::f() }", "crate::side::Trait::f"),
        (1, "fn f() { println!(\"{}\", crate::side::f()) }", "crate::side::f"),
        (1, "fn f() { vec![[(crate::side::f())]]; }", "crate::side::f"),
        (1, "macro_rules! m { () => { $crate::side::f() } }", "crate::side::f"),
        (1, "#[arg(default_value_t = crate::side::DEFAULT)] struct S;", "crate::side::DEFAULT"),
        (1, "mod inner { fn f() { super::super::super::side::f() } }", "super::super::super::side::f"),
        (2, "mod tests {\n    use crate::side::Thing;\n}", "crate::side::Thing"),
    ] {
        let expected = format!("{line}: `high` may not use `side`: `{path}`");
        assert_finds("src/high/part.rs", text, &[&expected]);
    }
    assert_finds("src/low.rs", "use crate::high::Thing;", &["1: `low` may not use `high`: `crate::high::Thing`"]);
    assert_finds("src/high/mod.rs", "use super::side::f;", &["1: `high` may not use `side`: `super::side::f`"]);
}

#[test]
fn items_of_the_crate_root_are_found() {
    for (text, path) in [
        ("use crate::Thing;", "crate::Thing"),
        ("use crate as root;", "crate"),
        ("use super::super as root;", "super::super"),
        ("fn f() { crate::f() }", "crate::f"),
        ("m!(crate::{low, side});", "crate::{}"),
    ] {
        let expected =
            format!("1: `{path}` is not in a module of the table; use items from the module that defines them");
        assert_finds("src/high/part.rs", text, &[&expected]);
    }
}

#[test]
fn second_names_of_the_crate_are_found() {
    let expected = "`extern crate self` gives the crate a second name; use `crate`";
    for text in [
        "extern crate self as x;",
        "pub extern crate self as x;",
        "mod inner { extern crate self as x; }",
        "mod tests { extern crate self as x; use x::side::f; }",
        "macro_rules! m { () => { extern crate self as x; } }",
    ] {
        for path in ["src/high/part.rs", "src/main.rs"] {
            let findings = crate_with(&[(path, text)]).findings();
            assert!(findings.contains(&format!("{path}:1: {expected}")), "{text}: {findings:?}");
        }
    }
    assert_finds("src/lib.rs", &format!("{LIB}extern crate self as x;\n"), &[&format!("13: {expected}")]);
    assert_finds("src/high/part.rs", "extern crate alloc;", &[]);
}

#[test]
fn glob_imports_of_our_own_modules_are_found() {
    for (text, path) in [
        ("use crate::low::*;", "crate::low::*"),
        ("use super::*;", "super::*"),
        ("use self::Kind::*;", "self::Kind::*"),
        ("mod inner {} use inner::*;", "inner::*"),
        ("mod tests { use super::super::*; }", "super::super::*"),
        ("mod tests { use crate::low::*; }", "crate::low::*"),
    ] {
        assert_finds("src/high/part.rs", text, &[&format!("1: glob import of our own modules: `{path}`")]);
    }
    let lib = format!("{LIB}pub use low::*;\n");
    assert_finds("src/lib.rs", &lib, &["13: glob import of our own modules: `low::*`"]);
    assert_finds("src/main.rs", "use crate::*;", &["1: glob import of our own modules: `crate::*`"]);
}

#[test]
fn binaries_that_use_more_than_cli_are_found() {
    for (text, path) in [
        ("use brackfs::low::f;", "brackfs::low::f"),
        ("use brackfs::{cli, low};", "brackfs::low"),
        ("use brackfs as lib;", "brackfs"),
        ("extern crate brackfs as lib;", "brackfs"),
        ("use ::brackfs::low;", "brackfs::low"),
        ("use brackfs::*;", "brackfs::*"),
        ("fn main() { brackfs::low::f() }", "brackfs::low::f"),
        ("fn main() { println!(\"{}\", brackfs::low::f()) }", "brackfs::low::f"),
    ] {
        for binary in ["src/main.rs", "src/bin/other.rs"] {
            assert_finds(binary, text, &[&format!("1: a binary may use only `brackfs::cli`, not `{path}`")]);
        }
    }
    assert_finds("src/main.rs", "mod other;", &["1: a binary has no modules of its own: `mod other`"]);
}

#[test]
fn modules_that_the_table_does_not_name_are_found() {
    let expected = "1: the table in src/lib.rs does not name the module `new`";
    assert_finds("src/new.rs", "", &[expected]);
    assert_finds("src/new/part.rs", "use crate::side::Thing;", &[expected]);
}

#[test]
fn tables_that_contradict_themselves_are_found() {
    for (from, to, expected) in [
        ("`low` | –", "`low` | `high`", "4: `low` may use `high`, which is not above it in the table"),
        ("`high` | `low`", "`high` | `high`", "6: `high` may use `high`, which is not above it in the table"),
        ("`high` | `low`", "`high` | `lower`", "6: `high` may use `lower`, which is not above it in the table"),
        ("`side` | –", "`low` | –", "5: the table names `low` twice"),
        ("`side` | –", "`lost` | –", "5: the table names `lost`, which is not a module"),
        ("`side` | –", "side | –", "5: a row of the table names no `module`"),
        ("<!-- layers -->", "", "1: cannot find the table between `<!-- layers -->` and `<!-- /layers -->`"),
    ] {
        let lib = LIB.replace(from, to);
        assert_ne!(lib, LIB);
        let findings = crate_with(&[("src/lib.rs", &lib)]).findings();
        assert!(findings.contains(&format!("src/lib.rs:{expected}")), "{findings:?}");
    }
}

#[test]
fn circles_of_files_are_found() {
    let circles = |files: &[(&str, &str)]| {
        let sources = crate_with(files);
        sources
            .circles()
            .iter()
            .map(|circle| Vec::from_iter(circle.iter().map(ToString::to_string)))
            .collect::<Vec<_>>()
    };
    let part = ("src/high/part.rs", "use super::Thing; use crate::low::f;");
    assert!(circles(&[part]).is_empty());
    // A re-export is a use, a declaration is not. A path uses only the file at its end.
    assert!(circles(&[part, ("src/high/mod.rs", "mod part; use crate::low::f;")]).is_empty());
    assert!(circles(&[("src/high/mod.rs", "pub use part::f;"), ("src/high/other.rs", "use super::part;")]).is_empty());
    assert_eq!(circles(&[part, ("src/high/mod.rs", "pub use part::f;")]), [["src/high/mod.rs", "src/high/part.rs"]]);
    assert_eq!(circles(&[part, ("src/high/mod.rs", "fn g() { m!(self::part::f()) }")]).len(), 1);
    assert!(circles(&[part, ("src/high/mod.rs", "mod tests { use super::part::f; }")]).is_empty());
    let visible = ("src/high/part.rs", "pub(in crate::high) fn f() {}");
    assert!(circles(&[visible, ("src/high/mod.rs", "use part::f;")]).is_empty());
    let three = [
        ("src/high/a.rs", "use super::b::f;"),
        ("src/high/b.rs", "fn f() { super::c::inner::f() }"),
        ("src/high/c.rs", "mod inner { use crate::high::{a, part}; }"),
    ];
    assert_eq!(circles(&three), [["src/high/a.rs", "src/high/b.rs", "src/high/c.rs"]]);
}
