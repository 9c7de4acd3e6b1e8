//! The rules of the tokeniser, after PTBTokenizer of Stanford CoreNLP 3.4.1 and compared with it character by character and word
//! by word. At each place the longest match of all rules is taken; of those as long, the first. A name in braces stands for its
//! definition; white space in a rule has no meaning.

/// The part of a match that becomes a token; the rest is matched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// All of it, without soft hyphens and with names for parentheses.
    All,
    /// All of it as it stands.
    Verbatim,
    /// All of it, its typographic quotation marks replaced.
    Quotes,
    /// All but this many characters at its end.
    Without(usize),
    /// As `Without`, with plain apostrophes.
    Clitic(usize),
    /// As far as its last apostrophe, less this many characters: the word before a clitic.
    Stem(usize),
    /// Its first character.
    First,
    /// As far as its full stop.
    ThroughStop,
    /// Another text in its place; an empty one is no token.
    As(&'static str),
}

use Take::*;

/// Words that a full stop belongs to, in any case, even where a letter follows it.
const ABBREVIATIONS: &str = r"
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec ed\.d esq est etc ext feb
    fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla
    penn ph\.d plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va
    vt wed wis wisc wyo";
/// The same, unless they are in lower case: then they are other words.
const CAPITALISED: &str = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash ARK AZ DEL ILL LA MASS MISS ORE PA TEX WASH";
/// Words that a full stop belongs to unless a letter follows it.
const TITLES: &str = "
    adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov
    govs hon insp invt jos lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt rep
    reps rev sen sens sfc sgt spc st ste supt treas vs wm";
/// Words that begin a sentence: a full stop after a single letter before one of them ends the sentence before.
const OPENERS: &str = r"
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr\.
    Ms\. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When
    While Yet You";
/// Suffixes of file names.
const SUFFIXES: &str = "
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps
    py sql tar txt wav x xml zip";

