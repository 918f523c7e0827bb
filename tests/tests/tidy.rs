//! What holds for the source of the whole project: comments fit a line, files say why they exist,
//! functions fit a screen, in the product one name is one thing, the README and the map are short,
//! warnings are explained, and links between documents lead somewhere.
//!
//! What does not hold yet is listed here; the lists may only become shorter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// Columns that a comment may take.
const COMMENT_MAX: usize = 100;

/// Words that ARCHITECTURE.md may take.
const ARCHITECTURE_MAX: usize = 1_800;

/// What tells of each log line at WARN and ERROR.
const LOG_LINES: &str = "docs/operate/log-lines.md";

/// Lines that the README may take.
const README_MAX: usize = 120;

/// Lines that a function may take.
const FUNCTION_MAX: usize = 75;

/// Functions that take more: file, name, why.
const LONGER_FUNCTIONS: &[(&str, &str, &str)] = &[
    ("control/src/rest/problem.rs", "told", "a table of answers"),
    (
        "control/tests/command_line/cases.rs",
        "cases",
        "a table of cases",
    ),
    (
        "control/tests/command_line/main.rs",
        "create_and_string_work_without_control_and_strings_carry_what_they_should",
        "one story",
    ),
    (
        "control/tests/other_users.rs",
        "what_others_can_change_is_refused_with_the_command_that_mends_it",
        "one story",
    ),
    (
        "control/tests/rest/changes.rs",
        "what_is_not_as_described_is_told_with_its_place",
        "a table of cases",
    ),
    (
        "control/tests/rest/changes.rs",
        "keys_are_listed_with_their_strings_and_made_anew_one_by_one_and_both_is_audited",
        "one story",
    ),
    (
        "dataplane/proto/tests/properties.rs",
        "frame",
        "an arm for each frame",
    ),
    (
        "dataplane/proto/tests/rules/strings.rs",
        "a_wrong_connection_string_says_which_field_and_never_the_key",
        "a table of cases",
    ),
    (
        "dataplane/src/relay/peers/registrations.rs",
        "register",
        "to be split",
    ),
    (
        "loadtest/src/faults/rows/load.rs",
        "slow_readers",
        "to be split",
    ),
    (
        "loadtest/src/scenario/check.rs",
        "a_scenario_without_sense_is_refused_by_group_and_field",
        "a table of cases",
    ),
    (
        "loadtest/src/scenario/file.rs",
        "every_field_is_read",
        "a table of cases",
    ),
    ("loadtest/tests/verdicts.rs", "pump", "to be split"),
];

/// Crates of the product.
const PRODUCT: [&str; 3] = ["dataplane/proto/src", "dataplane/src", "control/src"];

/// Names that Rust programs use in each module: arguments and subcommands of a command line, and
/// errors.
const OF_EACH_MODULE: [&str; 4] = ["Args", "Command", "Error", "RunArgs"];

/// Names that more than one type of the product has, to be given up one by one.
const NAMES_OF_SEVERAL: &[&str] = &[
    "Agent",
    "Asked",
    "Asker",
    "Attempt",
    "Bindings",
    "Book",
    "Caller",
    "Cause",
    "Change",
    "Choice",
    "Config",
    "Connect",
    "ConnectEntry",
    "Counts",
    "Cut",
    "Datagrams",
    "Definition",
    "Dial",
    "Directory",
    "Document",
    "Done",
    "End",
    "Ended",
    "Entry",
    "Event",
    "Failure",
    "Fault",
    "Fields",
    "Files",
    "Found",
    "Head",
    "Health",
    "Heard",
    "Held",
    "Holder",
    "HybridConnection",
    "Identity",
    "Judged",
    "KeepAlive",
    "Keeper",
    "Key",
    "KeyUse",
    "Kind",
    "Known",
    "Line",
    "Listener",
    "Listeners",
    "Live",
    "Loaded",
    "Log",
    "Message",
    "Network",
    "Open",
    "Opened",
    "Over",
    "Owner",
    "Passing",
    "Path",
    "Peer",
    "Place",
    "Places",
    "Plan",
    "Probe",
    "Probed",
    "Process",
    "Question",
    "Queue",
    "Refused",
    "Registration",
    "Relay",
    "Request",
    "Role",
    "Scene",
    "Seen",
    "Sent",
    "Session",
    "Side",
    "Site",
    "Slot",
    "Source",
    "Stage",
    "State",
    "Stream",
    "Supervisor",
    "Table",
    "Turn",
    "View",
    "Waiter",
    "Watched",
    "Way",
    "Workers",
];

/// A file of the project.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is_product(&self) -> bool {
        let is_test = self.path.ends_with("/tests.rs") || self.path.contains("/tests/");
        !is_test && PRODUCT.iter().any(|folder| self.path.starts_with(folder))
    }

    fn parsed(&self) -> syn::File {
        syn::parse_file(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.path))
    }

    /// The same without modules of tests.
    fn parsed_without_tests(&self) -> syn::File {
        let mut file = self.parsed();
        let is_tests = |item: &syn::Item| match item {
            syn::Item::Mod(module) => module.attrs.iter().any(is_for_tests),
            _ => false,
        };
        file.items.retain(|item| !is_tests(item));
        file
    }
}

/// All Rust files of the workspace.
fn sources() -> Vec<Source> {
    let sources = files("rs");
    assert!(sources.len() > 400, "only {} files", sources.len());
    sources
}

fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace")
}

/// All files of one kind below the workspace's folder.
fn files(kind: &str) -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder can be read") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_source = path.extension().is_some_and(|extension| extension == kind);
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if is_source {
                let relative = path.strip_prefix(root).expect("below the root");
                sources.push(Source {
                    path: relative.to_string_lossy().into_owned(),
                    text: fs::read_to_string(&path).expect("a file can be read"),
                });
            }
        }
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    sources
}

