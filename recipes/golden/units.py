"""`.unit` files as the reference's scripts write them, and as they must not be: writes tests/golden/units/.

    python recipes/golden/units.py [--out tests/golden/units]

array.unit and tensor.unit hold 0, 100, 101, 199, 5, 5; the others are each wrong in one way. Needs requirements.txt beside this file.
"""
import argparse
from pathlib import Path

import numpy as np
import torch

UNITS = [0, 100, 101, 199, 5, 5]
FILES = {
    "array.unit": np.array(UNITS, np.int64),
    "tensor.unit": torch.tensor(UNITS),
    "narrow.unit": np.array(UNITS, np.int32),
    "empty.unit": np.array([], np.int64),
    "float.unit": np.array(UNITS, np.float32),
    "matrix.unit": torch.tensor([UNITS, UNITS]),
    "large.unit": np.array([*UNITS, 200], np.int64),
    "negative.unit": torch.tensor([*UNITS, -1]),
    "dict.unit": {"units": torch.tensor(UNITS)},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("tests/golden/units"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        torch.save(content, out / name)


if __name__ == "__main__":
    main()
