"""Writes small files in the format of OpenCV's structured edge detectors."""

from __future__ import annotations

SIZES = {
    "stride": 2, "shrinkNumber": 2, "patchSize": 32, "patchInnerSize": 16,
    "numberOfGradientOrientations": 4, "gradientSmoothingRadius": 0,
    "regFeatureSmoothingRadius": 2, "ssFeatureSmoothingRadius": 8,
    "gradientNormalizationRadius": 4, "selfsimilarityGridSize": 5,
    "numberOfTrees": 8, "numberOfTreesToEvaluate": 4,
}  # fmt: skip
VOTES = 100  # as many as neighbouring patches would have for a pixel


def write_edge_model(path, *, threshold=1.0, without=None):
    """Trees of one question each: is the gradient in the middle of the patch strong? Then the
    middle is an edge. `without` leaves out a part of the file."""
    cells = (SIZES["patchSize"] // SIZES["shrinkNumber"]) ** 2
    gradient = 3 * cells + 8 * 16 + 8  # the channel after the three of colour, row 8, column 8
    trees = SIZES["numberOfTrees"]
    middle = 8 * 16 + 8
    parts = {
        "childs": [[2, 0, 0]] * trees,
        "featureIds": [[gradient, 0, 0]] * trees,
        "thresholds": [[threshold, 0.0, 0.0]] * trees,
        # Where the votes of each node begin; the right leaf of each tree has them, for one pixel.
        "edgeBoundaries": [[VOTES * n] * 3 for n in range(trees)] + [[VOTES * trees]],
        "edgeBins": [[middle] * VOTES] * trees,
    }
    lines = ["%YAML:1.0", "options:", *(f"   {name}: {value}" for name, value in SIZES.items())]
    for name, rows in parts.items():
        if name != without:
            lines += [f"{name}:", *(f"   - [ {', '.join(map(str, row))} ]" for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path
