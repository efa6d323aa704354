"""Makes sample_data/ from the tables inside scikit-learn (which the tests themselves do not need).

python tests/make_sample_data.py
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_digits, load_wine

FOLDER = Path(__file__).resolve().parents[1] / "sample_data"


def table(loader: object, label: str, names: dict[int, str] | None = None) -> pd.DataFrame:
    """A scikit-learn table with words joined by underscores in its column names, and its target in the last column."""
    bunch = loader(as_frame=True)  # type: ignore[operator]
    frame = bunch.data.rename(columns=lambda name: name.replace(" ", "_").replace("/", "_"))
    return frame.assign(**{label: bunch.target.map(names) if names else bunch.target})


def spirals(n: int = 4000) -> pd.DataFrame:
    """Two interleaved arms in 2-D: curved, two-sheeted, nothing a Gaussian could follow."""
    rng = np.random.default_rng(0)
    angle = 3 * np.pi * np.sqrt(rng.random(n))
    side = rng.choice([-1, 1], n)
    x = np.column_stack([angle * np.cos(angle), angle * np.sin(angle)]) * side[:, None] / 3
    x += 0.15 * rng.standard_normal((n, 2))
    return pd.DataFrame({"x": 100 + 20 * x[:, 0], "y": 0.001 * x[:, 1]}).round(8)


def write_pictures(digits: pd.DataFrame, path: Path) -> None:
    """The digits as 8×8 PNGs in a folder for each, in a zip whose bytes depend on nothing else. Values 0 to 16 become
    0 to 255, sixteen steps and white."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, (*pixels, digit) in enumerate(digits.itertuples(index=False)):
            image = Image.fromarray(np.minimum(16 * np.array(pixels, int), 255).astype(np.uint8).reshape(8, 8))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{digit}/{i:04d}.png"), buffer.getvalue())


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    cancer = table(load_breast_cancer, "diagnosis", {0: "malignant", 1: "benign"})
    cancer.to_csv(FOLDER / "breast_cancer.csv", index=False)
    table(load_wine, "cultivar").to_csv(FOLDER / "wine.csv", index=False)
    digits = table(load_digits, "digit").astype(np.int8)
    digits.to_parquet(FOLDER / "digits.parquet", index=False)
    write_pictures(digits, FOLDER / "digits.zip")
    spirals().to_csv(FOLDER / "spirals.csv", index=False)


if __name__ == "__main__":
    main()
