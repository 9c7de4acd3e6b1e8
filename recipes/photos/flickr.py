"""Captions and lists of pictures in the files of Flickr8k; needs nothing but Python."""


def read_captions(tokens):
    """[(NAME.jpg, number of the caption, text)] of a Flickr8k.token.txt."""
    rows = []
    with open(tokens, encoding="utf-8") as f:
        for line in f:
            key, _, text = line.rstrip("\r\n").partition("\t")
            name, _, number = key.rpartition("#")
            if text.strip():
                rows.append((name, int(number), text.strip()))
    return rows


def read_list(path):
    with open(path, encoding="utf-8") as f:
        return {line.strip() for line in f if line.strip()}
