//! The page: one file without scripts, readable by keyboard and screen reader, in dark and light. Images and sound of the worst
//! and best cases are inside it; a file that is too large for that is linked.

use std::path::Path;

use super::{Case, Report, shown};
use crate::files;

/// Maximum bytes of an image or a recording inside the page.
const MAX_INLINE: u64 = 1 << 20;

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width\">
<title>Evaluation</title>
";
const TOP: &str = "</head>
<body>
<a class=\"skip\" href=\"#scores\">Skip to the scores</a>
<header>
<h1>Evaluation</h1>
";
const SECTIONS: &str = "<nav aria-label=\"Sections\"><ul>
<li><a href=\"#scores\">Scores</a></li>
<li><a href=\"#worst\">Worst cases</a></li>
<li><a href=\"#best\">Best cases</a></li>
<li><a href=\"#configuration\">Configuration</a></li>
</ul></nav>
</header>
<main>
";
/// Colours and sizes.
const STYLE: &str = "
:root { color-scheme: light dark; --line: #8888; --back: #f4f4f2; }
@media (prefers-color-scheme: dark) { :root { --back: #24262a; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; font-weight: bold; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
article { background: var(--back); border-radius: .5rem; padding: 1rem; margin: 1rem 0; display: flow-root; }
article img { float: right; max-width: min(45%, 22rem); max-height: 18rem; margin: 0 0 1rem 1rem; }
article h3 { margin-top: 0; overflow-wrap: anywhere; }
audio { display: block; margin: .5rem 0; max-width: 100%; }
a:focus-visible, summary:focus-visible, audio:focus-visible { outline: 3px solid currentColor; outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { position: static; }
";

/// The page, with `count` worst and best cases.
pub fn html(report: &Report, count: usize) -> String {
    let (worst, best) = report.extremes(count);
    let mut page = format!("{HEAD}<style>{STYLE}</style>\n{TOP}<p>{}</p>\n{SECTIONS}", escape(&report.sentence()));
    let rows = report.scores.iter().map(|(name, value)| (name.as_str(), shown(value)));
    page += &table("scores", "Scores", "of the whole set", rows);
    for (id, title, cases) in [("worst", "Worst cases", worst), ("best", "Best cases", best)] {
        page += &format!("<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n");
        page += "<p>By CIDEr, the most extreme first. All images are in report.json.</p>\n";
        page.extend(cases.into_iter().map(article));
        page += "</section>\n";
    }
    let rows = report
        .config
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    page += &table("configuration", "Configuration", "of this evaluation", rows);
    if !report.missing.is_empty() {
        page += "<section aria-labelledby=\"missing\">\n<h2 id=\"missing\">Images without a transcript</h2>\n<ul>\n";
        page.extend(report.missing.iter().map(|name| format!("<li>{}</li>\n", escape(name))));
        page += "</ul>\n</section>\n";
    }
    page + "</main>\n</body>\n</html>\n"
}

/// A section that is a table of names and values.
fn table<'a>(id: &str, title: &str, of: &str, rows: impl Iterator<Item = (&'a str, String)>) -> String {
    let mut text = format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-title\">\n<h2 id=\"{id}-title\">{title}</h2>\n<table>\n\
         <caption>{title} {of}</caption>\n\
         <thead><tr><th scope=\"col\">Name</th><th scope=\"col\">Value</th></tr></thead>\n<tbody>\n"
    );
    for (name, value) in rows {
        text += &format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape(name), escape(&value));
    }
    text + "</tbody>\n</table>\n</section>\n"
}

/// One image with its player, transcript, references and scores.
fn article(case: &Case) -> String {
    let name = escape(&case.name);
    let described = case.references.first().map_or(String::new(), |said| format!(": {}", escape(said)));
    let absolute = std::path::absolute(&case.image).unwrap_or_else(|_| case.image.clone());
    let image = source(&case.image, &format!("file://{}", absolute.display()), image_type);
    let wav = source(&case.wav, &format!("wavs/{}.wav", case.name), |_| Some("audio/wav"));
    let player = match case.units.is_empty() {
        true => "<p>The model said nothing.</p>\n".into(),
        false => {
            format!("<audio controls preload=\"none\" aria-label=\"Spoken caption of {name}\" src=\"{wav}\"></audio>\n")
        }
    };
    let scores = case.scores;
    let references: String = case.references.iter().map(|said| format!("<li>{}</li>\n", escape(said))).collect();
    let units = case.units.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let transcript = match case.transcript.trim() {
        "" => "nothing".into(),
        text => format!("<q>{}</q>", escape(text)),
    };
    format!(
        "<article aria-label=\"{name}\">\n<img src=\"{image}\" alt=\"Image {name}{described}\">\n\
         <h3>{name}</h3>\n{player}<p>Transcript: {transcript}</p>\n<p>CIDEr {:.3}, ROUGE-L {:.3}, BLEU-4 {:.3}</p>\n\
         <p>People said:</p>\n<ul>\n{references}</ul>\n\
         <details><summary>{} units of {name}</summary><p>{units}</p></details>\n</article>\n",
        scores.cider,
        scores.rouge_l,
        scores.bleu4,
        case.units.len()
    )
}

/// A file as the address in the page: its bytes, or `link` where they are too many or of an unknown kind.
fn source(path: &Path, link: &str, kind: impl Fn(&[u8]) -> Option<&'static str>) -> String {
    let bytes = files::read_at_most(path, MAX_INLINE).ok();
    match bytes.as_deref().and_then(|bytes| Some((kind(bytes)?, bytes))) {
        Some((kind, bytes)) => format!("data:{kind};base64,{}", base64(bytes)),
        None => escape(&link.replace('%', "%25").replace('#', "%23").replace('?', "%3F")),
    }
}

/// The media type of an image by its first bytes.
fn image_type(bytes: &[u8]) -> Option<&'static str> {
    const TYPES: [(&[u8], &str); 5] = [
        (b"\xff\xd8", "image/jpeg"),
        (b"\x89PNG", "image/png"),
        (b"GIF8", "image/gif"),
        (b"BM", "image/bmp"),
        (b"RIFF", "image/webp"),
    ];
    TYPES.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| *kind)
}

/// Base64 (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let word = part.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - part.len()));
        for digit in 0..4 {
            let at = (word >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= part.len() { char::from(DIGITS[at]) } else { '=' });
        }
    }
    text
}

/// `text` without markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd, 0xfc]), "//79/A==");
    }
}
