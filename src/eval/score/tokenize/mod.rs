//! The words of a caption as pycocoevalcap finds them: Penn Treebank tokens of Stanford CoreNLP 3.4.1, in lower case, without
//! punctuation marks. Contractions are split (do n't, it 's), hyphenated words are not.
//!
//! Every caption is tokenised by itself. CoreNLP reads all captions as one text, so that there a last word such as "x." or
//! "no." depends on how the next caption begins.

mod rules;

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use crate::{Error, Result};
use rules::Take;

/// Tokens that are left out. Parentheses stay, as names in lower case: pycocoevalcap looks for those in upper case.
const PUNCTUATION: [&str; 13] = ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"];
/// Memory of the automaton that each thread fills while it reads, in bytes.
const CACHE: usize = 32 << 20;

/// The automaton of all rules.
pub struct Tokenizer {
    takes: Vec<Take>,
    automaton: DFA,
}

impl Tokenizer {
    /// Builds the automaton.
    ///
    /// # Errors
    /// None that a user could cause.
    pub fn new() -> Result<Tokenizer> {
        let (takes, rules): (Vec<Take>, Vec<String>) = rules::rules().into_iter().unzip();
        let config = DFA::config().match_kind(MatchKind::All).cache_capacity(CACHE);
        let automaton = DFA::builder()
            .configure(config)
            .syntax(syntax::Config::new().ignore_whitespace(true))
            .build_many(&rules)
            .map_err(|error| Error::internal(format!("the rules of the tokeniser: {error}")))?;
        Ok(Tokenizer { takes, automaton })
    }

    /// Memory for one thread.
    pub fn cache(&self) -> Cache {
        self.automaton.create_cache()
    }

    /// The tokens of a caption with spaces between them. A token may hold a no-break space: one that was written with a space,
    /// such as "1 1/2".
    pub fn tokenize(&self, caption: &str, cache: &mut Cache) -> String {
        let text = caption.replace(is_line_end, " ") + "\n";
        let (mut rest, mut tokens) = (&text[..], String::with_capacity(text.len()));
        while let Some(first) = rest.chars().next() {
            let input = Input::new(rest).anchored(Anchored::Yes);
            // An error would need bytes to stop at or a limit of the memory, and none is set.
            let Some(found) = self.automaton.try_search_fwd(cache, &input).ok().flatten() else {
                rest = &rest[first.len_utf8()..];
                continue;
            };
            let (length, token) = taken(self.takes[found.pattern().as_usize()], &rest[..found.offset()]);
            let token = token.replace(' ', "\u{A0}");
            if !token.is_empty() && !PUNCTUATION.contains(&&*token) {
                if !tokens.is_empty() {
                    tokens.push(' ');
                }
                tokens += &token;
            }
            rest = &rest[length..];
        }
        tokens
    }
}

/// Bytes that a match takes of the text, and the token they become.
fn taken(take: Take, matched: &str) -> (usize, String) {
    let without = |count: usize| matched.char_indices().rev().take(count).last().map_or(matched.len(), |(at, _)| at);
    let length = match take {
        Take::All | Take::Verbatim | Take::Quotes | Take::As(_) => matched.len(),
        Take::Without(count) | Take::Clitic(count) => without(count),
        Take::Stem(letters) => matched.rfind(is_tick).unwrap_or(matched.len()).saturating_sub(letters),
        Take::First => matched.chars().next().map_or(0, char::len_utf8),
        Take::ThroughStop => matched.find('.').map_or(matched.len(), |at| at + 1),
    };
    let token = &matched[..length].to_lowercase();
    let plain =
        |text: &str| text.replace('\u{AD}', "").replace('(', "-lrb-").replace(')', "-rrb-").replace("&amp;", "&");
    let token = match take {
        Take::As(other) => other.to_owned(),
        Take::Verbatim => token.to_owned(),
        Take::Quotes | Take::Clitic(_) => straight(&token.replace("&apos;", "'")),
        _ => plain(token),
    };
    (length, token)
}

/// Line ends of CoreNLP: a caption is one line.
fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{B}' | '\u{C}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Characters of which the last in a contraction begins its second part.
fn is_tick(c: char) -> bool {
    matches!(c, '\'' | '\u{92}' | '\u{2019}' | '&' | '`' | '\u{91}' | '\u{2018}' | '\u{201B}')
}

/// `text` with the Treebank's quotation marks in place of typographic ones.
fn straight(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, c| {
        match c {
            '\u{91}' | '\u{2018}' | '\u{201B}' | '\u{2039}' => plain.push('`'),
            '\u{92}' | '\u{2019}' | '\u{203A}' => plain.push('\''),
            '\u{93}' | '\u{AB}' | '\u{201C}' => plain.push_str("``"),
            '\u{94}' | '\u{BB}' | '\u{201D}' => plain.push_str("''"),
            other => plain.push(other),
        }
        plain
    })
}
