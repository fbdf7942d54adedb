"""Write the handwritten digits of scikit-learn as one file, digits.npz: training and held-out rows.

The data lies inside scikit-learn's wheel (1,797 real scans of 8x8 pixels), so this needs no network.
The split is fixed: everybody's accuracy is measured on the same 360 digits.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for digits.npz; made if missing")
    out: Path = parser.parse_args().out

    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data.astype(np.float32),
        digits.target.astype(np.int64),
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / ".digits.npz.part"
    with unfinished.open("wb") as file:
        np.savez_compressed(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    unfinished.replace(out / "digits.npz")  # a training that reads meanwhile never sees half a file
    print(f"{out / 'digits.npz'}: {len(x_train)} digits to train on, {len(x_test)} held out")


if __name__ == "__main__":
    main()
