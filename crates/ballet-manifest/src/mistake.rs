//! What is wrong with a manifest: every mistake at once, each with its place and a way out.

use std::fmt;

use ballet_core::{Classify, CodeEntry, ErrorCode, Retry};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Its row in [`crate::CODES`].
    pub code: ErrorCode,
    /// The file as given to `load`, or `--set KEY`, or `environment NAME`.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// How many characters the caret underlines; at least 1.
    pub width: usize,
    /// What is wrong.
    pub message: String,
    /// The line itself, empty if there is none to show.
    pub snippet: String,
    /// What to do.
    pub help: String,
}

/// All mistakes of one manifest, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:{}:{}: {} [{}]", self.file, self.line, self.column, self.message, self.code)?;
        if !self.snippet.is_empty() {
            let number = self.line.to_string();
            let margin = " ".repeat(number.len());
            // The caret stands under its place only if what is before it is copied with its tabs.
            let before: String =
                self.snippet.chars().take(self.column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            writeln!(f, "{margin} |\n{number} | {}\n{margin} | {before}{}", self.snippet, "^".repeat(self.width))?;
        }
        write!(f, "help: {}", self.help)
    }
}

impl Mistakes {
    /// For `--json`: a list of `{code, file, line, column, message, help}`.
    pub fn to_json(&self) -> serde_json::Value {
        let row = |mistake: &Mistake| {
            serde_json::json!({
                "code": mistake.code.0,
                "file": mistake.file,
                "line": mistake.line,
                "column": mistake.column,
                "message": mistake.message,
                "help": mistake.help,
            })
        };
        self.0.iter().map(row).collect()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

impl Classify for Mistakes {
    fn code(&self) -> ErrorCode {
        self.0.first().map_or(UNREADABLE, |mistake| mistake.code)
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }
}

macro_rules! codes {
    ($($name:ident $code:literal $title:literal, $cause:literal, $remedy:literal;)*) => {
        $(pub(crate) const $name: ErrorCode = ErrorCode($code);)*
        /// This crate's rows of the error table.
        pub static CODES: &[CodeEntry] = &[
            $(CodeEntry { code: $name, title: $title, cause: $cause, remedy: $remedy },)*
        ];
    };
}

codes! {
    UNREADABLE "MF001" "the manifest cannot be read", "The file is absent, not UTF-8, larger than 1 MiB, or may not be opened.", "Name the manifest with `--file`, or run `ballet` beside a `ballet.yaml`.";
    SYNTAX "MF002" "not YAML", "The text is not valid YAML 1.2.", "Look at the marked place: often a quote, a bracket or the indentation of the line above.";
    NOT_OUR_YAML "MF003" "YAML that is not allowed here", "Tabs, anchors, aliases, tags, several documents and keys that are not plain text are not part of the subset.", "Write the value out; indent with spaces.";
    DUPLICATE_KEY "MF004" "a key stands twice", "One map has the same key two times; YAML parsers disagree on which one counts.", "Delete one of them.";
    UNKNOWN_KEY "MF005" "unknown key", "The key is not one that anything reads.", "Check the spelling; `ballet schema` lists all keys.";
    WRONG_TYPE "MF006" "wrong type of value", "A text stands where a map, list or number belongs, or the other way round.", "Write the value in the form that the message names.";
    BAD_VALUE "MF007" "a value that does not parse", "The value has the right type and the wrong form: a duration without unit, an address without port.", "Write it as in the example of the message.";
    MISSING_KEY "MF008" "a required key is absent", "Something cannot be done without this key.", "Add it.";
    EXCLUSIVE "MF009" "keys that exclude each other", "Two keys say different things about the same matter, or none of them is given.", "Keep exactly one.";
    UNKNOWN_NAME "MF010" "unknown name", "A service, policy, access rule, workflow or step is named that does not exist.", "Check the spelling, or add it.";
    AMBIGUOUS_ROUTE "MF011" "ambiguous routes", "Two routes take the same requests with the same precedence.", "Delete one of them, or make one more specific.";
    BAD_EXPRESSION "MF012" "bad expression", "`${…}` is malformed, or its scope has no meaning at this place.", "Scopes are `env`; in routes `claims`, `path`, `query`, `header`; in subscriptions `event`; in workflows `input`, `STEP.output`, `failure`, `execution`.";
    MISSING_ENV "MF013" "missing environment variable", "`${env.NAME}` or `{ env: NAME }` names a variable that is not set.", "Set it, or give a default: `${env.NAME:-value}`.";
    SHARED_STORE "MF014" "two services share a store", "A database belongs to one service; others ask that service.", "Give each its own store.";
    ACCESS_CYCLE "MF015" "access rules use each other in a circle", "A `use:` leads back to where it began.", "Let one of them have its own `jwt:`.";
    MISSING_FILE "MF016" "a named file is missing or bad", "A schema, workflow or secret file cannot be read, or is not what it should be.", "Paths are relative to the manifest.";
    NO_ENGINE "MF017" "engine not in this build", "The manifest names an engine whose driver was not compiled in.", "Build with the feature that the message names, or use `embedded`.";
    NOT_YET "MF018" "not supported yet", "The key or value is known and reserved, but nothing reads it in this version.", "Remove it for now.";
    NOT_LOOPBACK "MF019" "a listener open to the network", "An address that is not loopback, without TLS and tokens.", "Listen on 127.0.0.1, or say `platform: { insecure: true }`.";
    UNKNOWN_PROFILE "MF020" "unknown profile", "`--profile` names a profile that the manifest does not have.", "Use one of `profiles:`.";
    BAD_SET "MF021" "`--set` cannot be applied", "It has no `=`, or its path does not lead anywhere.", "Write `--set KEY=VALUE`, for instance `--set gateway.listen=127.0.0.1:0`.";
    TWICE "MF022" "said twice", "The same target or step name stands twice.", "Delete or rename one of them.";
}
