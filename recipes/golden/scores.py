"""Golden data of `im2sp score`: generated captions with odd punctuation, their tokens by Stanford's tokeniser and their scores by
pycocoevalcap and sacrebleu. Needs Java.

    python recipes/golden/scores.py                      writes tests/golden/scores.json.gz
    python recipes/golden/scores.py --flickr FILE OUT    the same of Flickr8k.token.txt: each first caption against the others

CoreNLP reads all captions as one text, so that a last word such as "x." or "no." depends on how the next caption begins, and a
tag may begin in one caption and end in another. No generated caption ends in either.
"""

import argparse
import contextlib
import gzip
import io
import json
import pathlib
import random
import re

import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

OUTPUT = pathlib.Path(__file__).parents[2] / "tests/golden/scores.json.gz"
SETS = 2400
OF_CORPORA = [1, 2, 3, 40, 354, 2000]
PLAIN = """a the two three man woman dog cat boy girl child people ball frisbee beach street snow water grass red blue green
black white brown small large young old is are runs jumping playing sitting standing with in on of at to and his her while
through over near field park table train bus horse surfboard wave skateboard umbrella pizza giraffe""".split()
ODD = """don't can't it's they're isn't won't I'm we'll dogs' boy's James's cannot gonna gotta wanna lemme 'tis 'twas d'ye
o'clock rock'n'roll 'em 'n' 'til y'all ma'am O'Brien l'eau c'mon ol' goin' Mr. Mrs. Dr. St. etc. Inc. U.S. U.S.A. a.m. p.m.
e.g. Jr. vs. Ave. No.5 fig.3 J. K. 5 12 1,000 3.5 .5 1/2 3-4 12:30 10% $5 US$20 £5 €3 5¢ 1st 22nd 1990s '90s '99 2-year-old
black-and-white x-ray T-shirt t-shirts and/or he/she AT&T R&B C++ F# @user #tag x@y.com www.x.com http://x.com/y foo.com
photo.jpg :) :-( ;D =P ^_^ <b> </b> <br/> ... .. . , ; : ! ? !! ?! - -- --- – — ( ) [ ] { } " ' ` `` '' “ ” ‘ ’ « » don’t
it’s dogs’ / \\ | ~ _ * ** + = < > ½ ° café naïve über ß 日本 привет 😀 × 555-1234 800-555-1234 5'10" 6' 2" &amp; &quot;
&lt; &#39; caf&eacute; soft\u00adhyphen non\u2011breaking thin\u2009space no\u00a0break zero\u200bwidth e\u0301 ﬁ ² ™ … ‚ „ ？
DOG MAN The A IN Cannot DON'T word,word a.b.c Second.Third a_b a+b 3D F-16 7-up""".split()


def caption(draw):
    kind = draw.random()
    if kind < 0.03:
        return draw.choice(["", " ", ".", "...", "!", "-", "a", "\t", "' '", "( )", "?!"])
    odd = draw.choice([0, 0, 0.1, 0.3, 0.8])
    words = [draw.choice(ODD if draw.random() < odd else PLAIN) for _ in range(draw.randint(1, 14))]
    if draw.random() < 0.05:
        words += words
    glue = [draw.choice(["", "", ", ", "-", "."]) if draw.random() < 0.05 else draw.choice([" "] * 9 + ["  "]) for _ in words]
    text = "".join(word + space for word, space in zip(words, glue)).strip(" ") + draw.choice(["", " .", ".", "", "!", "\n"])
    text = text.capitalize() if draw.random() < 0.3 else text.upper() if draw.random() < 0.05 else text
    return text + " end" if needs_end(text) else text


def needs_end(text):
    return re.search(r"([a-z]\.|[a-z.]+\.|'\d\d|[<:;=].*|\d)\s*$", text, re.IGNORECASE) or "<" in text.split(">")[-1]


def image(draw):
    references = [caption(draw) for _ in range(draw.choice([5, 5, 5, 1, 2, 6, 7]))]
    if draw.random() < 0.1:
        references[-1] = references[0]
    chosen = draw.random()
    if chosen < 0.2:
        return draw.choice(references), references
    if chosen < 0.7:
        words = draw.choice(references).split(" ")
        draw.shuffle(words)
        text = " ".join(words[: draw.randint(1, len(words))] + draw.choices(PLAIN, k=draw.randint(0, 4)))
        return (text + " end" if needs_end(text) else text), references
    return caption(draw), references


def score(images):
    """Tokens and scores of a list of (caption, references)."""
    wrapped = {number: [{"caption": text} for text in texts] for number, texts in enumerate(r for _, r in images)}
    tokenizer = PTBTokenizer()
    # A last line of no tokens would be lost.
    wrapped["last"] = [{"caption": "end"}]
    references = tokenizer.tokenize(wrapped)
    captions = tokenizer.tokenize(
        {number: [{"caption": text}] for number, (text, _) in enumerate(images)} | {"last": [{"caption": "end"}]}
    )
    assert references.pop("last") == captions.pop("last") == ["end"]
    assert all(len(references[number]) == len(texts) for number, (_, texts) in enumerate(images))
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, bleus = Bleu(4).compute_score(references, captions)
        rouge, rouges = Rouge().compute_score(references, captions)
        cider, ciders = Cider().compute_score(references, captions)
    streams = min(len(texts) for _, texts in images)
    lower = [[texts[n].lower() for _, texts in images] for n in range(streams)]
    corpus = sacrebleu.corpus_bleu([text.lower() for text, _ in images], lower).score
    return {
        "tokens": [[captions[number][0], references[number]] for number in range(len(images))],
        "scores": {"Bleu": bleu, "ROUGE_L": float(rouge), "CIDEr": float(cider), "sacreBLEU": corpus},
        "images": [[float(b), float(r), float(c)] for b, r, c in zip(bleus[3], rouges, ciders)],
    }


def generated():
    draw = random.Random(12)
    images = [image(draw) for _ in range(SETS)]
    corpora, at = [], 0
    for size in OF_CORPORA:
        part = images[at : at + size]
        at += size
        corpora.append({"pairs": part} | score(part))
    assert at == SETS
    return corpora


def flickr(path):
    images = {}
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        name, text = line.split("\t", 1)
        images.setdefault(name.rsplit("#", 1)[0], []).append(text)
    pairs = [(texts[0], texts[1:]) for texts in images.values() if len(texts) > 1]
    return [{"pairs": pairs} | score(pairs)]


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr", nargs=2, metavar=("FILE", "OUT"))
    chosen = parser.parse_args().flickr
    corpora, output = (flickr(chosen[0]), pathlib.Path(chosen[1])) if chosen else (generated(), OUTPUT)
    text = json.dumps(rounded(corpora), ensure_ascii=False, separators=(",", ":"))
    output.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(output, len(output.read_bytes()), "bytes")
