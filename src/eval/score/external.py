"""METEOR and SPICE of tokenised captions: a JSON list of [caption, [reference, ...]] on standard input, one JSON
object on standard output. A score that cannot be computed is the reason for that."""

import json
import os
import shutil
import sys


def meteor(references, captions):
    from pycocoevalcap.meteor.meteor import Meteor

    return float(Meteor().compute_score(references, captions)[0])


def spice(references, captions):
    from pycocoevalcap.spice import spice as module

    parser = os.path.join(os.path.dirname(module.__file__), "lib", "stanford-corenlp-3.6.0.jar")
    if not os.path.exists(parser):
        raise FileNotFoundError(f"its parser is not installed ({parser})")
    return float(module.Spice().compute_score(references, captions)[0])


def outcome(metric, references, captions):
    if shutil.which("java") is None:
        return "java is not installed"
    try:
        return metric(references, captions)
    except ImportError:
        return f"pycocoevalcap is not installed for {sys.executable}"
    except FileNotFoundError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


pairs = json.load(sys.stdin)
references = dict(enumerate(pair[1] for pair in pairs))
captions = {number: [pair[0]] for number, pair in enumerate(pairs)}
answer = {name: outcome(metric, references, captions) for name, metric in (("METEOR", meteor), ("SPICE", spice))}
print("\n" + json.dumps(answer))