fn hold(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn comments_fit_a_line() {
    let mut faults = Vec::new();
    for Source { path, text } in sources() {
        for (nth, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("//") && line.chars().count() > COMMENT_MAX {
                faults.push(format!(
                    "{path}:{}: more than {COMMENT_MAX} columns",
                    nth + 1
                ));
            }
        }
    }
    hold(&faults);
}

#[test]
fn files_say_why_they_exist() {
    let without = |source: &Source| !source.text.starts_with("//! ");
    let sources = sources();
    let faults = sources.iter().filter(|source| without(source));
    let faults: Vec<String> = faults
        .map(|source| {
            format!(
                "{}: does not begin with `//! ` and its purpose",
                source.path
            )
        })
        .collect();
    hold(&faults);
}

#[test]
fn functions_fit_a_screen() {
    let mut faults = Vec::new();
    let mut met = BTreeSet::new();
    for source in sources() {
        let mut functions = Functions::default();
        functions.visit_file(&source.parsed());
        for (name, lines) in functions.0 {
            let is_it =
                |(path, listed, _): &(&str, &str, &str)| *path == source.path && *listed == name;
            let listed = LONGER_FUNCTIONS.iter().position(is_it);
            if lines > FUNCTION_MAX && listed.is_none() {
                faults.push(format!("{}: `{name}` takes {lines} lines", source.path));
            } else if lines > FUNCTION_MAX {
                met.extend(listed);
            }
        }
    }
    let listed = LONGER_FUNCTIONS.iter().enumerate();
    faults.extend(
        listed
            .filter(|(nth, _)| !met.contains(nth))
            .map(|(_, (path, name, _))| {
                format!("{path}: `{name}` fits by now, or is gone: take it off the list")
            }),
    );
    hold(&faults);
}

/// Names of functions, and how many lines each takes.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.span().start().line;
        let last = block.span().end().line;
        self.0.push((signature.ident.to_string(), last - first + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[test]
fn in_the_product_one_name_is_one_type() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in sources().into_iter().filter(Source::is_product) {
        let mut types = Types::default();
        types.visit_file(&source.parsed_without_tests());
        for name in types.0 {
            places.entry(name).or_default().push(source.path.clone());
        }
    }
    places.retain(|name, places| places.len() > 1 && !OF_EACH_MODULE.contains(&name.as_str()));
    let listed: BTreeSet<&str> = NAMES_OF_SEVERAL.iter().copied().collect();
    let found: BTreeSet<&str> = places.keys().map(String::as_str).collect();
    let new = found.difference(&listed);
    let new = new.map(|name| format!("`{name}` is declared in {}", places[*name].join(", ")));
    let old = listed.difference(&found);
    let old = old.map(|name| format!("`{name}` is one type now: take it off the list"));
    hold(&new.chain(old).collect::<Vec<_>>());
}

#[test]
fn each_warning_is_explained_to_who_operates_it() {
    let page = fs::read_to_string(root().join(LOG_LINES)).expect("the page is there");
    let mut lines = 0;
    let mut faults = Vec::new();
    for source in sources().into_iter().filter(Source::is_product) {
        let mut warnings = Warnings::default();
        warnings.visit_file(&source.parsed_without_tests());
        for text in warnings.0 {
            let Some(words) = fixed_words(&text) else {
                continue;
            };
            lines += 1;
            if !page.contains(words) {
                faults.push(format!("{}: {LOG_LINES} has no `{words}`", source.path));
            }
        }
    }
    assert!(lines > 40, "only {lines} lines");
    hold(&faults);
}

/// The first words of a log line that are always the same; `None` where all of it comes from
/// elsewhere.
fn fixed_words(text: &str) -> Option<&str> {
    let parts = text.split(['{', '}', ';', ':', ',', '(']).map(str::trim);
    // Names in braces are short.
    parts
        .into_iter()
        .find(|part| part.len() >= 9 || (part.contains(' ') && part.len() > 5))
}

/// Texts of log lines at WARN and ERROR.
#[derive(Default)]
struct Warnings(Vec<String>);

impl<'ast> Visit<'ast> for Warnings {
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call
            .path
            .segments
            .last()
            .map(|segment| segment.ident.to_string());
        if matches!(name.as_deref(), Some("warn" | "error")) {
            let tokens = call.tokens.clone().into_iter();
            let texts = tokens.filter_map(|token| syn::parse2::<syn::LitStr>(token.into()).ok());
            self.0.extend(texts.last().map(|text| text.value()));
        }
    }
}

/// Names of types that a file declares outside its tests.
#[derive(Default)]
struct Types(Vec<String>);

impl<'ast> Visit<'ast> for Types {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.0.push(item.ident.to_string());
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.0.push(item.ident.to_string());
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.0.push(item.ident.to_string());
    }
}

fn is_for_tests(attribute: &syn::Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else {
        return false;
    };
    list.path.is_ident("cfg") && list.tokens.to_string().contains("test")
}

#[test]
fn the_readme_is_short() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there is one");
    let lines = readme.lines().count();
    assert!(lines <= README_MAX, "{lines} lines");
}

#[test]
fn the_architecture_is_a_short_map() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("there is one");
    let words = map.split_whitespace().count();
    assert!(words <= ARCHITECTURE_MAX, "{words} words");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut links = 0;
    let mut faults = Vec::new();
    for page in files("md") {
        let folder = root().join(&page.path);
        let folder = folder.parent().expect("a folder");
        for target in page.text.split("](").skip(1) {
            let target = target.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            if !folder.join(target).exists() {
                faults.push(format!("{}: {target} is not there", page.path));
            }
        }
    }
    assert!(links > 40, "only {links} links");
    hold(&faults);
}
