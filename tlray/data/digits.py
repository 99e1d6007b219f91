"""scikit-learn's handwritten digits, 8 x 8 pixels: the one real data set that is always there."""

import numpy as np

from tlray.cache import Places
from tlray.data.raw import Raw, RawSplit, Source
from tlray.registry import TASKS


@TASKS.register("digits")
def digits(spec: str, size: int, places: Places) -> Source:
    """1,797 images in 10 classes (UCI ML hand-written digits), split by tlray."""
    return Source("sklearn-digits-1", "digits", _load)


def _load() -> Raw:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)  # type: ignore[attr-defined]
    source = {"file": "sklearn.datasets.load_digits", "licence": "CC BY 4.0"}
    return Raw("multiclass", tuple("0123456789"), {"train": RawSplit(images, data.target)}, source)  # type: ignore[attr-defined]