/// Classes of characters and parts of rules; a definition may use those before it.
const DEFINITIONS: &[(&str, &str)] = &[
    // Letters and digits of Unicode 6.1, with what the tokeniser of that time thought of some.
    ("{letter}", r"[[\p{L}&&\p{Age:6.1}]\x{1885}\x{1886}--[\x{19B0}-\x{19C0}\x{19C8}\x{19C9}\x{1CF2}\x{1CF3}]]"),
    ("{digit}", r"[\p{Nd}&&\p{Age:6.1}]"),
    // Marks that may be part of a word, and the soft hyphen.
    (
        "{mark}",
        r"[\xAD\x{2C2}-\x{2C5}\x{2D2}-\x{2DF}\x{2E5}-\x{2EB}\x{2ED}\x{2EF}-\x{36F}\x{375}\x{378}\x{379}\x{384}\x{385}
        \x{3F6}\x{483}-\x{487}\x{55A}-\x{55F}\x{591}-\x{5BD}\x{5BF}\x{5C1}\x{5C2}\x{5C4}\x{5C5}\x{5C7}\x{615}-\x{61A}
        \x{64B}-\x{65E}\x{670}\x{6D6}-\x{6E4}\x{6E7}-\x{6ED}\x{6FD}\x{6FE}\x{70F}\x{711}\x{730}-\x{74C}\x{7A6}-\x{7B0}
        \x{7EB}-\x{7F3}\x{900}-\x{903}\x{93C}\x{93E}-\x{94E}\x{951}-\x{955}\x{962}\x{963}\x{981}-\x{983}\x{9BC}
        \x{9BE}-\x{9C4}\x{9C7}\x{9C8}\x{9CB}-\x{9CD}\x{9D7}\x{9E2}\x{9E3}\x{A01}-\x{A03}\x{A3C}\x{A3E}-\x{A4F}
        \x{A81}-\x{A83}\x{ABC}\x{ABE}-\x{ACF}\x{B82}\x{BBE}-\x{BC2}\x{BC6}-\x{BC8}\x{BCA}-\x{BCD}\x{C01}-\x{C03}
        \x{C3E}-\x{C56}\x{D3E}-\x{D44}\x{D46}-\x{D48}\x{E31}\x{E34}-\x{E3A}\x{E47}-\x{E4E}\x{EB1}\x{EB4}-\x{EBC}
        \x{EC8}-\x{ECD}]",
    ),
    ("{alphabetic}", r"(?:{letter}|{mark}|(?i:&[aeiou](?:acute|grave|uml);))"),
    ("{alphanumeric}", r"(?:{letter}|{digit})"),
    ("{space}", r"[\x20\t\xA0\x{2000}-\x{200A}\x{3000}]"),
    ("{break}", r"(?:{space}|[\r\n])"),
    ("{apostrophe}", r"(?:['\x92\x{2019}]|&apos;)"),
    ("{tick}", r"(?:{apostrophe}|[`\x91\x{2018}\x{201B}])"),
    ("{pause}", r"[,;:\x{3001}]"),
    // Words, also with inner punctuation; numbers that letters follow; words with hyphens.
    ("{word}", r"(?:{alphabetic}(?:{alphabetic}|{digit})*(?:[.!?]{alphabetic}(?:{alphabetic}|{digit})*)*)"),
    ("{numbered}", r"(?:{digit}{alphanumeric}*)"),
    ("{elided}", r"(?:(?:[dDoOlL]{tick}{alphanumeric})?{alphanumeric}+)"),
    ("{compound}", r"(?:{elided}(?:[_\x{58A}\x{2010}\x{2011}-]{elided})*)"),
    ("{hyphenated}", r"(?:[A-Za-z0-9][A-Za-z0-9.,\xAD]*(?:-(?:[A-Za-z0-9\xAD]+|[A-Za-z](?:\.[A-Za-z])+\.))+)"),
    ("{joined}", r"(?:[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+)"),
    ("{clitic}", r"(?i:[msd]|re|ve|ll)"),
    // Markup and addresses.
    ("{name}", r"(?:[A-Za-z][A-Za-z0-9_:.-]*)"),
    ("{attribute}", r#"(?:\x20+{name}(?:\x20*=\x20*(?:'[^'\n]*'|"[^"\n]*"))?)"#),
    ("{tag}", r"(?:<{name}{attribute}*\x20*/?\x20*>|</{name}\x20*>|<[!?][A-Za-z-][^>\r\n]*>)"),
    ("{mailbox}", r#"(?:[A-Za-z0-9][^\x20\t\n\f\r"<>|(){}\xA0]*)"#),
    ("{host}", r#"(?:[^\x20\t\n\f\r"<>|(){}.\xA0]+)"#),
    ("{path}", r#"(?:/[^\x20\t\n\f\r"<>|()]+[^\x20\t\n\f\r"<>|.!?(){},-])"#),
    ("{face}", r"[-^x=~<>']"),
];

/// The rules, those of words first.
const RULES: &[(Take, &str)] = &[
    (Verbatim, r"{tag}"),
    (As("&"), r"(?i:&amp;)"),
    (As(""), r"(?i:&nbsp;|&[mn]dash;)|{space}+|&(?:quot|apos);"),
    (As("<"), r"(?i:&lt;)"),
    (As(">"), r"(?i:&gt;)"),
    (All, r"(?i:&quot;|&apos;|&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|\#[0-9]+);)"),
    // Words that are fused from two.
    (Without(3), r"(?i:cannot)|'(?i:twas)"),
    (Without(2), r"(?i:gonna|gotta|lemme|gimme|wanna)|'(?i:tis)"),
    (All, r"(?i:whaddya|d{apostrophe}ye)"),
    // Clitics: 's, 'll, n't.
    (Stem(0), r"(?:{word}|{numbered}){apostrophe}{clitic}"),
    (Stem(1), r"[A-Za-z\xAD]*[A-MO-Za-mo-z]\xAD*[nN]{tick}[tT]"),
    // Words with an apostrophe.
    (
        All,
        r"{apostrophe}[nN]{apostrophe}?|[dDjJlL]{apostrophe}|(?i:dunkin|ol|somethin){apostrophe}
        |{apostrophe}(?i:cause|em|till?)|{apostrophe}[2-9]0[sS]|[A-HJ-XZn]{tick}{letter}{letter}+
        |{letter}+[aeiouyAEIOUY]{tick}[aeiouA-Z]{letter}*
        |(?i:c{apostrophe}est|c{apostrophe}mon|cont{apostrophe}d\.|e{apostrophe}er|ev{apostrophe}ry|li{apostrophe}l
        |nat{apostrophe}l|nor{apostrophe}easter|o{tick}o|s{apostrophe}mores)",
    ),
    (Clitic(1), r"(?:{apostrophe}{clitic}|[nN]{tick}[tT])[^A-Za-z]"),
    (All, r"{word}|{numbered}"),
    (Without(1), r"[yY]{apostrophe}{letter}"),
    (As(""), r"{apostrophe}"),
    (First, r"'[A-Za-z][^\x20\t\n\r\xA0]"),
    (Clitic(0), r"{apostrophe}{clitic}"),
    (Without(1), r"{apostrophe}[0-9]{2}{break}"),
    (Without(1), r"(?:{word}|{numbered}|{compound}|{hyphenated}|{joined})\.{pause}"),
    // Numbers: plain, fractions, of telephones, dates, raised and lowered.
    (All, r"[-+]?(?:{digit}+|{digit}*(?:[.:,\xAD\x{66B}\x{66C}]{digit}+)+)"),
    (All, r"(?:{digit}{1,4}[-\x20\xA0])?{digit}{1,4}(?:\\?/|\x{2044}){digit}{1,4}"),
    (
        All,
        r"(?:\([0-9]{2,3}\)[\x20\xA0]?|(?:\+\+?)?(?:[0-9]{2,4}[-\x20\xA0])?[0-9]{2,4}[-\x20\xA0])
        [0-9]{3,4}[-\x20\xA0]?[0-9]{3,5}|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
    ),
    (All, r"{digit}{1,2}[-/]{digit}{1,2}[-/]{digit}{2,4}"),
    (All, r"[\x{207A}\x{207B}\x{208A}\x{208B}]?(?:[\xB2\xB3\xB9\x{2070}\x{2074}-\x{2079}]+|[\x{2080}-\x{2089}]+)"),
    // Abbreviations that whatever follows leaves alone, except more letters.
    (Without(2), r"{abbreviation}\.(?s:..)"),
    // Words with hyphens, slashes and signs.
    (All, r"{hyphenated}|{compound}|{joined}|[Cc]\+\+|[CcFf]\#"),
    (All, r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    // Addresses.
    (Verbatim, r#"(?i:https?)://[^\x20\t\n\f\r"|<>(){}]+[^\x20\t\n\f\r"|<>.!?(){},-]"#),
    (Verbatim, r#"(?i:www)\.(?:[^\x20\t\n\f\r"`<>|.!?(){},]+\.)*[A-Za-z]{2,4}{path}?"#),
    (Verbatim, r#"(?:[^\x20\t\n\f\r"`'<>|.!?(){},-_$]+\.)+(?i:com|edu|net|org){path}?"#),
    (Verbatim, r"(?:<|(?i:&lt;))?{mailbox}@(?:{host}\.)*{host}(?:>|(?i:&gt;))?"),
    (Verbatim, r"@[A-Za-z_][A-Za-z0-9_]*|\#{alphabetic}+"),
    // Faces.
    (Without(1), r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]][^A-Za-z0-9]"),
    (All, r"{face}_{face}|\({face}[_.]?{face}\)|\([\^x=~<>']-[\^x=~<>'`]\)"),
    // Abbreviations and initials.
    (All, r"(?:{title}|{abbreviation})\.|[A-Za-z](?:\.[A-Za-z])*\."),
    (First, r"[A-Za-z]\.{break}+(?:{opener}|{tag}){break}"),
    (ThroughStop, r"(?i:art|ca|figs?|nos?|op|pp|prop)\.{break}?{digit}"),
    (Without(1), r"{alphanumeric}+(?:\.{alphanumeric}+)*\.(?i:{suffix})(?:{break}|[.?!,])"),
    // Punctuation and signs.
    (As("..."), r"\.{3,5}|(?:\.[\x20\xA0]){2,4}\.|\x{2026}"),
    (As("--"), r"-{2,4}|[\x96\x97\x{2013}-\x{2015}]"),
    (All, r"-{5,}|[?!]+|_+|@+|\#+|\*+|<<|>>|[A-Z]+\$|\\\*|[$%&/\\|~^=+<>\x{2044}]"),
    (As("-lrb-"), r"\("),
    (As("-rrb-"), r"\)"),
    (As("-lsb-"), r"\["),
    (As("-rsb-"), r"\]"),
    (As("-lcb-"), r"\{"),
    (As("-rcb-"), r"\}"),
    (As(""), r#""|``|''"#),
    (Quotes, r"[`\x91-\x94\xAB\xBB\x{2018}-\x{201F}\x{2039}\x{203A}]{1,2}"),
    (As("$"), r"[\x80\xA4\x{20A0}\x{20AC}]"),
    (As("cents"), r"\xA2"),
    (As("#"), r"\xA3"),
    (As("1/4"), r"\xBC"),
    (As("1/2"), r"\xBD"),
    (As("3/4"), r"\xBE"),
    (As("1/3"), r"\x{2153}"),
    (As("2/3"), r"\x{2154}"),
    (
        All,
        r"[\xA1\xA5-\xA9\xAC\xAE-\xB4\xB6-\xB9\xBF\xD7\xF7\x{37E}\x{387}\x{589}\x{5BE}\x{5C0}\x{5C3}\x{5C6}
        \x{5F3}\x{5F4}\x{600}-\x{603}\x{606}-\x{60C}\x{614}\x{61B}\x{61E}\x{61F}\x{66A}\x{66D}\x{6D4}
        \x{700}-\x{70D}\x{7F6}-\x{7F8}\x{964}\x{965}\x{E3F}\x{E4F}\x{1FBD}\x{2016}\x{2017}\x{201A}
        \x{201E}-\x{2023}\x{2030}-\x{2038}\x{203B}\x{203E}-\x{2042}\x{2070}\x{2074}-\x{207E}
        \x{2080}-\x{208E}\x{20A4}\x{2100}\x{2101}\x{2103}-\x{2106}\x{2108}\x{2109}\x{2114}\x{2116}-\x{2118}
        \x{211E}-\x{2123}\x{2125}\x{2127}\x{2129}\x{212E}\x{213A}\x{213B}\x{2140}-\x{2144}\x{214A}-\x{214D}
        \x{214F}\x{2155}-\x{215E}\x{2190}-\x{2BFF}\x{3001}\x{3002}\x{3012}\x{30FB}\x{FF01}-\x{FF0F}
        \x{FF1A}-\x{FF20}\x{FF3B}-\x{FF40}\x{FF5B}-\x{FF65}\x{FFE0}\x{FFE1}\x{FFE5}\x{FFE6}]",
    ),
];

/// The rules with their definitions put in, as regular expressions in verbose mode.
pub fn rules() -> Vec<(Take, String)> {
    let any_of = |words: &str| format!("(?:{})", words.split_whitespace().collect::<Vec<_>>().join("|"));
    let lists = [
        ("{abbreviation}", format!("(?:(?i:{})|{})", any_of(ABBREVIATIONS), any_of(CAPITALISED))),
        ("{title}", format!("(?i:{})", any_of(TITLES))),
        ("{opener}", format!("(?:{}|{})", any_of(OPENERS), any_of(&OPENERS.to_uppercase()))),
        ("{suffix}", any_of(SUFFIXES)),
    ];
    let defined = |rule: &str, known: &[(&str, String)]| {
        known.iter().fold(rule.to_owned(), |rule, (name, definition)| rule.replace(name, definition))
    };
    let mut known: Vec<(&str, String)> = lists.into();
    for (name, definition) in DEFINITIONS {
        let definition = defined(definition, &known);
        known.push((name, definition));
    }
    RULES.iter().map(|(take, rule)| (*take, defined(rule, &known))).collect()
}
