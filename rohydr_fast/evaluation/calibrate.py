"""Half the width of a trained model's intervals, for every set of modalities that can be available."""

import math

from ..data.dataset import Dataset
from ..modalities import MODALITIES
from ..models.rohydr import RoHyDR
from .predict import predict
from .protocols import protocol_rows
from .uncertainty import conformal_radius


def calibrate(model: RoHyDR, dataset: Dataset, *, seed: int, samples: int = 1) -> dict[str, float]:
    """Available set such as ``a,t`` -> half the width of the conformal interval, by the errors on the validation split.

    Of the clips that have all of a set. A set of too few clips is left out.
    """
    split, radii = dataset.valid, {}
    present = split.present()
    for _, spec in protocol_rows("fixed", model.config.modalities):
        kept = [m in spec.available for m in MODALITIES]
        clips = present[:, kept].all(1)
        if not clips.any():
            continue
        missing = ~present.copy()
        missing[clips] = [not one for one in kept]
        found = predict(model, dataset, split, missing, seed=seed, samples=samples)
        radius = conformal_radius(found.mean[clips], split.labels[clips])
        if math.isfinite(radius):
            radii[",".join(spec.available)] = radius
    return radii
