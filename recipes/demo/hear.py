"""The listener: PocketSphinx with its own English acoustic model writes down what it hears.

It may choose among all valid captions (the grammar of scenes.py) and nothing else helps it: it knows
neither the picture nor the intended sentence. Used to judge synthesised speech.

    python hear.py FILE.wav ...     prints a line for each: its text, after its name where there are several
"""
import sys
from functools import lru_cache

import numpy as np

import scenes

PADDING = 0.3  # seconds of faint noise before and after the sound; the decoder expects some silence


@lru_cache
def decoder():
    from pocketsphinx import Decoder
    d = Decoder(samprate=16000, lm=None, loglevel="FATAL")
    d.add_jsgf_string("scenes", scenes.grammar_jsgf())
    d.activate_search("scenes")
    return d


def hear(sound):
    """The sentence heard in a 16 kHz mono WAV file or an array of samples (int16, or floats in -1..1)."""
    if isinstance(sound, str):
        import soundfile
        sound, rate = soundfile.read(sound, dtype="int16")
        assert rate == 16000, "16 kHz mono expected"
    x = np.asarray(sound)
    if x.dtype != np.int16:
        x = np.clip(np.floor(x.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    quiet = np.random.default_rng(0).integers(-3, 4, int(PADDING * 16000), dtype=np.int16)
    d = decoder()
    d.start_utt()
    d.process_raw(np.concatenate([quiet, x, quiet]).tobytes(), full_utt=True)
    d.end_utt()
    hyp = d.hyp()
    return hyp.hypstr.strip() if hyp else ""


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(*([name] if len(sys.argv) > 2 else []), hear(name))
