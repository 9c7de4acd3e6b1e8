"""The manifest of `im2sp train`: a line for every spoken caption of a picture.

    python dataset.py --work DIR --pictures DIR --train Flickr_8k.trainImages.txt --dev Flickr_8k.devImages.txt

reads WORK/speech/chunks and writes WORK/manifest.jsonl, {"image": "pictures/NAME.jpg", "units": [71, 12, ...], "split":
"train", "caption": "A dog runs ."}, with WORK/pictures a link to the folder. Captions too long for the decoder's
positions are left out, and so are pictures that are not there. No picture of another list gets in.
"""
import argparse
import glob
import json
import os

from flickr import read_list

POSITIONS = 192  # BOS and EOS included


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", required=True)
    ap.add_argument("--pictures", required=True)
    ap.add_argument("--train", required=True)
    ap.add_argument("--dev", required=True)
    args = ap.parse_args()

    split = {name: "train" for name in read_list(args.train)}
    split |= {name: "val" for name in read_list(args.dev)}
    link = os.path.join(args.work, "pictures")
    if not os.path.exists(link):
        os.symlink(os.path.abspath(args.pictures), link)
    there = set(os.listdir(link))
    counts = {"train": 0, "val": 0, "missing": 0, "too long": 0}
    path = os.path.join(args.work, "manifest.jsonl")
    with open(path + ".part", "w") as out:
        for name in sorted(glob.glob(os.path.join(args.work, "speech", "chunks", "*.jsonl"))):
            with open(name) as f:
                for row in map(json.loads, f):
                    picture = row["key"].rpartition("#")[0]
                    kind = split.get(picture)
                    if picture not in there:
                        counts["missing"] += 1
                    elif len(row["units"]) > POSITIONS - 2:
                        counts["too long"] += 1
                    elif kind:
                        counts[kind] += 1
                        out.write(json.dumps({"image": f"pictures/{picture}", "units": row["units"], "split": kind,
                                              "caption": row["text"]}) + "\n")
    os.replace(path + ".part", path)
    print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))


if __name__ == "__main__":
    main()
