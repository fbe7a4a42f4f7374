//! What the command line asks of a benchmark.

use std::time::Duration;

/// `cargo bench … -- [--quick] [--seconds N] [--rounds N] [PART …]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length of one measurement.
    pub length: Duration,
    /// Rounds over all targets. Default: 3.
    pub rounds: usize,
    /// A look whether it works, not a measurement.
    pub quick: bool,
    parts: Vec<String>,
}

impl Options {
    /// Reads the command line; `None` unless `cargo bench` runs this, and then nothing is to be done. `default` is the
    /// length of one measurement.
    pub fn asked(default: Duration) -> Option<Self> {
        let words: Vec<String> = std::env::args().skip(1).collect();
        if !words.iter().any(|word| word == "--bench") {
            return None;
        }
        match Self::read(&words, default) {
            Ok(options) => Some(options),
            Err(why) => {
                eprintln!("{why}; it takes [--quick] [--seconds N] [--rounds N] [PART …]");
                std::process::exit(2);
            }
        }
    }

    fn read(words: &[String], default: Duration) -> Result<Self, String> {
        let mut options = Self { length: default, rounds: 3, quick: false, parts: vec![] };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || {
                let number = words.next().and_then(|word| word.parse::<u64>().ok()).filter(|n| *n > 0);
                number.ok_or_else(|| format!("`{word}` needs a number"))
            };
            match word.as_str() {
                "--bench" => {}
                "--quick" => (options.quick, options.length, options.rounds) = (true, Duration::from_secs(2), 1),
                "--seconds" => options.length = Duration::from_secs(number()?),
                "--rounds" => options.rounds = usize::try_from(number()?).unwrap_or(usize::MAX),
                flag if flag.starts_with('-') => return Err(format!("`{flag}` is not known")),
                part => options.parts.push(part.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether a part is wanted: all are unless some are named.
    pub fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    /// `many`, or `few` for a quick look.
    pub fn count(&self, many: usize, few: usize) -> usize {
        if self.quick { few } else { many }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let read = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Options::read(&words, Duration::from_secs(5))
        };
        let plain = read("--bench").expect("read");
        assert!((plain.length.as_secs(), plain.rounds, plain.quick) == (5, 3, false) && plain.wants("memory"));
        let some = read("--bench --quick --seconds 4 memory syncs").expect("read");
        assert!((some.length.as_secs(), some.rounds, some.quick) == (4, 1, true));
        assert!(some.wants("syncs") && !some.wants("start"));
        assert!(read("--seconds").is_err() && read("--seconds 0").is_err() && read("--what").is_err());
    }
}
